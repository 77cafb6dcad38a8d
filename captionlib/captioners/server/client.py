"""Sends images to servers, as JPEG in many concurrent requests.

Each endpoint gets the next image when it has answered one, so that several endpoints share the work according to their
speed. A fault of one image is its answer. A fault of the connection (429, 5xx, time-out, lost connection, truncated
answer) is retried with exponential back-off, at any endpoint that works.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import numpy as np

from captionlib.captioners.base import Answer, CaptionFault, ServiceRefused, ServiceUnavailable
from captionlib.captioners.server.chat import Chat, NoChatAnswer, error_message, to_jpeg

if TYPE_CHECKING:
    import aiohttp

KEY = "OPENAI_API_KEY"
REQUEST_SECONDS = 300.0
"""Timeout of one request in seconds; a server may have a long queue."""
PATIENCE_SECONDS = 180.0
"""Seconds without an answer from any endpoint after which the images are deferred."""
FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 30.0
ATTEMPTS = 12
"""Number of 5xx answers for one image, while others succeed, after which it is deferred."""
_IMAGE_STATUS = {400, 413, 415, 422}
_REFUSED_STATUS = {401, 403, 404}


class ServerCaptioner:
    """Sends images to servers, with a thread of its own for the connections. See
    `captionlib.captioners.base.LoadedCaptioner`.
    """

    overlaps = True

    def __init__(self, chat: Chat, endpoints: Sequence[str], concurrency: int) -> None:
        self.chat, self.concurrency = chat, concurrency
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="requests", daemon=True).start()
        # Limits the requests of all calls together at each endpoint.
        self._slots = {url: asyncio.Semaphore(concurrency) for url in endpoints}

    def stages(self) -> None:
        """None: the server runs both."""
        return

    def caption_images(self, images: np.ndarray | Sequence[np.ndarray], image_ids: Sequence[int]) -> list[Answer]:
        """See `captionlib.captioners.base.LoadedCaptioner`."""
        call = _Call(self.chat, self._slots, self.concurrency, images, image_ids)
        return asyncio.run_coroutine_threadsafe(call.run(), self._loop).result()


class _Try:
    """One image that is being captioned."""

    def __init__(self, place: int) -> None:
        self.place = place
        self.attempts = 0  # counts only failures that the image may have caused, not lost connections


class _Call:
    """The images of one call, in a queue that the endpoints share."""

    def __init__(
        self,
        chat: Chat,
        slots: dict[str, asyncio.Semaphore],
        concurrency: int,
        images: np.ndarray | Sequence[np.ndarray],
        image_ids: Sequence[int],
    ) -> None:
        self.chat, self.slots, self.concurrency = chat, slots, concurrency
        self.images, self.image_ids = images, image_ids
        self.waiting = deque(_Try(place) for place in range(len(image_ids)))
        self.answers: list[Answer | None] = [None] * len(image_ids)
        self.last_success = time.monotonic()

    async def run(self) -> list[Answer]:
        """Return all answers in order."""
        import aiohttp

        key = os.environ.get(KEY)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limit = aiohttp.ClientTimeout(total=REQUEST_SECONDS, sock_connect=30)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(headers=headers, timeout=limit, connector=connector) as session:
            workers = [
                asyncio.create_task(self._work(session, url))
                for url in self.slots
                for _ in range(min(self.concurrency, len(self.answers)))
            ]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
        assert all(answer is not None for answer in self.answers)
        return [answer for answer in self.answers if answer is not None]

    async def _work(self, session: aiohttp.ClientSession, url: str) -> None:
        """Send images to one endpoint until all images have answers."""
        failures = 0
        while any(answer is None for answer in self.answers):
            if not self.waiting:  # other workers hold the last images and may put them back into the queue
                await asyncio.sleep(0.05)
                continue
            item = self.waiting.popleft()
            try:
                async with self.slots[url]:
                    self.answers[item.place] = await self._ask(session, url, item.place)
                failures = 0
                self.last_success = time.monotonic()
            except _TryAgain as fault:
                item.attempts += fault.is_answer
                failures += 1
                self.waiting.append(item)
                silent = time.monotonic() - self.last_success
                if silent > PATIENCE_SECONDS or item.attempts >= ATTEMPTS * len(self.slots):
                    raise ServiceUnavailable(f"{_place(url)}: {fault}") from fault
                longest = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2 ** min(failures, 10))
                await asyncio.sleep(max(fault.wait_seconds, random.uniform(longest / 2, longest)))

    async def _ask(self, session: aiohttp.ClientSession, url: str, place: int) -> Answer:
        """Send one request.

        Raises:
            _TryAgain: the connection failed, or the server is busy.
            ServiceRefused: the server rejects every request.
        """
        import aiohttp

        loop = asyncio.get_running_loop()
        jpeg = await loop.run_in_executor(None, to_jpeg, self.images[place])
        body = self.chat.request(jpeg, self.image_ids[place])
        try:
            async with session.post(f"{url}/chat/completions", json=body) as response:
                text = await response.text()
                status, wait = response.status, response.headers.get("Retry-After", "")
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError, UnicodeDecodeError) as error:
            raise _TryAgain(f"{type(error).__name__}: {error}") from error
        if status == 200:
            try:
                return self.chat.read(text)
            except NoChatAnswer as error:
                raise _TryAgain(str(error)) from error
        message = error_message(text)
        if status in _IMAGE_STATUS:
            kind = "ContentRefused" if "content_" in text or "safety" in text else "RequestRejected"
            return CaptionFault(kind, f"HTTP {status}: {message}")
        if status in _REFUSED_STATUS:
            hint = f"is there no model {self.chat.model}, or no {KEY} in the environment of every machine?"
            raise ServiceRefused(f"{_place(url)} answers HTTP {status}: {message}; {hint}")
        seconds = float(wait) if wait.isdecimal() else 0.0
        raise _TryAgain(f"HTTP {status}: {message}", seconds, is_answer=status >= 500)


class _TryAgain(Exception):
    """The connection to a server failed; the image is not at fault."""

    def __init__(self, message: str, wait_seconds: float = 0.0, *, is_answer: bool = False) -> None:
        super().__init__(message)
        self.wait_seconds = min(wait_seconds, LONGEST_WAIT_SECONDS)
        self.is_answer = is_answer


def _place(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
