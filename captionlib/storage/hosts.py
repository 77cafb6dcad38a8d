"""Concurrency limit, back-off and circuit breaker for each web server, shared by the threads of a process.

The circuit breaker follows Nygard, "Release It!" (2007), section 5.2: after too many consecutive failures no request is
sent to a host for a while, and its images are deferred immediately; then one request tests whether it is back.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from captionlib.storage.errors import HostUnknown, HostUnreachable

SILENT_IN_A_ROW = 3
"""Number of consecutive failed connections that opens the circuit breaker of a host."""
FAILED_IN_A_ROW = 20
"""The same for a host that accepts connections, but sends only server errors or incomplete bodies."""
OPEN_SECONDS = 30.0
"""Time until a host with an open circuit breaker gets a test request."""
LONGEST_PAUSE_SECONDS = 30.0
"""Upper limit for the pause that a host asks for (`Retry-After`)."""
PERMANENT_OPEN_SECONDS = 600.0
"""The same for a name that does not exist: asking for it can take several seconds, and it rarely begins to exist."""
LAST_OPEN_SECONDS, LAST_PERMANENT_OPEN_SECONDS = 5.0, 60.0
"""The same before the last attempt at the images of the host."""
MAX_HOSTS = 50_000
"""Maximum number of hosts with a state; beyond it the oldest is dropped, since a crawl may have millions."""


@dataclass
class _Host:
    slots: threading.Semaphore
    has_answered: bool = False
    silent: int = 0
    failed: int = 0
    opened: float = 0.0
    open_until: float = 0.0
    is_permanent: bool = False
    pause_until: float = 0.0
    reason: str = ""


def _refusal(host: _Host, name: str) -> HostUnreachable:
    kind = HostUnknown if host.is_permanent else HostUnreachable
    return kind(errno.EHOSTUNREACH, host.reason, name)


class Hosts:
    """State of each host. Threads may share an instance.

    Args:
        requests_at_once: maximum number of concurrent requests to one host.
    """

    def __init__(self, requests_at_once: int) -> None:
        self.requests_at_once = max(1, requests_at_once)
        self._lock = threading.Lock()
        self._hosts: dict[str, _Host] = {}

    @contextlib.contextmanager
    def request(self, name: str) -> Iterator[None]:
        """Context manager for one request to a host; waits while too many others are running.

        Args:
            name: `host:port`.

        Raises:
            HostUnreachable: the circuit breaker of the host is open.
        """
        host = self._host(name)
        if time.monotonic() < host.open_until:  # checked before waiting for a slot and again afterwards
            raise _refusal(host, name)
        with host.slots:
            self._check(name, host)
            time.sleep(max(0.0, host.pause_until - time.monotonic()))
            yield

    def ask_again(self) -> None:
        """Allow one test request to every host that has had none for some seconds, before a last attempt."""
        with self._lock:
            now = time.monotonic()
            for host in self._hosts.values():
                pause = LAST_PERMANENT_OPEN_SECONDS if host.is_permanent else LAST_OPEN_SECONDS
                if now > host.opened + pause:
                    host.open_until = min(host.open_until, now)

    def has_answered(self, name: str) -> bool:
        """Whether the host has answered any request of this process."""
        return self._host(name).has_answered

    def record_answer(self, name: str) -> None:
        """Record that the host has answered a request, for instance with 404."""
        host = self._host(name)
        host.has_answered, host.silent, host.failed, host.open_until = True, 0, 0, 0.0

    def record_silence(self, name: str, reason: str, *, is_permanent: bool = False) -> None:
        """Record that no connection to the host could be made.

        Args:
            is_permanent: an immediate retry cannot help, as with a name that does not exist.
        """
        host = self._host(name)
        host.silent += 1
        host.is_permanent = is_permanent
        self._open(host, reason, is_permanent or host.silent >= SILENT_IN_A_ROW)

    def record_failure(self, name: str, reason: str, pause_seconds: float = 0.0) -> None:
        """Record that the host has accepted a connection, but has given no valid answer.

        Args:
            pause_seconds: pause that the host asked for.
        """
        host = self._host(name)
        host.failed += 1
        host.pause_until = time.monotonic() + min(pause_seconds, LONGEST_PAUSE_SECONDS)
        self._open(host, reason, host.failed >= FAILED_IN_A_ROW)

    def _open(self, host: _Host, reason: str, is_open: bool) -> None:
        host.reason = reason
        if is_open:
            host.opened = time.monotonic()
            host.open_until = host.opened + (PERMANENT_OPEN_SECONDS if host.is_permanent else OPEN_SECONDS)

    def _check(self, name: str, host: _Host) -> None:
        with self._lock:
            now = time.monotonic()
            if host.open_until and now >= host.open_until:
                host.opened, host.open_until = now, now + OPEN_SECONDS  # this is the test request
            elif now < host.open_until:
                raise _refusal(host, name)

    def _host(self, name: str) -> _Host:
        with self._lock:
            host = self._hosts.get(name)
            if host is None:
                if len(self._hosts) >= MAX_HOSTS:
                    del self._hosts[next(iter(self._hosts))]
                host = self._hosts[name] = _Host(threading.Semaphore(self.requests_at_once))
            return host
