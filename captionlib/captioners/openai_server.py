"""Models behind servers that speak OpenAI's chat protocol: vLLM, SGLang, `transformers serve`, a cloud.

Images are sent as JPEG in many concurrent requests. Each endpoint gets the next image when it has answered one, so that
several endpoints share the work according to their speed. A fault of one image is its answer. A fault of the connection
(429, 5xx, time-out, lost connection, truncated answer) is retried with exponential back-off, at any endpoint that
works.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import random
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from captionlib.captioners.base import (
    Answer,
    Caption,
    CaptionFault,
    FinishReason,
    Needs,
    ServiceRefused,
    ServiceUnavailable,
)
from captionlib.captioners.cleaning import clean
from captionlib.captioners.options import DEFAULT_PROMPT, MAX_SIDE, CaptionerOptions
from captionlib.captioners.zoo import Kind, refuse
from captionlib.config import SearchConfig
from captionlib.errors import UserError
from captionlib.images.transforms import MaxSide

if TYPE_CHECKING:
    import aiohttp

NOUN = "a model behind a server"
KEY = "OPENAI_API_KEY"
CONCURRENCY = 16
MAX_TOKENS = 128
JPEG_QUALITY = 90
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
_FINISH: dict[str, FinishReason] = {"stop": "end", "length": "length"}
_NO_SUCH_SETTING = "OpenAI's protocol has no such setting"


@dataclass(frozen=True, kw_only=True)
class OpenServer:
    """A model on servers. See `captionlib.captioners.base.OpenCaptioner`."""

    model: str
    endpoints: tuple[str, ...]
    search: SearchConfig
    prompt: str
    system_prompt: str | None
    first_sentence: bool
    concurrency: int
    transform: MaxSide

    @property
    def name(self) -> str:
        """Name such as `openai:Qwen/Qwen2.5-VL-7B-Instruct`."""
        return f"openai:{self.model}"

    @property
    def fingerprint(self) -> str:
        """The name, because a server does not identify its weights."""
        return self.name

    @property
    def settings(self) -> dict[str, Any]:
        """Prompts and image size; not the endpoints."""
        return {
            "prompt": self.prompt,
            "system_prompt": self.system_prompt,
            "first_sentence": self.first_sentence,
            "max_side": self.transform.max_side,
        }

    def arithmetic(self, *, gpu: bool) -> str:
        """Unknown: the server decides."""
        return "the server"

    @property
    def needs(self) -> Needs:
        """One CPU, to encode images and wait."""
        return Needs(uses_gpu=False, cpus=1.0)

    @property
    def has_confidence(self) -> bool:
        """False: these models are not calibrated."""
        return False

    @property
    def packages(self) -> tuple[str, ...]:
        """The package for HTTP."""
        return ("aiohttp",)

    def load(self, *, batch_size: int | None, num_threads: int) -> ServerCaptioner:
        """Create the client; nothing is sent yet."""
        return ServerCaptioner(self)

    def request(self, jpeg: bytes, image_id: int) -> dict[str, Any]:
        """Return the body of the request for one image."""
        picture = {"url": "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()}
        turns: list[dict[str, Any]] = []
        if self.system_prompt is not None:
            turns.append({"role": "system", "content": self.system_prompt})
        content = [{"type": "text", "text": self.prompt}, {"type": "image_url", "image_url": picture}]
        turns.append({"role": "user", "content": content})
        body: dict[str, Any] = {"model": self.model, "messages": turns, "max_tokens": self.search.max_tokens}
        if self.search.method == "greedy":
            return body | {"temperature": 0.0}
        seed = (self.search.seed * 1_000_003 + image_id) % 2**31
        sampling = {"temperature": self.search.temperature, "top_p": self.search.top_p, "seed": seed}
        return body | sampling | ({"n": self.search.num_captions} if self.search.num_captions > 1 else {})


class ServerCaptioner:
    """Sends images to servers, with a thread of its own for the connections. See
    `captionlib.captioners.base.LoadedCaptioner`.
    """

    overlaps = True

    def __init__(self, opened: OpenServer) -> None:
        self.opened = opened
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="requests", daemon=True).start()
        # Of all calls together, at each endpoint.
        self._slots = {url: asyncio.Semaphore(opened.concurrency) for url in opened.endpoints}

    def stages(self) -> None:
        """None: the server runs both."""
        return

    def caption_images(self, images: np.ndarray | Sequence[np.ndarray], image_ids: Sequence[int]) -> list[Answer]:
        """See `captionlib.captioners.base.LoadedCaptioner`."""
        call = _Call(self.opened, self._slots, images, image_ids)
        return asyncio.run_coroutine_threadsafe(call.run(), self._loop).result()


class _Try:
    """One image that is being captioned."""

    def __init__(self, place: int) -> None:
        self.place = place
        self.attempts = 0  # that the image may be at fault for: lost connections are not among them


class _Call:
    """The images of one call, in a queue that the endpoints share."""

    def __init__(
        self,
        opened: OpenServer,
        slots: dict[str, asyncio.Semaphore],
        images: np.ndarray | Sequence[np.ndarray],
        image_ids: Sequence[int],
    ) -> None:
        self.opened, self.slots, self.images, self.image_ids = opened, slots, images, image_ids
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
                for url in self.opened.endpoints
                for _ in range(min(self.opened.concurrency, len(self.answers)))
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
            if not self.waiting:  # the last ones are under way elsewhere, and may come back
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
                if silent > PATIENCE_SECONDS or item.attempts >= ATTEMPTS * len(self.opened.endpoints):
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
        body = self.opened.request(jpeg, self.image_ids[place])
        try:
            async with session.post(f"{url}/chat/completions", json=body) as response:
                text = await response.text()
                status, wait = response.status, response.headers.get("Retry-After", "")
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError, UnicodeDecodeError) as error:
            raise _TryAgain(f"{type(error).__name__}: {error}") from error
        if status == 200:
            return self._read(text)
        message = _message(text)
        if status in _IMAGE_STATUS:
            kind = "ContentRefused" if "content_" in text or "safety" in text else "RequestRejected"
            return CaptionFault(kind, f"HTTP {status}: {message}")
        if status in _REFUSED_STATUS:
            hint = f"is there no model {self.opened.model}, or no {KEY} in the environment of every machine?"
            raise ServiceRefused(f"{_place(url)} answers HTTP {status}: {message}; {hint}")
        seconds = float(wait) if wait.isdecimal() else 0.0
        raise _TryAgain(f"HTTP {status}: {message}", seconds, is_answer=status >= 500)

    def _read(self, text: str) -> Answer:
        """Return the captions in the server's answer."""
        try:
            answer = json.loads(text)
            choices = answer["choices"]
            texts = [choice["message"].get("content") for choice in choices]
            reasons = [choice.get("finish_reason") for choice in choices]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _TryAgain(f"the answer is not one of a chat: {text[:100]!r}") from error
        refusals = [choice["message"].get("refusal") for choice in choices]
        if any(refusals) or "content_filter" in reasons:
            return CaptionFault(
                "ContentRefused", str(next(filter(None, refusals), "the server's content filter"))[:500]
            )
        usage = answer.get("usage") or {}
        num_tokens = usage.get("completion_tokens") if len(choices) == 1 else None
        captions = [
            Caption(clean(said, first_sentence=self.opened.first_sentence), None, num_tokens, _FINISH.get(reason))
            for said, reason in zip(texts, reasons, strict=True)
            if said
        ]
        return captions or CaptionFault("EmptyAnswer", f"the answer has no text; finish_reason is {reasons[0]!r}")


