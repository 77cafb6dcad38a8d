"""A bad network in front of an object store: an HTTP proxy that delays, refuses, resets, cuts and stalls by share."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from aiohttp import ClientError, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector, web
from yarl import URL

# Of one connection, not of the message; aiohttp writes its own.
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect"}
_SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
_INTERNAL_ERROR = (
    b"<?xml version='1.0'?><Error><Code>InternalError</Code>"
    b"<Message>We encountered an internal error. Please try again.</Message></Error>"
)


@dataclass(frozen=True)
class Faults:
    """Shares of requests, in [0, 1], that meet each fault; together at most 1."""

    slow_down: float = 0.0
    """503 SlowDown instead of an answer."""
    too_many: float = 0.0
    """429 instead of an answer."""
    reset: float = 0.0
    """The connection is reset before an answer; the store never sees the request."""
    lost_answer: float = 0.0
    """The store does what was asked, then the connection is reset."""
    cut: float = 0.0
    """The body ends in its middle."""
    error_body: float = 0.0
    """200 with an error in XML as the body; only of a GET of an object, others are answered."""
    stall: float = 0.0
    """No answer for `stall_seconds`, then a reset."""
    stall_seconds: float = 60.0
    latency_seconds: float = 0.0
    """Before every request."""
    stale_seconds: float = 0.0
    """Listings (ListObjectsV2) leave out objects that were written within so many seconds."""

    def choose(self, number: float) -> str | None:
        """The fault of a request that drew this number of [0, 1)."""
        for name in ("slow_down", "too_many", "reset", "lost_answer", "cut", "error_body", "stall"):
            number -= getattr(self, name)
            if number < 0:
                return name
        return None


class FaultProxy:
    """Forwards everything to an upstream server, apart from what `faults` says. Set `faults` at any time.

    What a request meets is decided by the seed, its method and path, and how often that was asked before: not by the
    order in which requests happen to arrive.

    Args:
        upstream: host:port.
    """

    def __init__(self, upstream: str, seed: int = 0) -> None:
        self.upstream, self.seed = upstream, seed
        self.faults = Faults()
        self.requests: Counter[tuple[str, str]] = Counter()
        """By method and path, without the query."""
        self.done: Counter[str] = Counter()
        """Faults that were made, by name."""
        self.url = ""

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """One request, with its fault if it drew one."""
        asked = (request.method, request.raw_path.partition("?")[0])
        self.requests[asked] += 1
        chance = random.Random(f"{self.seed} {request.method} {request.raw_path} {self.requests[asked]}")
        faults = self.faults
        fault = faults.choose(chance.random())
        is_listing = "list-type=2" in request.query_string
        if fault == "error_body" and (request.method != "GET" or is_listing or asked[1].count("/") < 2):
            fault = None
        if "100-continue" in request.headers.get("Expect", "").lower() and request.transport is not None:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await request.content.read()
        if faults.latency_seconds:
            await asyncio.sleep(faults.latency_seconds)
        if fault is not None:
            self.done[fault] += 1
        if fault == "slow_down":
            return web.Response(status=503, body=_SLOW_DOWN, content_type="application/xml")
        if fault == "too_many":
            return web.Response(status=429, text="Rate limit reached", headers={"Retry-After": "0"})
        if fault == "error_body":
            return web.Response(body=_INTERNAL_ERROR, content_type="application/xml")
        if fault == "stall":
            await asyncio.sleep(faults.stall_seconds)
        if fault in ("reset", "stall"):
            return _reset(request)
        # The request goes on unchanged, `Host` included: the client has signed it.
        headers = [(k, v) for k, v in request.headers.items() if k.lower() not in _HOP_BY_HOP]
        url = URL(f"http://{self.upstream}{request.raw_path}", encoded=True)
        try:
            async with self._client.request(
                request.method, url, headers=headers, data=body or None, allow_redirects=False
            ) as upstream:
                data = await upstream.read()
        except (ClientError, OSError):
            self.done["upstream away"] += 1
            return _reset(request)
        if fault == "lost_answer":
            return _reset(request)
        left_out = set(_HOP_BY_HOP)
        if faults.stale_seconds and is_listing:
            data = self._without_young(data, faults.stale_seconds)
            left_out.add("content-length")
        answer = web.StreamResponse(status=upstream.status, reason=upstream.reason)
        for name, value in upstream.headers.items():
            if name.lower() not in left_out:
                answer.headers.add(name, value)
        await answer.prepare(request)
        if fault == "cut" and len(data) > 1:
            await answer.write(data[: len(data) // 2])
            await asyncio.sleep(0.01)  # let that half leave before the connection breaks
            return _reset(request, answer)
        if request.method != "HEAD":
            await answer.write(data)
        await answer.write_eof()
        return answer

    def reads(self, folder: str) -> tuple[int, int]:
        """(GET requests for objects below a folder such as `/photos/all/`, of them for an object asked for before)."""
        counts = [n for (method, path), n in self.requests.items() if method == "GET" and path.startswith(folder)]
        return sum(counts), sum(counts) - len(counts)

    def _without_young(self, listing: bytes, seconds: float) -> bytes:
        """An answer to ListObjectsV2 without the objects that were written within so many seconds."""

        def keep(match: re.Match[bytes]) -> bytes:
            written = re.search(rb"<LastModified>(.*?)</LastModified>", match[0])
            assert written is not None, match[0]
            age = time.time() - datetime.fromisoformat(written[1].decode().replace("Z", "+00:00")).timestamp()
            if age > seconds:
                return match[0]
            self.done["left out of a listing"] += 1
            return b""

        return re.sub(rb"<Contents>.*?</Contents>", keep, listing, flags=re.DOTALL)

    async def serve(self, ready: threading.Event, stop: asyncio.Event) -> None:
        """Listen on a free port until `stop`."""
        self._client = ClientSession(
            connector=TCPConnector(limit=0),
            auto_decompress=False,
            cookie_jar=DummyCookieJar(),
            timeout=ClientTimeout(total=None, sock_connect=5),
            skip_auto_headers=["User-Agent", "Accept", "Accept-Encoding", "Content-Type"],
        )
        runner = web.ServerRunner(web.Server(self.handle, access_log=None), shutdown_timeout=0.1)
        async with self._client:
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            ready.set()
            await stop.wait()
            await runner.cleanup()


@contextlib.contextmanager
def fault_proxy(upstream: str, seed: int = 0) -> Iterator[FaultProxy]:
    """A proxy in a thread of this process."""
    proxy = FaultProxy(upstream, seed)
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(proxy.serve(ready, stop)), daemon=True)
    thread.start()
    if not ready.wait(30):
        raise RuntimeError("the fault proxy does not start")
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)


def _reset(request: web.BaseRequest, answer: web.StreamResponse | None = None) -> web.StreamResponse:
    """Break the connection with a TCP reset."""
    if request.transport is not None:
        connection = request.transport.get_extra_info("socket")
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()
    return answer or web.Response()
