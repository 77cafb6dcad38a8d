"""The bad network itself: each fault as a client meets it, and decided by the seed alone."""

from __future__ import annotations

import http.client
import http.server
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timezone

import pytest

from .proxy import FaultProxy, Faults, fault_proxy

BODY = bytes(range(256)) * 1_000


class _Upstream(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.seen.append(self.path)  # type: ignore[attr-defined]
        self.send_response(200)
        body = self.server.listing if "list-type=2" in self.path and self.server.listing else BODY  # type: ignore[attr-defined]
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Host", self.headers["Host"])
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.send_header("X-Bytes", str(len(data)))
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def upstream() -> Iterator[http.server.ThreadingHTTPServer]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Upstream)
    server.seen, server.listing = [], b""  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def proxy(upstream: http.server.ThreadingHTTPServer) -> Iterator[FaultProxy]:
    with fault_proxy(f"127.0.0.1:{upstream.server_address[1]}") as made:
        yield made


def ask(proxy: FaultProxy, path: str, method: str = "GET", body: bytes | None = None) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(proxy.url.removeprefix("http://"), timeout=10)
    connection.request(method, path, body)
    return connection.getresponse()


def test_without_faults_it_is_not_there(proxy, upstream):
    answer = ask(proxy, "/a%20b%2Fc+d?list-type=2&prefix=x%2F")
    assert answer.read() == BODY
    assert upstream.seen == ["/a%20b%2Fc+d?list-type=2&prefix=x%2F"]
    assert answer.headers["X-Host"] == proxy.url.removeprefix("http://")
    head = ask(proxy, "/a", "HEAD")
    assert head.headers["Content-Length"] == str(len(BODY))
    assert ask(proxy, "/a", "PUT", b"x" * 3_000_000).headers["X-Bytes"] == "3000000"


def test_slow_down(proxy, upstream):
    proxy.faults = Faults(slow_down=1)
    answer = ask(proxy, "/a")
    assert answer.status == 503
    assert b"SlowDown" in answer.read()
    assert upstream.seen == []


@pytest.mark.parametrize(("fault", "seen"), [("reset", []), ("lost_answer", ["/a"])])
def test_resets(proxy, upstream, fault, seen):
    proxy.faults = Faults(**{fault: 1})
    with pytest.raises(ConnectionResetError):
        ask(proxy, "/a")
    assert upstream.seen == seen


def test_a_cut_body(proxy):
    proxy.faults = Faults(cut=1)
    answer = ask(proxy, "/a")
    assert answer.status == 200
    with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
        answer.read()


def test_an_error_as_the_body_of_an_object(proxy, upstream):
    proxy.faults = Faults(error_body=1)
    answer = ask(proxy, "/bucket/a")
    assert answer.status == 200
    assert b"<Code>InternalError</Code>" in answer.read()
    assert upstream.seen == []
    assert ask(proxy, "/bucket?list-type=2&prefix=a").read() == BODY
    assert ask(proxy, "/bucket/a", "HEAD").headers["Content-Length"] == str(len(BODY))
    assert proxy.done == {"error_body": 1}


def test_a_stale_listing(proxy, upstream):
    def entry(key: str, age: float) -> str:
        written = datetime.fromtimestamp(time.time() - age, timezone.utc)
        return f"<Contents><Key>{key}</Key><LastModified>{written:%Y-%m-%dT%H:%M:%S.000Z}</LastModified></Contents>"

    old, young = entry("old", 30), entry("young", 5)
    upstream.listing = f"<List>{young}{old}</List>".encode()
    proxy.faults = Faults(stale_seconds=20)
    assert ask(proxy, "/bucket?list-type=2").read() == f"<List>{old}</List>".encode()
    proxy.faults = Faults()
    assert ask(proxy, "/bucket?list-type=2").read() == upstream.listing


def test_reads_and_reads_again(proxy):
    for path in ("/photos/all/1", "/photos/all/2", "/photos/all/1", "/photos/other/1"):
        ask(proxy, path).read()
    ask(proxy, "/photos/all/1", "HEAD")
    assert proxy.reads("/photos/all/") == (3, 1)


def test_a_stall(proxy):
    proxy.faults = Faults(stall=1, stall_seconds=0.2)
    with pytest.raises(ConnectionResetError):
        ask(proxy, "/a")
    assert proxy.done == {"stall": 1}


def test_a_server_that_is_away(proxy, upstream):
    upstream.shutdown()
    upstream.server_close()
    with pytest.raises(ConnectionResetError):
        ask(proxy, "/a")


def test_shares_and_seed(upstream):
    def faults_of(seed: int, order: int) -> dict[str, int]:
        statuses = {}
        with fault_proxy(f"127.0.0.1:{upstream.server_address[1]}", seed) as proxy:
            proxy.faults = Faults(slow_down=0.3)
            for number in range(200)[::order]:
                answer = ask(proxy, f"/{number}")
                answer.read()
                statuses[f"/{number}"] = answer.status
            assert proxy.done["slow_down"] == sum(status == 503 for status in statuses.values())
        return statuses

    first = faults_of(0, 1)
    assert faults_of(0, -1) == first
    assert faults_of(1, 1) != first
    assert 35 <= sum(status == 503 for status in first.values()) <= 85  # 60 expected, four standard deviations