class _TryAgain(Exception):
    """The connection to a server failed; the image is not at fault."""

    def __init__(self, message: str, wait_seconds: float = 0.0, *, is_answer: bool = False) -> None:
        super().__init__(message)
        self.wait_seconds = min(wait_seconds, LONGEST_WAIT_SECONDS)
        self.is_answer = is_answer


def to_jpeg(pixels: np.ndarray) -> bytes:
    """Encode HWC uint8 (H, W, 3) as a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


def _message(text: str) -> str:
    """Extract the error message from the answer of a server, which has one of several forms."""
    try:
        error = json.loads(text)["error"]
        said = error["message"] if isinstance(error, dict) else error
    except (ValueError, KeyError, TypeError):
        said = text
    return " ".join(str(said).split())[:300]


def _place(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _default_search(model: str, options: CaptionerOptions) -> SearchConfig:
    return SearchConfig(method="greedy", max_tokens=MAX_TOKENS)


def _open(model: str, search: SearchConfig, options: CaptionerOptions) -> OpenServer:
    if not options.endpoint:
        raise UserError(
            f"--model openai:{model} needs --endpoint, where a server speaks OpenAI's protocol, such as "
            "--endpoint http://host:8000/v1"
        )
    for url in options.endpoint:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"--endpoint {url} is no URL such as http://host:8000/v1")
        if parts.username or parts.password or parts.query:
            raise UserError(f"--endpoint takes no key in its URL: put it into {KEY} in the environment")
    if search.method == "beam":
        raise UserError(f"--search.method beam is not supported by {NOUN}: use greedy or sample")
    nothing = ("diversity_groups", "min_tokens", "no_repeat_ngram", "length_penalty", "top_k", "allow_unk")
    refuse(search, NOUN, **dict.fromkeys(nothing, _NO_SUCH_SETTING))
    return OpenServer(
        model=model,
        endpoints=tuple(url.rstrip("/") for url in options.endpoint),
        search=search,
        prompt=options.read_prompt() or DEFAULT_PROMPT,
        system_prompt=options.system_prompt,
        first_sentence=options.first_sentence,
        concurrency=options.concurrency or CONCURRENCY,
        transform=MaxSide(options.max_side or MAX_SIDE),
    )


KIND = Kind(
    noun=NOUN,
    honours=frozenset(
        {
            "prompt", "prompt_file", "system_prompt", "max_new_tokens", "first_sentence", "max_side", "endpoint",
            "concurrency",
        }
    ),
    default_search=_default_search,
    open=_open,
)  # fmt: skip
