"""Maps how a command ends to an exit code, and prints expected errors as one sentence on stderr."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable

from captionlib.errors import ImageError, UserError
from captionlib.masking import masked
from jobs.cli.errors import JobIncomplete
from jobs.cli.pipes import quiet_when_unread

RESUME_HINT = "Finished work is kept; run the same command again to resume"


_running: list[str] = []
"""Name of the command that this process runs."""


class Terminated(KeyboardInterrupt):
    """SIGTERM was received, for example from a scheduler. It is handled like Ctrl-C."""


def run_command(prog: str, action: Callable[[], int]) -> int:
    """Run the body of a command and return its exit code; expected errors are printed and get an exit code too."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _terminate) if in_main_thread else None
    _running.append(prog)
    try:
        code = 0
        with quiet_when_unread():  # output is printed at the end, when the work is already done
            code = action()
        return code  # noqa: RET504  it is 0 when nobody reads what was printed
    except (UserError, ImageError, OSError, ModuleNotFoundError) as error:
        print(f"{prog}: {masked(str(error))}", file=sys.stderr)
        return 2
    except JobIncomplete as error:
        print(f"{prog}: {masked(str(error))}", file=sys.stderr)
        return 1
    except Terminated:
        print(f"{prog}: terminated. {RESUME_HINT}", file=sys.stderr)
        return 143
    except KeyboardInterrupt:
        print(f"{prog}: interrupted. {RESUME_HINT}", file=sys.stderr)
        return 130
    finally:
        _running.remove(prog)
        if in_main_thread:
            signal.signal(signal.SIGTERM, before)


def end_at_once(reason: str) -> None:
    """End the command as incomplete from any thread, whatever its main thread does; nothing if no command runs.

    Nothing is closed or flushed but stderr.
    """
    if _running:
        print(f"\n{_running[-1]}: {masked(reason)}. {RESUME_HINT}", file=sys.stderr, flush=True)
        os._exit(1)


def _terminate(number: int, frame: object) -> None:
    raise Terminated
