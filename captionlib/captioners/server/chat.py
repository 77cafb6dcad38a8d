"""OpenAI's chat protocol: the request for one image, and the captions in its answer."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from captionlib.captioners.base import Answer, Caption, CaptionFault, FinishReason
from captionlib.captioners.cleaning import clean
from captionlib.config import SearchConfig
from captionlib.errors import CaptionlibError

JPEG_QUALITY = 90
_FINISH: dict[str, FinishReason] = {"stop": "end", "length": "length"}


class NoChatAnswer(CaptionlibError):
    """The text of an answer is not one of the protocol, as when it was cut off."""


@dataclass(frozen=True, kw_only=True)
class Chat:
    """What is asked of a model, and how its answers are read."""

    model: str
    search: SearchConfig
    prompt: str
    system_prompt: str | None
    first_sentence: bool

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

    def read(self, text: str) -> Answer:
        """Return the captions in the server's answer.

        Raises:
            NoChatAnswer: the text is something else.
        """
        try:
            answer = json.loads(text)
            choices = answer["choices"]
            texts = [choice["message"].get("content") for choice in choices]
            reasons = [choice.get("finish_reason") for choice in choices]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise NoChatAnswer(f"the answer is not one of a chat: {text[:100]!r}") from error
        refusals = [choice["message"].get("refusal") for choice in choices]
        if any(refusals) or "content_filter" in reasons:
            return CaptionFault(
                "ContentRefused", str(next(filter(None, refusals), "the server's content filter"))[:500]
            )
        usage = answer.get("usage") or {}
        num_tokens = usage.get("completion_tokens") if len(choices) == 1 else None
        captions = [
            Caption(clean(said, first_sentence=self.first_sentence), None, num_tokens, _FINISH.get(reason))
            for said, reason in zip(texts, reasons, strict=True)
            if said
        ]
        return captions or CaptionFault("EmptyAnswer", f"the answer has no text; finish_reason is {reasons[0]!r}")


def to_jpeg(pixels: np.ndarray) -> bytes:
    """Encode HWC uint8 (H, W, 3) as a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


def error_message(text: str) -> str:
    """Extract the error message from the answer of a server, which has one of several forms."""
    try:
        error = json.loads(text)["error"]
        said = error["message"] if isinstance(error, dict) else error
    except (ValueError, KeyError, TypeError):
        said = text
    return " ".join(str(said).split())[:300]
