from __future__ import annotations

import os

import pytest

from captionlib.storage import read
from captionlib.storage.errors import AccessDenied, InputFault, TransportFault, with_retries
from captionlib.storage.read import read_bytes
from tests.flaky import flaky_server


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr("captionlib.storage.errors.FIRST_WAIT_SECONDS", 0.001)


@pytest.fixture
def server(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"picture" * 100)
    with flaky_server(tmp_path) as flaky:
        yield flaky


@pytest.mark.parametrize("fault", [500, 503, 429, "cut", "reset"])
def test_a_passing_fault_is_retried(server, fault):
    server.faults["a.jpg"] = (fault, 3)
    assert read_bytes(f"{server.url}/a.jpg", 700) == b"picture" * 100
    assert server.requests["a.jpg"] >= 4


@pytest.mark.parametrize("fault", [500, 503, "cut", "reset"])
def test_a_lasting_fault_is_the_transports(server, fault):
    server.faults["a.jpg"] = (fault, 10**6)
    with pytest.raises(TransportFault):
        read_bytes(f"{server.url}/a.jpg", 700)


def test_no_server_is_the_transports():
    with pytest.raises(TransportFault):
        read_bytes("http://127.0.0.1:9/a.jpg")


@pytest.mark.parametrize(("status", "kind"), [(404, "NotFound"), (410, "NotFound"), (403, "PermissionDenied")])
def test_a_refusal_is_the_images_and_not_retried(server, status, kind):
    server.faults["a.jpg"] = (status, 10**6)
    with pytest.raises(InputFault) as caught:
        read_bytes(f"{server.url}/a.jpg")
    assert caught.value.kind == kind
    assert server.requests["a.jpg"] == 1


def test_a_body_shorter_than_listed_is_cut_unless_the_file_changed(tmp_path, monkeypatch):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"12345678")
    assert read_bytes(str(path), 100) == b"12345678"  # it was replaced by a shorter one
    monkeypatch.setattr(read, "read_once", lambda path, access: b"1234")
    with pytest.raises(TransportFault, match="4 of 8 bytes"):
        read_bytes(str(path), 8)


def test_an_error_message_instead_of_the_object_is_retried(tmp_path, monkeypatch):
    """Some storages answer 200 and write an error as the body, which may be longer than the object."""
    path = tmp_path / "a.jpg"
    path.write_bytes(b"12345678")
    message = b"<?xml version='1.0'?><Error><Code>InternalError</Code></Error>"
    bodies = [message, message, b"12345678"]
    monkeypatch.setattr(read, "read_once", lambda path, access: bodies.pop(0))
    assert read_bytes(str(path), 8) == b"12345678"
    assert not bodies


def test_a_longer_object_than_listed_is_taken_if_it_was_replaced(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"12345678")
    assert read_bytes(str(path), 4) == b"12345678"


def test_local_faults(tmp_path):
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "link.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    for name, kind in [("gone.jpg", "NotFound"), ("link.jpg", "NotFound"), ("loop.jpg", "NotFound"),
                       ("folder.jpg", "NotAFile"), ("x" * 300, "NotFound")]:  # fmt: skip
        with pytest.raises(InputFault) as caught:
            read_bytes(str(tmp_path / name))
        assert caught.value.kind == kind, name


def test_an_enormous_file_is_not_read(tmp_path):
    with pytest.raises(InputFault, match="FileTooLarge: 300000000 bytes"):
        read_bytes(str(tmp_path / "not even there"), 300_000_000)


class FromStore(PermissionError):
    """As s3fs raises it: with botocore's exception as its cause."""

    def __init__(self, code):
        super().__init__(13, "denied")
        self.__cause__ = Exception()
        self.__cause__.response = {"Error": {"Code": code}}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (FromStore("AccessDenied"), PermissionError),
        (FromStore("ExpiredToken"), AccessDenied),
        (FromStore("SignatureDoesNotMatch"), AccessDenied),
        (OSError(5, "input/output error"), TransportFault),
        (TimeoutError(), TransportFault),
        (ConnectionResetError(), TransportFault),
        (RuntimeError("something new"), TransportFault),
    ],
)
def test_kinds_of_faults(raised, expected):
    def fail():
        raise raised

    with pytest.raises(expected) as caught:
        with_retries(fail, attempts=2)
    assert type(caught.value) is expected or isinstance(raised, expected)


def test_as_an_unprivileged_user_a_forbidden_file_is_the_images(tmp_path, monkeypatch):
    def refuse(path, access):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(read, "read_once", refuse)  # the tests may run as root, whom nothing is forbidden
    with pytest.raises(InputFault, match="PermissionDenied: .*Permission denied"):
        read_bytes(os.fspath(tmp_path / "a.jpg"))
