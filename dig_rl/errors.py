"""The one exception tree: every error a user can cause says what was expected, what was found, where, and what to do.

A malformed *model answer* is never an exception; it is a named status (see `dig_rl.parsing`).
"""


class DigRlError(Exception):
    """Base of every error that ends a command with one message and no traceback."""


class ConfigError(DigRlError, ValueError):
    """A config file, override or stage definition is wrong."""


class PluginError(DigRlError):
    """A reward plugin cannot be loaded, or broke its contract while scoring."""


class AlarmError(DigRlError):
    """An alarm that the config stops at was raised."""


class NotFiniteError(DigRlError, ArithmeticError):
    """A number that training rests on is NaN or infinite: nothing learned from it may be kept."""


class DataError(DigRlError, ValueError):
    """A data folder, its metadata, an image or a label is wrong."""


class MissingSplitError(DataError):
    """A data folder has no pair of the split that is asked for."""


class RenderError(DigRlError, RuntimeError):
    """The renderer process failed, hung or answered nonsense."""


class PolicyError(DigRlError, ValueError):
    """A policy folder cannot be opened, or does not fit the rest of the config."""


class CheckpointError(DigRlError, RuntimeError):
    """A checkpoint is missing, incomplete, corrupt, or belongs to another config."""


class ClusterError(DigRlError, RuntimeError):
    """Ray, an actor or an engine could not be started or was lost."""


class NoRoomError(DigRlError, OSError):
    """A disk, a quota or a limit left no room to write."""


class SetupError(DigRlError, RuntimeError):
    """The environment lacks something: a package, the compiler, headers, disk."""
