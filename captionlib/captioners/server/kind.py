"""Models behind servers that speak OpenAI's chat protocol: vLLM, SGLang, `transformers serve`, a cloud."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from captionlib.captioners.base import Needs
from captionlib.captioners.options import DEFAULT_PROMPT, MAX_SIDE, CaptionerOptions
from captionlib.captioners.server.chat import Chat
from captionlib.captioners.server.client import KEY, ServerCaptioner
from captionlib.captioners.zoo import Kind, refuse
from captionlib.config import SearchConfig
from captionlib.errors import UserError
from captionlib.images.transforms import MaxSide

NOUN = "a model behind a server"
CONCURRENCY = 16
MAX_TOKENS = 128
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
        chat = Chat(
            model=self.model,
            search=self.search,
            prompt=self.prompt,
            system_prompt=self.system_prompt,
            first_sentence=self.first_sentence,
        )
        return ServerCaptioner(chat, self.endpoints, self.concurrency)


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
    nothing = (
        "diversity_groups",
        "min_tokens",
        "no_repeat_ngram",
        "length_penalty",
        "top_k",
        "allow_unk",
        "detector_weight",
    )
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
