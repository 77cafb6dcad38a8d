"""The predictor: images as people have them → captions as people read them. Owns transform, engine and device."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from captionlib.captioner import Captioner
from captionlib.checkpoints import DEFAULT_CHECKPOINT, Checkpoint, load_checkpoint, load_weights
from captionlib.config import SearchConfig
from captionlib.decoders import build_decoder
from captionlib.encoders import build_encoder
from captionlib.images import decode_image
from captionlib.runtime import EngineKind, build_engine
from captionlib.search import Hypothesis
from captionlib.text import detokenize
from captionlib.transforms import to_pixels

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Caption:
    """One caption of an image."""

    text: str
    log_prob: float
    """Sum of the model's log-probabilities over the words and the end, natural log."""
    num_tokens: int
    """Words, without the end."""


class Predictor:
    """Captions images with a checkpoint.

    >>> predictor = Predictor.from_checkpoint()
    >>> predictor.caption(["photo.jpg"])[0][0].text    # doctest: +SKIP
    'a cat is sitting on a chair'

    Args:
        checkpoint: settings, words and weights.
        device: default: CUDA where there is one.
        num_threads: of the encoder on a CPU; default: as many as PyTorch uses.
        engine: how the encoder is run (see `captionlib.runtime`).
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str | None = None,
        num_threads: int | None = None,
        engine: EngineKind = "auto",
    ) -> None:
        self.checkpoint = checkpoint
        self.preprocessing = checkpoint.model.encoder.preprocessing
        self.fingerprint = checkpoint.fingerprint
        self.search = checkpoint.search
        self.vocabulary = checkpoint.vocabulary
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        encoder = build_encoder(checkpoint.model.encoder)
        decoder = build_decoder(checkpoint.model.decoder, checkpoint.model.encoder.feature_dim, len(self.vocabulary))
        self.captioner = Captioner(encoder, decoder).eval()
        load_weights(self.captioner, checkpoint.weights, "the checkpoint")
        decoder.to(self.device)
        self.engine = build_engine(
            encoder,
            self.preprocessing,
            fingerprint=checkpoint.fingerprint,
            device=self.device,
            num_threads=num_threads or torch.get_num_threads(),
            kind=engine,
        )

    @classmethod
    def from_checkpoint(
        cls,
        directory: str | Path = DEFAULT_CHECKPOINT,
        *,
        device: str | None = None,
        num_threads: int | None = None,
        engine: EngineKind = "auto",
    ) -> Predictor:
        """Load a checkpoint directory; without one, the checkpoint that ships with the project."""
        return cls(load_checkpoint(directory), device=device, num_threads=num_threads, engine=engine)

    def caption(
        self,
        images: Sequence[Image | str | os.PathLike[str] | bytes],
        search: SearchConfig | None = None,
        image_ids: Sequence[int] | None = None,
    ) -> list[list[Caption]]:
        """Caption images: PIL images, paths, or the bytes of image files. One batch; cut long lists.

        Returns:
            Per image its captions, best first.

        Raises:
            ImageDecodeError: one of them is not a readable image.
        """
        if not images:
            return []
        pixels = np.stack([to_pixels(self._open(image), self.preprocessing) for image in images])
        return self.caption_pixels(pixels, search, image_ids)

    def caption_pixels(
        self, pixels: np.ndarray, search: SearchConfig | None = None, image_ids: Sequence[int] | None = None
    ) -> list[list[Caption]]:
        """Caption a batch that is already in the encoder's form.

        Args:
            pixels: uint8 (B, S, S, 3), values in [0, 255], as `captionlib.transforms.to_pixels` makes them.
            search: default: the checkpoint's own.
            image_ids: what samples are keyed by (`SearchConfig.seed`); default: position in the batch.
        """
        features = self.engine(pixels).to(self.device)
        found = self.captioner.caption_features(features, search or self.search, image_ids)
        return [[self._caption(hypothesis) for hypothesis in hypotheses] for hypotheses in found]

    def features(self, pixels: np.ndarray) -> np.ndarray:
        """The encoder alone: uint8 (B, S, S, 3) → float32 (B, N, D)."""
        return self.engine(pixels).cpu().numpy()

    def _caption(self, hypothesis: Hypothesis) -> Caption:
        words = self.vocabulary.decode(hypothesis.tokens)
        return Caption(detokenize(words), hypothesis.log_prob, len(words))

    def _open(self, image: Image | str | os.PathLike[str] | bytes) -> Image:
        if isinstance(image, (str, os.PathLike)):
            image = Path(image).read_bytes()
        if isinstance(image, bytes):
            return decode_image(image, target_side=self.preprocessing.size).image
        if image.mode == "RGB":
            return image
        # Through the decoder, so that alpha, palettes and depth are treated as in a file.
        buffer = io.BytesIO()
        image.save(buffer, format="TIFF" if image.mode in ("CMYK", "I;16") else "PNG")
        return decode_image(buffer.getvalue()).image
