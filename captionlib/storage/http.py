"""Reads whole files from web servers, for lists of URLs many of whose hosts may be dead.

Answers about one file (not found, forbidden, too many redirects, body too large) are input faults. Failed connections,
server errors and incomplete bodies are transport faults, which `captionlib.storage.hosts` counts by host.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
import time
import urllib.request
from collections.abc import Iterator
from typing import Any, NoReturn
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    LocationParseError,
    LocationValueError,
    NewConnectionError,
    SSLError,
)

from captionlib.masking import masked
from captionlib.storage.access import AccessSettings
from captionlib.storage.errors import HostUnknown, HostUnreachable, InputFault, RequestFailed, TransportFault
from captionlib.storage.hosts import Hosts

RESOLVER_OPTIONS = "timeout:1 attempts:5"
CONNECT_SECONDS = 5.0
READ_SECONDS = 20.0
"""Timeout for the next bytes."""
WHOLE_SECONDS = 120.0
"""Timeout for a whole file: a server may send a byte a second for ever."""
CONNECTIONS = 256
"""Maximum number of hosts with open connections."""
PIECE_BYTES = 2**16
_REDIRECTIONS = {301, 302, 303, 307, 308}
_BUSY = {408, 425, 429}  # these and all codes from 500 on are retried


class HttpClient:
    """Reads URLs. Threads may share an instance.

    Args:
        processes: number of processes that share `requests_per_host` of the settings.
    """

    def __init__(self, settings: AccessSettings, processes: int = 1) -> None:
        self.settings = settings
        # Options of glibc's resolver, which by default waits five seconds before it repeats a lost query.
        os.environ.setdefault("RES_OPTIONS", RESOLVER_OPTIONS)
        at_once = max(1, settings.requests_per_host // max(1, processes))
        self.hosts = Hosts(at_once)
        options: dict[str, Any] = {
            "num_pools": CONNECTIONS,
            "maxsize": at_once,
            "timeout": urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS),
            "retries": False,
        }
        self._direct = urllib3.PoolManager(**options)
        proxies = urllib.request.getproxies()
        known = [scheme for scheme in ("http", "https") if proxies.get(scheme)]
        self._proxies = {scheme: urllib3.ProxyManager(proxies[scheme], **options) for scheme in known}

    def read(self, url: str) -> bytes:
        """Read the body of a URL in one attempt.

        Raises:
            FileNotFoundError, PermissionError: the answer of the server.
            InputFault: kinds HttpError, TooManyRedirects, FileTooLarge, InvalidUrl.
            HostUnknown: the name of the host does not exist, or its certificate is not valid.
            HostUnreachable: the host cannot be reached, and has never answered this process.
            RequestFailed: the host was reached, now or before.
        """
        deadline = time.monotonic() + WHOLE_SECONDS
        for _ in range(self.settings.max_redirects + 1):
            parts = _split(url)
            host = _host(parts)
            with self.hosts.request(host):
                found = self._get(url, host, deadline)
            if isinstance(found, bytes):
                return found
            url = urljoin(url, found)
        raise InputFault("TooManyRedirects", f"more than {self.settings.max_redirects}, the last to {masked(url)}")

    def has_answered(self, url: str) -> bool:
        """Whether the host of a URL has answered any request of this process."""
        try:
            return self.hosts.has_answered(_host(_split(url)))
        except InputFault:
            return False

    def is_reachable(self, url: str) -> bool:
        """Whether the host of a URL answers, with whatever status below 500."""
        try:
            parts = _split(url)
            with self._open(url, parts.scheme) as response:
                answers = response.status < 500
            if answers:
                self.hosts.record_answer(_host(parts))
            return answers
        except (HTTPError, OSError, ValueError):
            return False

    def _open(self, url: str, scheme: str) -> urllib3.BaseHTTPResponse:
        headers = {"User-Agent": self.settings.user_agent, "Accept": "image/*,*/*;q=0.8"}
        parts = urlsplit(url)
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            headers |= urllib3.make_headers(basic_auth=pair)
            url = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        bypass = urllib.request.proxy_bypass(parts.hostname or "")
        manager = self._direct if bypass else self._proxies.get(scheme, self._direct)
        return manager.request("GET", url, headers=headers, preload_content=False, redirect=False)

    def _get(self, url: str, host: str, deadline: float) -> bytes | str:
        """Return the body, or the target of a redirect."""
        try:
            with self._open(url, urlsplit(url).scheme) as response:
                return self._answer(response, url, host, deadline)
        except (InputFault, TransportFault, FileNotFoundError, PermissionError):
            raise
        except (LocationParseError, LocationValueError, UnicodeError) as error:
            raise InputFault("InvalidUrl", str(error)) from error
        except (ConnectTimeoutError, NewConnectionError, SSLError) as error:
            self._silent(host, error)
        except (HTTPError, OSError) as error:
            self._failed(host, _reason(error))

    def _answer(self, response: urllib3.BaseHTTPResponse, url: str, host: str, deadline: float) -> bytes | str:
        status = response.status
        said = f"{status} {response.reason or ''}".strip()
        if status in _BUSY or status >= 500:
            self._failed(host, said, _seconds(response.headers.get("Retry-After")))
        if status in _REDIRECTIONS and "Location" in response.headers:
            self.hosts.record_answer(host)
            return response.headers["Location"]
        if status in (404, 410):
            self.hosts.record_answer(host)
            raise FileNotFoundError(errno.ENOENT, said, masked(url))
        if status in (401, 402, 403, 407, 451):
            self.hosts.record_answer(host)
            raise PermissionError(errno.EACCES, said, masked(url))
        if not 200 <= status < 300:
            self.hosts.record_answer(host)
            raise InputFault("HttpError", f"the server says {said}")
        body = bytearray()
        limit = self.settings.max_megabytes * 10**6
        for piece in response.stream(PIECE_BYTES):
            body += piece
            if len(body) > limit:
                self.hosts.record_answer(host)
                raise InputFault("FileTooLarge", f"more than {limit} bytes, the limit of --max-megabytes")
            if time.monotonic() > deadline:
                self._failed(host, f"{len(body)} bytes in {WHOLE_SECONDS:g} s, too slow")
        self.hosts.record_answer(host)
        return bytes(body)

    def _silent(self, host: str, error: HTTPError) -> NoReturn:
        """Record that the host cannot be reached. If it has answered before, the request may be retried."""
        is_permanent = _is_permanent(error)
        reason = _reason(error)
        self.hosts.record_silence(host, reason, is_permanent=is_permanent)
        may_answer = self.hosts.has_answered(host)
        kind = HostUnknown if is_permanent else RequestFailed if may_answer else HostUnreachable
        raise kind(errno.EHOSTUNREACH, reason, host) from error

    def _failed(self, host: str, reason: str, pause_seconds: float = 0.0) -> NoReturn:
        self.hosts.record_failure(host, reason, pause_seconds)
        raise RequestFailed(errno.EIO, reason, host)


def _split(url: str) -> SplitResult:
    """Split a URL.

    Raises:
        InputFault: kind InvalidUrl.
    """
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  it is looked at only now
    except ValueError as error:
        raise InputFault("InvalidUrl", f"{error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputFault("InvalidUrl", f"{masked(url)} is no http or https URL with a host")
    return parts


def _host(parts: SplitResult) -> str:
    return f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"


def _is_permanent(error: BaseException) -> bool:
    """Whether the name does not exist (rather than that the resolver is busy), or the certificate is not valid."""
    return any(
        isinstance(cause, ssl.SSLCertVerificationError)
        or (isinstance(cause, socket.gaierror) and cause.errno != socket.EAI_AGAIN)
        for cause in _chain(error)
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception, and those from which it was raised."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _reason(error: BaseException) -> str:
    """Describe an exception in a few words; the messages of urllib3 contain addresses of objects."""
    for cause in _chain(error):
        if isinstance(cause, socket.gaierror):
            return "unknown host name" if cause.errno != socket.EAI_AGAIN else "the resolver does not answer"
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not valid: {cause.verify_message}"
        if isinstance(cause, ConnectTimeoutError) and not isinstance(cause, NewConnectionError):
            return f"no connection within {CONNECT_SECONDS:g} s"
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror.lower()
    return str(error).partition("): ")[2] or f"{type(error).__name__}: {error}"


def _seconds(retry_after: str | None) -> float:
    return float(retry_after) if retry_after and retry_after.isdecimal() else 0.0
