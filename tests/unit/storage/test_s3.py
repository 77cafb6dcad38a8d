"""Objects in S3: Arrow's client reads them; where it cannot, s3fs does, and says why when it cannot either."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, NamedTuple

import pyarrow as pa
import pytest

from captionlib.storage import read, s3
from captionlib.storage.access import AccessSettings
from captionlib.storage.errors import AccessDenied, InputFault, TransportFault
from captionlib.storage.folder import READS_BEFORE_DAMAGED, Folder
from captionlib.storage.read import read_bytes
from captionlib.storage.s3 import STRIKES, S3Objects
from jobs.inputs.listing import list_files

PICTURE = b"picture" * 100


class Store(NamedTuple):
    """A server that knows the object `bucket/a.jpg`."""

    requests: Counter[str]
    """By the client that sent them."""


class Answers(BaseHTTPRequestHandler):
    """What the handlers of these tests share."""

    def finish_answer(self, body: bytes) -> None:
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Last-Modified", "Thu, 26 Nov 2026 12:00:00 GMT")
        self.send_header("ETag", '"a"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serving(handler: type[Answers], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An S3 server on loopback, which the environment names with credentials for it."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        yield
        server.shutdown()


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    requests: Counter[str] = Counter()

    class Handler(Answers):
        def do_GET(self) -> None:
            requests["Arrow" if "aws-sdk-cpp" in self.headers.get("User-Agent", "") else "s3fs"] += 1
            found = self.path.partition("?")[0] == "/bucket/a.jpg"
            body = PICTURE if found else b"<Error><Code>NoSuchKey</Code></Error>"
            first, _, last = self.headers.get("Range", "bytes=").partition("=")[2].partition("-")
            body = body[int(first or 0) : int(last or len(body)) + 1]
            self.send_response(404 if not found else 206 if first else 200)
            self.finish_answer(body)

        do_HEAD = do_GET

    with serving(Handler, monkeypatch):
        monkeypatch.setattr(read, "_outputs", read.Access())
        monkeypatch.setattr(read, "_inputs", read.Access())
        yield Store(requests)


def test_an_error_message_with_status_200_is_not_taken_for_the_object(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow pads it with zeros to the size of the object."""
    monkeypatch.setattr("captionlib.storage.errors.FIRST_WAIT_SECONDS", 0.001)
    errors_left = [3]

    class Handler(Answers):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.finish_answer(PICTURE)

        def do_GET(self) -> None:
            self.send_response(200)
            errors_left[0] -= 1
            self.finish_answer(PICTURE if errors_left[0] < 0 else b"<?xml version='1.0'?><Error></Error>")

    with serving(Handler, monkeypatch):
        monkeypatch.setattr(read, "_inputs", read.Access())
        assert read_bytes("s3://bucket/a.jpg", len(PICTURE)) == PICTURE
        assert errors_left[0] < 0


@pytest.mark.parametrize(
    ("code", "expected", "says"),
    [
        ("RequestTimeTooSkewed", AccessDenied, "refuses the credentials .RequestTimeTooSkewed"),
        ("AccessDenied", InputFault, "PermissionDenied"),
        ("", TransportFault, "refused a moment ago"),
    ],
)
def test_the_reason_of_a_refusal_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, code: str, expected: type[Exception], says: str
) -> None:
    """HEAD says 403 and no more. A clock that is wrong, or a token that has run out, is no image's fault."""

    class Handler(Answers):
        def do_HEAD(self) -> None:
            self.send_response(403)
            self.finish_answer(b"")

        def do_GET(self) -> None:
            self.send_response(403 if code else 206)
            self.finish_answer(f"<Error><Code>{code}</Code><Message>No.</Message></Error>".encode() if code else b"p")

    with serving(Handler, monkeypatch):
        monkeypatch.setattr(read, "_inputs", read.Access())
        with pytest.raises(expected, match=says):
            read_bytes("s3://bucket/a.jpg", len(PICTURE))


def test_public_and_paid_buckets(monkeypatch):
    """What an S3 server is sent: no credentials, or the agreement to pay, in listings and reads."""
    seen: list[dict[str, str]] = []

    class Handler(Answers):
        def do_GET(self) -> None:
            seen.append({"path": self.path, **{name.lower(): value for name, value in self.headers.items()}})
            is_list = "list-type=2" in self.path
            entry = f"<Contents><Key>a.jpg</Key><Size>{len(PICTURE)}</Size></Contents>"
            listing = f"<ListBucketResult><IsTruncated>false</IsTruncated>{entry}</ListBucketResult>"
            body = listing.encode() if is_list else PICTURE
            self.send_response(200)
            self.finish_answer(body)

        do_HEAD = do_GET

    with serving(Handler, monkeypatch):
        for settings in (AccessSettings(anonymous=True), AccessSettings(requester_pays=True)):
            monkeypatch.setattr(read, "_inputs", read.Access())
            seen.clear()
            read.configure_inputs(settings)
            (image,) = list_files("s3://bucket/")
            assert read_bytes(image.path, image.size) == PICTURE
            assert len(seen) >= 2
            for request in seen:
                assert ("authorization" not in request) == settings.anonymous, request
                assert (request.get("x-amz-request-payer") == "requester") == settings.requester_pays, request


@pytest.mark.parametrize("protocol", ["s3", "s3a"])
def test_arrow_reads_it(store: Store, protocol: str) -> None:
    assert read_bytes(f"{protocol}://bucket/a.jpg", len(PICTURE)) == PICTURE
    assert set(store.requests) == {"Arrow"}


