"""How a command ends: what went wrong without being a bug becomes a sentence on stderr and an exit code."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable

from jobs.cli.errors import JobIncomplete

RESUME_HINT = "What is finished stays; the same command goes on from there"


class Terminated(KeyboardInterrupt):
    """SIGTERM, as a scheduler sends it: to be handled as Ctrl-C is."""


def run_command(prog: str, action: Callable[[], int]) -> int:
    """Run a job's body; returns its exit code, or that of what went wrong."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _terminate) if in_main_thread else None
    try:
        return action()
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    except JobIncomplete as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 1
    except Terminated:
        print(f"{prog}: terminated. {RESUME_HINT}", file=sys.stderr)
        return 143
    except KeyboardInterrupt:
        print(f"{prog}: interrupted. {RESUME_HINT}", file=sys.stderr)
        return 130
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: object) -> None:
    raise Terminated
