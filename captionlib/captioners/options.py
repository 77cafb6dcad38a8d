"""Settings of captioners of all kinds. Each kind says which it honours; any other that is given is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from captionlib.config import EngineKind
from captionlib.errors import UserError

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["8bit", "4bit"]
DEFAULT_PROMPT = "Describe this image in one sentence."
"""Of models that are asked in words."""
MAX_SIDE = 1024
"""Default of `CaptionerOptions.max_side`, in pixels."""


@dataclass(frozen=True, kw_only=True)
class CaptionerOptions:
    """What can be said about a captioner beside its search. What is not given is left to the model."""

    engine: EngineKind = "auto"
    """How the encoder of a checkpoint is run. On a CPU, `auto` is OpenVINO, in 8-bit integers (int8) where the
checkpoint has an encoder in these, else in float32 (openvino); on a GPU, and where there is no OpenVINO, it is PyTorch
(torch)."""
    revision: str | None = None
    """Branch, tag or commit of a model on the Hugging Face hub; the same as hf:NAME@REVISION."""
    prompt: str | None = None
    """What the model is asked or given to continue; for Florence-2 one of its tasks, such as "<DETAILED_CAPTION>"."""
    prompt_file: Path | None = None
    """A text file with the prompt."""
    system_prompt: str | None = None
    """What a chat model is told before the prompt."""
    max_new_tokens: int | None = None
    """Longest caption in tokens; the same as --search.max-tokens."""
    repetition_penalty: float | None = None
    """Divide the logits of tokens that occurred already by this (Keskar et al. 2019); 1 switches it off."""
    first_sentence: bool = False
    """Keep only the first sentence of each caption."""
    dtype: Dtype = "auto"
    """Type of the weights: by default what they are stored in on a GPU, and float32 on a CPU."""
    quantization: Quantization | None = None
    """Weights in 8 or 4 bits, through bitsandbytes, on CUDA."""
    max_side: int | None = None
    """Scale images so that the longer side is at most this many pixels, for models that take any resolution, and
for servers. Default: 1024."""
    trust_remote_code: bool = False
    """Let a model's own Python code run on your machines. Read it before."""
    endpoint: tuple[str, ...] = ()
    """Where a server speaks OpenAI's protocol, such as http://host:8000/v1; several share the work."""
    concurrency: int | None = None
    """Requests that are under way at once at each endpoint. Default: 16."""

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "max_side", "concurrency"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{flag(name)} must be at least 1, got {value}")
        if self.repetition_penalty is not None and self.repetition_penalty <= 0:
            raise UserError(f"--repetition-penalty must be positive, got {self.repetition_penalty}")
        if self.prompt is not None and self.prompt_file is not None:
            raise UserError("--prompt and --prompt-file are two prompts: leave one out")

    def given(self) -> list[str]:
        """Names of the settings that are not left to the model."""
        return [f.name for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]

    def check(self, honoured: Collection[str], noun: str) -> None:
        """Refuse what a kind of captioner does not have.

        Args:
            noun: what the captioner is, such as `a checkpoint of this project`.

        Raises:
            UserError: a setting is given that is not among `honoured`.
        """
        for name in self.given():
            if name not in honoured:
                raise UserError(f"{flag(name)} means nothing to {noun}: leave it out")

    def read_prompt(self) -> str | None:
        """The prompt, from wherever it is.

        Raises:
            UserError: its file cannot be read, or is empty.
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
    """A setting as it is written on the command line."""
    return f"--{name.replace('_', '-')}"
