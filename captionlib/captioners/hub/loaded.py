"""A model of transformers with its weights: captions pixels in batches that fit the device.

Shapes: B images of a batch, S side of the square input.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from captionlib.captioners.base import NOT_FINITE, Answer, Caption, CaptionFault
from captionlib.captioners.cleaning import clean
from captionlib.captioners.hub.families.base import Family
from captionlib.captioners.hub.generation import Generated, generate
from captionlib.captioners.hub.pixels import take_apart
from captionlib.captioners.options import CaptionerOptions
from captionlib.config import SearchConfig
from captionlib.errors import UserError

logger = logging.getLogger(__name__)
_MISSING_SHARE = 0.01
"""Share of the parameters that a checkpoint may lack: some lack a pooling layer that captions do not need."""


class HubModel:
    """A loaded model. See `captionlib.captioners.base.LoadedCaptioner`.

    Args:
        folder: files of the model.
        squares: whether images are squares of the model's processor, or have different sizes.

    Raises:
        UserError: the model cannot be loaded; the message states what to do.
    """

    overlaps = False

    def __init__(
        self,
        folder: Path,
        family: Family,
        search: SearchConfig,
        options: CaptionerOptions,
        *,
        prompt: str | None,
        squares: bool,
        batch_size: int | None,
        num_threads: int,
    ) -> None:
        torch.set_num_threads(num_threads)
        quieten_transformers()
        self.family, self.search, self.options, self.prompt = family, search, options, prompt
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = load_model(folder, family, options, self.device)
        self.processor = family.load_processor(folder, trust_remote_code=options.trust_remote_code)
        self.end_tokens = family.end_tokens(self.model)
        self.batch_size = batch_size or (family.cpu_batch_size if self.device.type == "cpu" else family.gpu_batch_size)
        self._halves = take_apart(self.processor.image_processor) if squares else None
        assert (self._halves is not None) == squares, "the processor is not as it was when the model was opened"
        self._text = self._text_inputs() if squares else {}

    def stages(self) -> None:
        """None: `generate` of Transformers runs both."""
        return

    def caption_images(self, images: np.ndarray | Sequence[np.ndarray], image_ids: Sequence[int]) -> list[Answer]:
        """Caption images in batches. If memory runs out, the batch size is halved permanently."""
        answers: list[Answer] = []
        while len(answers) < len(images):
            batch = slice(len(answers), len(answers) + self.batch_size)
            try:
                answers += self._caption(images[batch], image_ids[batch])
            except torch.OutOfMemoryError as error:
                self._free()
                if self.batch_size == 1:
                    answers.append(CaptionFault("OutOfMemory", str(error).split(". ")[0]))
                else:
                    self.batch_size = max(1, min(self.batch_size, len(images[batch])) // 2)
                    logger.warning("out of memory: %d images go through the model together now", self.batch_size)
            except Exception as error:
                if _is_broken_device(error):
                    raise
                answers += self._one_by_one(images[batch], image_ids[batch])
        return answers

    def _one_by_one(self, images: np.ndarray | Sequence[np.ndarray], image_ids: Sequence[int]) -> list[Answer]:
        """Repeat a failed batch image by image, so that only images that fail alone are at fault."""
        answers: list[Answer] = []
        for place, image_id in enumerate(image_ids):
            try:
                answers += self._caption(images[place : place + 1], [image_id])
            except torch.OutOfMemoryError as error:
                self._free()
                answers.append(CaptionFault("OutOfMemory", str(error).split(". ")[0]))
            except Exception as error:
                if _is_broken_device(error):
                    raise
                logger.exception("image %d", image_id)
                answers.append(CaptionFault("GenerationFailed", f"{type(error).__name__}: {error}"[:500]))
        return answers

    def _caption(self, images: np.ndarray | Sequence[np.ndarray], image_ids: Sequence[int]) -> list[Answer]:
        """Caption one batch."""
        found = generate(
            self.model,
            self._inputs(images),
            self.search,
            image_ids,
            end_tokens=self.end_tokens,
            repetition_penalty=self.options.repetition_penalty,
        )
        return [self._answer(captions) for captions in found]

    def _answer(self, captions: Sequence[Generated]) -> Answer:
        read = [self._read(caption) for caption in captions if math.isfinite(caption.log_prob)]
        return read or NOT_FINITE

    def _read(self, caption: Generated) -> Caption:
        text = clean(self.family.read(self.processor, caption.tokens), first_sentence=self.options.first_sentence)
        return Caption(text, caption.log_prob, len(caption.tokens), "end" if caption.finished else "length")

    def _inputs(self, images: np.ndarray | Sequence[np.ndarray]) -> dict[str, Tensor]:
        """Return the inputs of `generate` for a batch, on the device."""
        if self._halves is None:
            pictures = [Image.fromarray(image) for image in images]
            inputs = self.family.encode(self.processor, pictures, self.prompt, self.options.system_prompt)
            return {name: self._to_device(value) for name, value in inputs.items()}
        # Copied, because the input is read-only: (B, S, S, 3).
        pixels = torch.from_numpy(np.array(images)).to(self.device)
        inputs = {name: value.repeat_interleave(len(images), dim=0) for name, value in self._text.items()}
        return inputs | {"pixel_values": self._to_device(self._halves.normalize(pixels))}

    def _text_inputs(self) -> Mapping[str, Tensor]:
        """Return the inputs other than pixel values, (1, ...) each. They are the same for all squares."""
        assert self._halves is not None
        blank = Image.new("RGB", (self._halves.transform.side,) * 2)
        inputs = self.family.encode(self.processor, [blank], self.prompt, self.options.system_prompt)
        return {name: self._to_device(value) for name, value in inputs.items() if name != "pixel_values"}

    def _to_device(self, value: Tensor) -> Tensor:
        return value.to(self.device, self.model.dtype if value.is_floating_point() else None)

    def _free(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def load_model(folder: Path, family: Family, options: CaptionerOptions, device: torch.device) -> Any:
    """Load the model in evaluation mode on the device.

    Raises:
        UserError: it cannot be loaded; the message states what to do.
    """
    dtype = options.dtype
    if dtype == "auto" and device.type == "cpu":
        dtype = "float32"
    settings: dict[str, Any] = {"dtype": dtype if dtype == "auto" else getattr(torch, dtype)}
    if options.quantization is not None:
        settings |= {"quantization_config": _quantization(options.quantization, device), "device_map": {"": 0}}
    try:
        model, fit = family.load_model(folder, trust_remote_code=options.trust_remote_code, **settings)
    except Exception as error:  # architectures raise different exceptions for truncated files or other versions
        raise UserError(f"{folder} cannot be loaded as {family.noun}: {type(error).__name__}: {error}"[:500]) from error
    missing = set(fit["missing_keys"]) | {name for name, *_ in fit.get("mismatched_keys", ())}
    sizes = {name: value.numel() for name, value in model.state_dict().items()}
    share = sum(sizes.get(name, 0) for name in missing) / max(1, sum(sizes.values()))
    if share > _MISSING_SHARE:
        raise UserError(
            f"{folder} lacks {share:.0%} of the weights of {family.noun}, such as {min(missing)}: it is not a model "
            "that writes captions, or not all of it is there"
        )
    if options.quantization is None:
        model = model.to(device)
    return model.eval()


def quieten_transformers() -> None:
    """Switch off transformers' advice and progress bars, which every actor would print."""
    from transformers.utils import logging as its_logging

    its_logging.set_verbosity_error()
    its_logging.disable_progress_bar()


def _quantization(kind: str, device: torch.device) -> Any:
    if device.type != "cuda":
        raise UserError("--quantization needs a GPU with CUDA: leave it out on a CPU")
    try:
        __import__("bitsandbytes")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "--quantization needs the package bitsandbytes, which is not installed: pip install bitsandbytes"
        ) from error
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_8bit=kind == "8bit", load_in_4bit=kind == "4bit")


def _is_broken_device(error: Exception) -> bool:
    """Whether CUDA itself failed, after which nothing works in this process."""
    return "CUDA error" in str(error)
