"""Settings of captioners of all kinds. Each kind lists those that it supports; others are refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import UseAppendAction, arg

from captionlib.config import EngineKind
from captionlib.errors import UserError
from captionlib.ranges import POSITIVE, at_least, check_ranges

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["8bit", "4bit"]
DEFAULT_PROMPT = "Describe this image in one sentence."
"""Default prompt of chat models."""
MAX_SIDE = 1024
"""Default of `CaptionerOptions.max_side`, in pixels."""


def _hint(metavar: str, default: str) -> Any:
    """Describe a flag whose default is not a plain value."""
    return arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


@dataclass(frozen=True, kw_only=True)
class CaptionerOptions:
    """Settings of the model. Those that a model does not have are refused."""

    engine: EngineKind = "auto"
    """How the encoder of a checkpoint is run. On a CPU, `auto` chooses OpenVINO: in 8-bit integers (int8) if the
checkpoint has such an encoder, otherwise in float32 (openvino). On a GPU, and without OpenVINO, it chooses PyTorch
(torch)."""
    revision: Annotated[str | None, _hint("NAME", "the hub's main branch")] = None
    """Branch, tag or commit of a model of the Hugging Face hub; the same as hf:NAME@REVISION."""
    prompt: Annotated[str | None, _hint("TEXT", "the model's own; for chat models a request for one sentence")] = None
    """The question to a chat model, or the beginning of the caption for a captioner; for Florence-2 a task, such as
"<DETAILED_CAPTION>"."""
    prompt_file: Annotated[Path | None, _hint("FILE", "none")] = None
    """A text file with the prompt."""
    system_prompt: Annotated[str | None, _hint("TEXT", "none")] = None
    """Instructions to a chat model that precede the prompt."""
    max_new_tokens: Annotated[int | None, _hint("INT", "--search.max-tokens")] = None
    """Largest number of tokens of a caption; another name of --search.max-tokens."""
    repetition_penalty: Annotated[float | None, _hint("FLOAT", "the model's own")] = None
    """Penalty of tokens that occurred before (Keskar et al. 2019); 1 disables it."""
    first_sentence: bool = False
    """Keep only the first sentence of each caption."""
    dtype: Dtype = "auto"
    """Data type of the weights. `auto` is float32 on a CPU, and the stored type on a GPU."""
    quantization: Annotated[Quantization | None, _hint("{8bit,4bit}", "none")] = None
    """Load the weights in 8 or 4 bits with bitsandbytes. Needs CUDA."""
    max_side: Annotated[int | None, _hint("INT", f"{MAX_SIDE}")] = None
    """Longest side of the images in pixels; larger ones are scaled down. For models of any resolution and servers."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Read it before."""
    endpoint: Annotated[tuple[str, ...], UseAppendAction] = ()
    """URL of a server that speaks OpenAI's protocol, such as http://host:8000/v1. May be repeated: the servers share
the work. The key is read from OPENAI_API_KEY."""
    concurrency: Annotated[int | None, _hint("INT", "16")] = None
    """Largest number of concurrent requests to each endpoint."""

    def __post_init__(self) -> None:
        check_ranges(
            self,
            "--",
            max_new_tokens=at_least(1),
            max_side=at_least(1),
            concurrency=at_least(1),
            repetition_penalty=POSITIVE,
        )
        if self.prompt is not None and self.prompt_file is not None:
            raise UserError("--prompt and --prompt-file are two prompts: leave one out")

    def given(self) -> list[str]:
        """Return the names of the settings that differ from their defaults."""
        return [f.name for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]

    def check(self, honoured: Collection[str], noun: str) -> None:
        """Reject settings that a kind of captioner does not support.

        Args:
            noun: description of the captioner, such as `a checkpoint of this project`.

        Raises:
            UserError: a setting is given that is not in `honoured`.
        """
        for name in self.given():
            if name not in honoured:
                raise UserError(f"{flag(name)} means nothing to {noun}: leave it out")

    def read_prompt(self) -> str | None:
        """Return the prompt, from the option or its file.

        Raises:
            UserError: the file cannot be read, or is empty.
        """
        if self.prompt_file is None:
            return self.prompt
        try:
            text = self.prompt_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"the prompt file {self.prompt_file} cannot be read: {error}") from error
        if not text:
            raise UserError(f"the prompt file {self.prompt_file} is empty")
        return text


def flag(name: str) -> str:
    """Return the name of a setting on the command line."""
    return f"--{name.replace('_', '-')}"
