"""A small S3 server for tests: whole objects, ranges of them, listings, and nothing else."""

from __future__ import annotations

import contextlib
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


@contextlib.contextmanager
def s3_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """Serve all objects of a dictionary by `bucket/key`; the environment names the server with credentials for it."""
    objects: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        @property
        def key(self) -> str:
            return urllib.parse.unquote(self.path.partition("?")[0]).strip("/")

        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert "chunked" not in self.headers.get("Content-Encoding", "")
            objects[self.key] = body
            self.answer(200, ETag='"a"')

        def do_DELETE(self) -> None:
            objects.pop(self.key, None)
            self.answer(204)

        def do_GET(self) -> None:
            query = dict(urllib.parse.parse_qsl(self.path.partition("?")[2]))
            if "list-type" in query:
                self.answer(200, self.listing(query.get("prefix", ""), query.get("delimiter")))
            elif self.key not in objects:
                self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
            else:
                body = objects[self.key]
                first, _, last = self.headers.get("Range", "bytes=").partition("=")[2].partition("-")
                body = body[int(first or 0) : int(last or len(body)) + 1]
                self.answer(206 if first else 200, body, ETag='"a"', Last_Modified="Thu, 26 Nov 2026 12:00:00 GMT")

        do_HEAD = do_GET

        def listing(self, prefix: str, delimiter: str | None) -> bytes:
            bucket = self.key.partition("/")[0]
            entries: dict[str, str] = {}
            for name in sorted(objects):
                key = name.removeprefix(f"{bucket}/")
                if name == key or not key.startswith(prefix):
                    continue
                rest = key[len(prefix) :]
                if delimiter and delimiter in rest:
                    folder = prefix + rest.partition(delimiter)[0] + delimiter
                    entries[folder] = f"<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>"
                else:
                    facts = f"<Size>{len(objects[name])}</Size><LastModified>2026-11-26T12:00:00Z</LastModified>"
                    entries[key] = f"<Contents><Key>{key}</Key>{facts}</Contents>"
            inside = "".join(entries.values())
            return f"<ListBucketResult><IsTruncated>false</IsTruncated>{inside}</ListBucketResult>".encode()

        def log_message(self, *_: object) -> None:
            pass

    from captionlib.storage import read

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setattr(read, "_outputs", read.Access())
        monkeypatch.setattr(read, "_inputs", read.Access())
        yield objects
        server.shutdown()
