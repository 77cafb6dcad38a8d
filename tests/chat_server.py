"""A server that speaks OpenAI's protocol for chats with images, and says of an image what size and colour it has."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
from aiohttp import web
from PIL import Image


def describe(pixels: np.ndarray) -> str:
    """What the server says of HWC uint8 RGB."""
    height, width = pixels.shape[:2]
    red, green, blue = (pixels.reshape(-1, 3).mean(axis=0) // 32).astype(int).tolist()
    return f"A picture of {width} by {height}. Its colour is {red} {green} {blue}."


class ChatServer:
    """One endpoint. What it does with a request may be set at any time."""

    def __init__(self) -> None:
        self.url = ""
        self.key: str | None = None
        """The key that it wants."""
        self.is_away = False
        """Connections are closed without an answer."""
        self.refuses_width: int | None = None
        """Images of this width violate its policy."""
        self.requests: list[dict[str, Any]] = []
        """Bodies that were answered with a caption, with `size` (width, height) of their images."""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """One request."""
        if self.is_away:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
            return _error(401, "Incorrect API key provided")
        body = await request.json()
        if body["model"] != "tiny":
            return _error(404, f"The model `{body['model']}` does not exist.")
        (url,) = [part["image_url"]["url"] for part in body["messages"][-1]["content"] if part["type"] == "image_url"]
        head, _, data = url.partition(",")
        assert head == "data:image/jpeg;base64"
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        if pixels.shape[1] == self.refuses_width:
            return _error(400, "Your request was rejected by the safety system.", code="content_policy_violation")
        self.requests.append(body | {"size": (pixels.shape[1], pixels.shape[0])})
        choice = {"message": {"role": "assistant", "content": f" {describe(pixels)}\n"}, "finish_reason": "stop"}
        choices = [choice | {"index": i} for i in range(body.get("n", 1))]
        return web.json_response({"choices": choices, "usage": {"completion_tokens": 12}})


def _error(status: int, message: str, **more: str) -> web.Response:
    return web.json_response({"error": {"message": message, **more}}, status=status)


@contextlib.contextmanager
def chat_server() -> Iterator[ChatServer]:
    """A server in a thread of this process, at `url`, which ends in /v1."""
    server = ChatServer()
    ready, loop, stop = threading.Event(), asyncio.new_event_loop(), asyncio.Event()

    async def serve() -> None:
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/v1/chat/completions", server.answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        ready.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert ready.wait(30)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
