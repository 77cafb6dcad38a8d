"""An HTTP server over a folder whose faults are chosen file by file."""

from __future__ import annotations

import functools
import http.server
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class FlakyServer:
    """`faults[name]` = (kind, times): kind is a status, "cut" or "reset"; after `times` requests the file is served."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.faults: dict[str, tuple[int | str, int]] = {}
        self.everything: int | str | None = None
        """A fault of every request."""
        self.once_only = False
        """Each file is served once, and is then a 503."""
        self.requests: Counter[str] = Counter()


@contextmanager
def flaky_server(root: Path) -> Iterator[FlakyServer]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, directory=str(root)))
    flaky = FlakyServer(f"http://127.0.0.1:{server.server_address[1]}")
    server.flaky = flaky  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield flaky
    finally:
        server.shutdown()
        server.server_close()


class _Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        flaky: FlakyServer = self.server.flaky  # type: ignore[attr-defined]
        name = self.path.rpartition("/")[2]
        flaky.requests[name] += 1
        kind, times = flaky.faults.get(name, (None, 0))
        fault = kind if flaky.requests[name] <= times else None
        fault = 503 if name and flaky.once_only and flaky.requests[name] > 1 else fault
        fault = flaky.everything if name and flaky.everything else fault
        if fault is None:
            super().do_GET()
        elif isinstance(fault, int):
            self.send_error(fault)
        else:
            data = Path(self.translate_path(self.path)).read_bytes()
            if fault == "cut":
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            self.connection.close() if fault == "cut" else self.connection.shutdown(2)

    def log_message(self, *args: object) -> None:
        pass
