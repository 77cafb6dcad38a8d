"""A deadline for the decoding of each image, because the work of some files grows without bound.

Decoders are C code, which cannot be interrupted: an image that misses its deadline is given up, and the thread that
decodes it is left alone. It goes on using a CPU and memory until it ends by itself, or its process does. Such a process
is not ended on purpose: Ray may have sent it the next chunk already, and would count its end as a crash of that chunk.

A few decoders, JPEG 2000 among them, also keep Python's global interpreter lock, so that no other thread of the process
runs, and nobody is left to notice the deadline. Such a process is ended from outside of Python. The job then retries
the images of its chunk, and one that ends every process becomes a row with the error `WorkerDied`.
"""

from __future__ import annotations

import concurrent.futures
import faulthandler
import io
import threading
from collections.abc import Callable
from queue import SimpleQueue
from types import TracebackType
from typing import Any, TypeVar

from PIL import Image

from captionlib.images.decode import ImageDecodeError
from captionlib.images.transforms import ImageTransform

DEADLINES_UNTIL_KILLED, MIN_SECONDS_UNTIL_KILLED = 2.0, 20.0
"""After so many deadlines, and at least so many seconds, in which no other thread could run, the process is ended."""
_BEATS_UNTIL_KILLED = 4.0
_STDERR = 2
_has_loaded = threading.Event()

Result = TypeVar("Result")
_Call = tuple["concurrent.futures.Future[Any]", Callable[[], Any]]


def load_libraries(transform: ImageTransform) -> None:
    """Decode a tiny image, without a deadline: importing what is imported on first use takes seconds, and from a slow
    network disk minutes, for which no image is to blame.
    """
    if not _has_loaded.is_set():
        file = io.BytesIO()
        Image.new("RGB", (16, 16)).save(file, "JPEG")
        transform(file.getvalue())
        _has_loaded.set()


class DecodingDeadline:
    """Calls functions in daemon threads, and waits for each of them for a limited time.

    Daemon threads do not keep a process from ending. They are reused for the following calls. Use it as a context, for
    the images of one chunk.

    Args:
        seconds: the time that each call may take.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._idle: list[_Worker] = []
        self._given_up: list[concurrent.futures.Future[Any]] = []
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def __enter__(self) -> DecodingDeadline:
        threading.Thread(target=self._postpone_the_end, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._closed.set()
            faulthandler.cancel_dump_traceback_later()
            for worker in self._idle:
                worker.calls.put(None)
            self._idle.clear()

    def warnings(self) -> list[str]:
        """Return what the user should know: whether calls that were given up have not ended."""
        running = sum(not call.done() for call in self._given_up)
        if not running:
            return []
        return [
            f"images whose decoding was given up after {self.seconds:g} s (--max-decode-seconds) are still being "
            f"decoded, {running} of them in one process; each slows other work down until it ends"
        ]

    def call(self, function: Callable[[], Result]) -> Result:
        """Call a function and return its result, or raise its exception.

        Raises:
            ImageDecodeError: of kind `DecodeTimeout`; the call was given up.
        """
        with self._lock:
            worker = self._idle.pop() if self._idle else _Worker()
        result: concurrent.futures.Future[Result] = concurrent.futures.Future()
        worker.calls.put((result, function))
        concurrent.futures.wait([result], self.seconds)
        if not result.done():
            self._given_up.append(result)
            worker.calls.put(None)  # it ends after this call
            raise ImageDecodeError(
                "DecodeTimeout",
                f"decoding it took longer than {self.seconds:g} s, the limit (--max-decode-seconds)",
            )
        with self._lock:
            if self._closed.is_set():
                worker.calls.put(None)
            else:
                self._idle.append(worker)
        return result.result()

    def _postpone_the_end(self) -> None:
        """Set the timer that ends the process again and again, as long as Python code runs."""
        seconds = max(MIN_SECONDS_UNTIL_KILLED, DEADLINES_UNTIL_KILLED * self.seconds)
        while True:
            with self._lock:
                if self._closed.is_set():
                    return
                faulthandler.dump_traceback_later(seconds, exit=True, file=_STDERR)
            self._closed.wait(seconds / _BEATS_UNTIL_KILLED)


class _Worker(threading.Thread):
    """A thread that makes one call after another."""

    def __init__(self) -> None:
        super().__init__(name="decoding", daemon=True)
        self.calls: SimpleQueue[_Call | None] = SimpleQueue()
        """None ends the thread."""
        self.start()

    def run(self) -> None:
        while (call := self.calls.get()) is not None:
            result, function = call
            try:
                result.set_result(function())
            except BaseException as error:
                result.set_exception(error)
            del call, result, function  # pixels are not kept until the next call
