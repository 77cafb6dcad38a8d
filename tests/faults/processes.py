"""A command and all that it starts, as one thing that can be watched, wounded and ended."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


class Session:
    """A command in a POSIX session of its own.

    The session's id stays with every process that the command starts, whatever becomes of their parents; so
    nothing but these is ever found or killed, and nothing of these is left behind.

    Args:
        log: takes stdout and stderr; appended to.
    """

    def __init__(self, command: Sequence[str], *, env: Mapping[str, str], log: Path, cwd: Path | None = None) -> None:
        self.log = log
        with log.open("ab") as sink:
            self.process = subprocess.Popen(
                list(command), env=dict(env), cwd=cwd, stdout=sink, stderr=sink, start_new_session=True
            )
        self.pid = self.process.pid  # also the id of the session

    @property
    def is_running(self) -> bool:
        """Whether the command itself runs."""
        return self.process.poll() is None

    def wait(self, seconds: float) -> int:
        """The command's exit code, -N when signal N ended it."""
        return self.process.wait(seconds)

    def finish(self, seconds: float) -> str:
        """The log of the command, which ends well and in time; nothing of it is left running in any case."""
        try:
            code = self.wait(seconds)
        finally:
            self.end()
        log = self.log.read_text()
        assert code == 0, log
        return log

    def titles(self) -> dict[int, str]:
        """Process id → command line, of all living processes of the session."""
        found = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit() and _session_of(int(entry)) == self.pid:
                try:
                    line = Path(f"/proc/{entry}/cmdline").read_bytes()
                except OSError:
                    continue  # it ended while we looked
                found[int(entry)] = line.replace(b"\0", b" ").decode(errors="replace").strip()
        return found

    def find(self, pattern: str) -> list[int]:
        """Ids of the processes whose command line holds a match."""
        return sorted(pid for pid, title in self.titles().items() if re.search(pattern, title))

    def interrupt(self) -> None:
        """What Ctrl-C in a terminal does: SIGINT for the command and all of its process group."""
        os.killpg(self.pid, signal.SIGINT)

    def end(self) -> None:
        """Kill whatever is left of the session."""
        deadline = time.monotonic() + 30
        while (left := self.titles()) and time.monotonic() < deadline:
            for pid in left:
                kill(pid)
            time.sleep(0.1)
            self.process.poll()  # takes the exit code, or the command would stay as a zombie
        assert not self.titles(), f"cannot end {self.titles()}"


def kill(pid: int, number: int = signal.SIGKILL) -> bool:
    """Send a signal to one process; whether there was one."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def wait_until(condition: Callable[[], bool], seconds: float, pause: float = 0.1) -> bool:
    """Poll until the condition holds; whether it did in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True


def _session_of(pid: int) -> int | None:
    """The session of a living process; None for one that is gone or a zombie."""
    try:
        # Behind the name, which may itself hold brackets: state, parent, group, session.
        state, _, _, session = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[:4]
    except OSError:
        return None
    return None if state == "Z" else int(session)
