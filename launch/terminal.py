"""How every entry point ends: one message instead of a traceback for what a user can mend, and a clean Ctrl-C.

Entry points that consist of others run them here, too.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from dig_rl.errors import DigRlError
from dig_rl.room import describe_room, free_bytes, is_no_room


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
    except Exception as error:
        if not is_no_room(error):
            raise
        print(f"\nerror: {_no_room(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\ninterrupted; {after_interrupt}", file=sys.stderr)
        return 130
    return 0


def _no_room(error: BaseException) -> str:
    name = getattr(error, "filename", None)
    where = "a file; the disk is that of OUT=, of the runs or of the temporary files"
    if isinstance(name, str):
        folder = Path(name).absolute().parent
        where = f"{name}: {describe_room(folder, free_bytes(folder))}"
    said = str(error).strip().splitlines()[0]
    return f"no room to write {where} ({said}). Delete something there, then run the same command again"


def run_part(module: str, *arguments: str) -> int:
    """Run an entry point in a process and a session of its own, so that Ctrl-C reaches it once, through us.

    Returns:
        Its exit code; if that is not 0, it has said why.

    Raises:
        KeyboardInterrupt: it was interrupted, here or on its own; it has saved where it was.
    """
    child = subprocess.Popen([sys.executable, "-m", module, *arguments], start_new_session=True)
    try:
        code = child.wait()
    except KeyboardInterrupt:
        child.terminate()
        child.wait()
        raise
    if code == 130:
        raise KeyboardInterrupt
    return code


def _as_keyboard_interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
