"""Web servers of all kinds, on this machine."""

from __future__ import annotations

import contextlib
import http.server
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from captionlib.storage import hosts as module
from captionlib.storage.access import AccessSettings
from captionlib.storage.errors import HostUnreachable, InputFault, RequestFailed
from captionlib.storage.hosts import Hosts
from captionlib.storage.http import HttpClient


class Server:
    """Answers by path; `seen` has the headers of each request."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.host = self.url.removeprefix("http://")
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.at_once = self.most_at_once = 0


@pytest.fixture
def server() -> Iterator[Server]:
    lock = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known: Server = self.server.known  # type: ignore[attr-defined]
            known.seen.append((self.path, dict(self.headers)))
            kind, _, value = self.path[1:].partition("/")
            with lock:
                known.at_once += 1
                known.most_at_once = max(known.most_at_once, known.at_once)
            if kind == "slow":
                time.sleep(0.05)
            with lock:
                known.at_once -= 1  # before the client sees the answer, and asks again
            self.answer(kind, value)

        def answer(self, kind: str, value: str) -> None:
            self.send_response(
                int(value.partition("/")[0]) if kind == "status" else 302 if kind in ("hop", "to") else 200
            )
            if kind == "hop":  # /hop/3 leads to /hop/2 and so on
                self.send_header("Location", f"/hop/{int(value) - 1}" if int(value) > 1 else "/body/10")
            if kind == "to":
                self.send_header("Location", value.replace("%7C", "/"))
            if value == "429":
                self.send_header("Retry-After", "1")
            body = b"x" * (int(value) if kind == "body" else 3)
            self.send_header("Content-Length", str(len(body) + (5 if kind == "cut" else 0)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.known = Server(running.server_port)  # type: ignore[attr-defined]
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield running.known  # type: ignore[attr-defined]
        running.shutdown()


def client(**settings) -> HttpClient:
    return HttpClient(AccessSettings(**settings))


def test_a_body(server):
    assert client().read(f"{server.url}/body/100000") == b"x" * 100_000
    assert client().read(f"{server.url}/body/0") == b""


def test_who_asks(server):
    client(user_agent="mine/1").read(f"{server.url.replace('//', '//me:s%40cret@')}/body/1")
    ((path, headers),) = server.seen
    assert (path, headers["User-Agent"]) == ("/body/1", "mine/1")
    assert headers["authorization"] == "Basic bWU6c0BjcmV0"  # me:s@cret


def test_redirections_have_a_limit(server):
    assert client(max_redirects=3).read(f"{server.url}/hop/3") == b"x" * 10
    with pytest.raises(InputFault, match="TooManyRedirects: more than 2"):
        client(max_redirects=2).read(f"{server.url}/hop/3")
    with pytest.raises(InputFault, match="InvalidUrl: file:.* is no http or https URL"):
        client().read(f"{server.url}/to/file:||etc|passwd")
    with pytest.raises(HostUnreachable, match="connection refused") as caught:
        client().read(f"{server.url}/to/http:||127.0.0.1:9|a.jpg")
    assert caught.value.filename == "127.0.0.1:9"


def test_a_body_has_a_limit(server):
    assert len(client(max_megabytes=1).read(f"{server.url}/body/1000000")) == 1_000_000
    with pytest.raises(InputFault, match="FileTooLarge: more than 1000000 bytes, the limit of --max-megabytes"):
        client(max_megabytes=1).read(f"{server.url}/body/1000001")


@pytest.mark.parametrize(
    ("status", "expected"),
    [(404, FileNotFoundError), (410, FileNotFoundError), (401, PermissionError), (403, PermissionError),
     (451, PermissionError), (400, InputFault), (418, InputFault), (416, InputFault),
     (408, RequestFailed), (429, RequestFailed), (500, RequestFailed), (503, RequestFailed), (522, RequestFailed)],
)  # fmt: skip
def test_what_a_server_says(server, status, expected):
    with pytest.raises(expected):
        client().read(f"{server.url}/status/{status}")


@pytest.mark.parametrize("url", ["http://", "http:///a.jpg", "http://h:port/a.jpg", "http://[::1/a.jpg", "ftp://h/a"])
def test_what_is_no_url(url):
    with pytest.raises(InputFault, match="InvalidUrl"):
        client().read(url)


def test_names_that_are_not_encoded(server):
    """As in lists that people write: spaces, letters of all languages, brackets."""
    for name, sent in [
        ("a b", "a%20b"),
        ("ä", "%C3%A4"),
        ("a%20b", "a%20b"),
        ("[1]", "%5B1%5D"),
        ("1?q=a b&c=ü", "1?q=a%20b&c=%C3%BC"),
    ]:
        with pytest.raises(FileNotFoundError):
            client().read(f"{server.url}/status/404/{name}")
        assert server.seen[-1][0] == f"/status/404/{sent}"


@pytest.mark.parametrize(("code", "is_permanent"), [(socket.EAI_NONAME, True), (socket.EAI_AGAIN, False)])
def test_a_resolver_that_does_not_answer_has_not_said_no(monkeypatch, code, is_permanent):
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(code, "resolver")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    reading = client()
    with pytest.raises(HostUnreachable) as caught:
        reading.read("http://busy.example/a.jpg")
    assert caught.value.strerror == ("unknown host name" if is_permanent else "the resolver does not answer")
    monkeypatch.undo()
    with (
        pytest.raises(HostUnreachable) if is_permanent else contextlib.nullcontext(),
        reading.hosts.request("busy.example:80"),
    ):
        pass


def test_a_body_that_is_cut_short(server):
    with pytest.raises(RequestFailed):
        client().read(f"{server.url}/cut/1")


def test_one_host_gets_so_many_requests_at_once(server):
    limited = HttpClient(AccessSettings(requests_per_host=6), processes=2)
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda i: limited.read(f"{server.url}/slow/{i}"), range(24)))
    assert server.most_at_once == 3


def test_a_host_that_cannot_be_reached_is_not_asked_for_a_while(server):
    reading = client()
    for _ in range(5):
        with pytest.raises(HostUnreachable) as caught:
            reading.read("http://no-such-name.invalid/a.jpg")
    assert (caught.value.strerror, caught.value.filename) == ("unknown host name", "no-such-name.invalid:80")
    for _ in range(30):
        with pytest.raises((HostUnreachable, RequestFailed)) as failed:
            reading.read(f"{server.url}/status/500")
    assert len(server.seen) == module.FAILED_IN_A_ROW
    assert failed.value.strerror == "500 Internal Server Error"
    with pytest.raises(HostUnreachable):
        reading.read(f"{server.url}/body/1")
    assert reading.is_reachable(f"{server.url}/body/1")
    assert reading.read(f"{server.url}/body/1") == b"x"
    assert not reading.is_reachable("http://127.0.0.1:9/")


def test_a_host_gets_one_request_after_its_pause(monkeypatch):
    monkeypatch.setattr(module, "OPEN_SECONDS", 0.2)
    monkeypatch.setattr(module, "LAST_OPEN_SECONDS", 0.1)
    hosts = Hosts(4)

    def is_asked() -> bool:
        try:
            with hosts.request("h:80"):
                return True
        except HostUnreachable:
            return False

    for failures in range(module.SILENT_IN_A_ROW):
        assert is_asked(), failures
        hosts.record_silence("h:80", "refused")
    assert [is_asked(), is_asked()] == [False, False]
    time.sleep(0.21)
    assert [is_asked(), is_asked()] == [True, False]  # the first finds out
    time.sleep(0.11)
    assert not is_asked()
    hosts.ask_again()
    assert [is_asked(), is_asked()] == [True, False]
    hosts.record_answer("h:80")
    assert [is_asked(), is_asked()] == [True, True]


def test_a_server_that_asks_for_a_pause_gets_it(server):
    reading = client()
    with pytest.raises(RequestFailed):
        reading.read(f"{server.url}/status/429")
    started = time.monotonic()
    reading.read(f"{server.url}/body/1")
    assert 0.8 < time.monotonic() - started < 3