def test_arrow_reads_the_jobs_own_files(store: Store) -> None:
    folder = Folder.of("s3://bucket")
    assert folder.read("a.jpg") == PICTURE
    assert folder.read_with("a.jpg", lambda file: (file.seek(3), file.read(5))) == (3, PICTURE[3:8])
    assert set(store.requests) == {"Arrow"}
    with pytest.raises(FileNotFoundError):
        folder.read("b.jpg")


def test_a_file_whose_reading_breaks_off_is_read_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captionlib.storage.errors.FIRST_WAIT_SECONDS", 0.001)
    tries = []

    def read(file: IO[bytes]) -> bytes:
        tries.append(file)
        if len(tries) < 3:
            raise OSError("AWS Error SERVICE_UNAVAILABLE during GetObject operation")
        return file.read(5)

    assert Folder.of("s3://bucket").read_with("a.jpg", read) == PICTURE[:5]
    assert len(tries) == 3


def test_an_error_message_instead_of_a_file_is_read_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some storages answer 200 and write an error as the body."""
    monkeypatch.setattr("captionlib.storage.errors.FIRST_WAIT_SECONDS", 0.001)
    tries = []

    def read(file: IO[bytes]) -> bytes:
        tries.append(file)
        if len(tries) < READS_BEFORE_DAMAGED:
            raise pa.ArrowInvalid("Parquet magic bytes not found in footer")
        return file.read(5)

    assert Folder.of("s3://bucket").read_with("a.jpg", read) == PICTURE[:5]
    assert len(tries) == READS_BEFORE_DAMAGED == 3


def test_a_file_that_never_makes_sense_is_damaged(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captionlib.storage.errors.FIRST_WAIT_SECONDS", 0.001)
    tries = []

    def read(file: IO[bytes]) -> None:
        tries.append(file)
        raise pa.ArrowInvalid("Parquet magic bytes not found in footer")

    with pytest.raises(pa.ArrowInvalid, match="magic bytes"):
        Folder.of("s3://bucket").read_with("a.jpg", read)
    assert len(tries) == READS_BEFORE_DAMAGED


def test_a_damaged_file_on_a_disk_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"nothing")
    tries = []

    def read(file: IO[bytes]) -> None:
        tries.append(file)
        raise pa.ArrowInvalid("Parquet magic bytes not found in footer")

    with pytest.raises(pa.ArrowInvalid, match="magic bytes"):
        Folder.of(str(tmp_path)).read_with("a.parquet", read)
    assert len(tries) == 1


def test_what_is_not_there_is_the_images_fault(store: Store) -> None:
    for _ in range(2 * STRIKES):
        with pytest.raises(InputFault) as caught:
            read_bytes("s3://bucket/b.jpg")
        assert caught.value.kind == "NotFound"
    read_bytes("s3://bucket/a.jpg")
    asked = store.requests["s3fs"]
    read_bytes("s3://bucket/a.jpg")
    assert store.requests["s3fs"] == asked, "a missing object is no reason to give up Arrow"


def test_s3fs_reads_what_arrow_cannot(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def refuse(self: S3Objects, frozen: object) -> None:
        tries.append(frozen)
        raise OSError("not this storage")

    monkeypatch.setattr(S3Objects, "_connect", refuse)
    for _ in range(2 * STRIKES):
        assert read_bytes("s3://bucket/a.jpg") == PICTURE
    assert set(store.requests) == {"s3fs"}
    assert len(tries) == STRIKES


def test_arrow_is_asked_again_after_a_while(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = S3Objects._connect
    monkeypatch.setattr(s3, "DISABLED_SECONDS", 0.2)
    monkeypatch.setattr(S3Objects, "_connect", lambda self, frozen: 1 / 0)
    for _ in range(STRIKES):
        assert read_bytes("s3://bucket/a.jpg") == PICTURE
    monkeypatch.setattr(S3Objects, "_connect", connect)
    time.sleep(0.3)
    assert read_bytes("s3://bucket/a.jpg") == PICTURE
    assert store.requests["Arrow"] > 0


def test_without_credentials(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import botocore.session

    monkeypatch.setattr(botocore.session.Session, "get_credentials", lambda self: None)
    assert S3Objects().read("s3://bucket/a.jpg") is None
    assert not store.requests


def test_renewed_credentials_are_used(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import botocore.session
    from botocore.credentials import Credentials, ReadOnlyCredentials

    current = [ReadOnlyCredentials("old", "secret", "token")]

    class Renewed(Credentials):
        def get_frozen_credentials(self) -> ReadOnlyCredentials:
            return current[0]

    used = []
    connect = S3Objects._connect

    def noted(self: S3Objects, frozen: ReadOnlyCredentials) -> object:
        used.append(frozen.access_key)
        return connect(self, frozen)

    monkeypatch.setattr(botocore.session.Session, "get_credentials", lambda self: Renewed("", ""))
    monkeypatch.setattr(S3Objects, "_connect", noted)
    objects = S3Objects()
    for key in ("old", "old", "new"):
        current[0] = ReadOnlyCredentials(key, "secret", "token")
        assert objects.read("s3://bucket/a.jpg") == PICTURE
    assert used == ["old", "new"]


def test_settings_that_only_s3fs_knows(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    monkeypatch.setitem(fsspec.config.conf, "s3", {"anon": True})
    assert S3Objects().read("s3://bucket/a.jpg") is None
