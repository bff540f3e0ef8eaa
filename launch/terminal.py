"""How every entry point ends: one message instead of a traceback for what a user can mend, and a clean Ctrl-C."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable
from types import FrameType

from dig_rl.errors import DigRlError


def end_with_message(main: Callable[[], None], after_interrupt: str) -> int:
    """Run `main` and turn its end into an exit code.

    Args:
        main: the command.
        after_interrupt: what to say after Ctrl-C or a polite kill.

    Returns:
        0 done, 1 an error that the message explains, 130 interrupted.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    logging.getLogger("dig_rl").setLevel(logging.INFO)
    signal.signal(signal.SIGTERM, _as_keyboard_interrupt)
    try:
        main()
    except DigRlError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\ninterrupted; {after_interrupt}", file=sys.stderr)
        return 130
    return 0


def _as_keyboard_interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
