"""The predictor: captions image files, bytes or PIL images with a checkpoint. It owns preprocessing, engine and device.

Shapes: B images, S side of the square input, N positions, D feature width.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from captionlib.captioners.base import Caption, FinishReason
from captionlib.captioners.from_features import Captioner
from captionlib.checkpoints import Checkpoint, load_checkpoint, load_weights, resolve_checkpoint
from captionlib.confidence import Evidence, evidence, mean_feature_norms
from captionlib.config import EngineKind, SearchConfig
from captionlib.decoders import build_decoder
from captionlib.encoders import build_encoder
from captionlib.engines.base import EncoderEngine
from captionlib.engines.build import build_engine
from captionlib.errors import UserError
from captionlib.images.decode import decode_image, to_rgb
from captionlib.images.decode_pixels import decode_pixels
from captionlib.images.pixels import to_pixels
from captionlib.search import Hypothesis
from captionlib.text import detokenize
from captionlib.word_detector import DetectedWords, WordDetector

if TYPE_CHECKING:
    from PIL.Image import Image


class Predictor:
    """Captions images with a checkpoint. May be called from several threads.

    >>> predictor = Predictor.from_checkpoint()
    >>> predictor.caption(["photo.jpg"])[0][0].text    # doctest: +SKIP
    'a cat is sitting on a chair'

    Args:
        checkpoint: settings, words and weights.
        device: default: CUDA where there is one.
        num_threads: of the engine on a CPU and of PyTorch, in the whole process; default: as many as PyTorch uses.
        engine: how the encoder is run (see `captionlib.engines.build`).

    Raises:
        captionlib.checkpoints.CheckpointError: weights, words and settings do not fit each other.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str | None = None,
        num_threads: int | None = None,
        engine: EngineKind = "auto",
    ) -> None:
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        self.preprocessing = checkpoint.model.encoder.preprocessing
        self.fingerprint = checkpoint.fingerprint
        self.search = checkpoint.search
        self.vocabulary = checkpoint.vocabulary
        self.calibration = checkpoint.confidence
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        settings = checkpoint.model
        encoder = None if settings.encoder.kind == "vectors" else build_encoder(settings.encoder)
        decoder = build_decoder(settings.decoder, settings.encoder.feature_dim, len(self.vocabulary))
        detector = None
        if settings.detector is not None:
            detector = WordDetector(settings.detector, settings.encoder.feature_dim, len(self.vocabulary))
        load_weights(Captioner(encoder, decoder, detector), checkpoint.weights, "the checkpoint")
        # The engine holds its own form of the encoder, so the captioner is built without one to save memory.
        self.captioner = Captioner(None, decoder, detector).to(self.device).eval()
        self._one_search = contextlib.nullcontext() if self.device.type == "cpu" else threading.Lock()
        if self.device.type == "cuda":
            # TF32 makes the matrix products of the decoder several times faster.
            torch.set_float32_matmul_precision("high")
        self.engine: EncoderEngine | None = None
        if encoder is not None:
            self.engine = build_engine(
                encoder,
                self.preprocessing,
                fingerprint=checkpoint.fingerprint,
                device=self.device,
                num_threads=num_threads or torch.get_num_threads(),
                kind=engine,
                int8_graph=checkpoint.int8_encoder,
            )

    @classmethod
    def from_checkpoint(
        cls,
        source: str | Path | None = None,
        *,
        device: str | None = None,
        num_threads: int | None = None,
        engine: EngineKind = "auto",
    ) -> Predictor:
        """Load a checkpoint.

        Args:
            source: a folder, a URL, or None for the checkpoint that comes with the project (see
                `captionlib.checkpoints.resolve_checkpoint`).
        """
        checkpoint = load_checkpoint(resolve_checkpoint(source))
        return cls(checkpoint, device=device, num_threads=num_threads, engine=engine)

    def caption(
        self,
        images: Sequence[Image | str | os.PathLike[str] | bytes],
        search: SearchConfig | None = None,
        image_ids: Sequence[int] | None = None,
    ) -> list[list[Caption]]:
        """Caption images: PIL images, paths, or bytes of image files. They form one batch; split long lists.

        Args:
            search: default: that of the checkpoint.
            image_ids: keys of the random numbers of samples (`SearchConfig.seed`); default: position in the batch.

        Returns:
            The captions of each image, best first.

        Raises:
            ImageDecodeError: an image cannot be decoded.
        """
        if not images:
            return []
        pixels = np.stack([self._to_pixels(image) for image in images])
        return self.caption_pixels(pixels, search, image_ids)

    def caption_pixels(
        self, pixels: np.ndarray, search: SearchConfig | None = None, image_ids: Sequence[int] | None = None
    ) -> list[list[Caption]]:
        """Caption a batch of preprocessed images.

        Args:
            pixels: uint8 (B, S, S, 3) in [0, 255], as made by `captionlib.images.pixels.to_pixels`.
        """
        if len(pixels) == 0:
            return []
        return self._caption(self._encode(pixels), search, image_ids)

    def caption_features(
        self, features: np.ndarray, search: SearchConfig | None = None, image_ids: Sequence[int] | None = None
    ) -> list[list[Caption]]:
        """Caption a batch of features (B, N, D), made by `features` or ready-made."""
        return self._caption(torch.from_numpy(np.asarray(features, dtype=np.float32)), search, image_ids)

    def attention_map(self, image: Image | str | os.PathLike[str] | bytes, search: SearchConfig | None = None) -> Image:
        """Caption an image, and draw for each word where the decoder attended; return an RGB image.

        Raises:
            ImageDecodeError: the image cannot be decoded.
            UserError: the decoder has no attention, or the features have no positions.
        """
        from captionlib.report import attention_map

        opened = self._open(image)
        features = self._encode(to_pixels(opened, self.preprocessing)[np.newaxis]).to(self.device)
        found = self.captioner.caption_features(features, search or self.search, keep_attention=True)[0][0]
        if found.attention is None or features.shape[1] == 1:
            raise UserError(
                "there is nothing to draw: this model looks at the image as a whole (its decoder has no attention, "
                "or its features have one position)"
            )
        words = self.vocabulary.decode(found.tokens)
        weights = found.attention.float().cpu().numpy()
        return attention_map(opened, words, weights, square=self.preprocessing.square)

    def features(self, pixels: np.ndarray) -> np.ndarray:
        """Run only the encoder: uint8 (B, S, S, 3) → float32 (B, N, D)."""
        return self._encode(pixels).cpu().numpy()

    def _encode(self, pixels: np.ndarray) -> Tensor:
        if self.engine is None:
            raise UserError(
                "this checkpoint was trained on ready-made vectors, and does not know which encoder made them: "
                "use caption_features, or train with the encoder stated"
            )
        return self.engine(pixels)

    def _caption(
        self, features: Tensor, search: SearchConfig | None, image_ids: Sequence[int] | None
    ) -> list[list[Caption]]:
        found, detected = self._find(features, search, image_ids, keep_steps=self.calibration is not None)
        limit = (search or self.search).max_tokens
        if self.calibration is None:
            return [[self._read(hypothesis, limit) for hypothesis in of_image] for of_image in found]
        evidence_of = iter(self._evidence(features, found, detected))
        return [[self._read(hypothesis, limit, next(evidence_of)) for hypothesis in of_image] for of_image in found]

    def evidence(self, pixels: np.ndarray, search: SearchConfig | None = None) -> list[tuple[str, Evidence]]:
        """Caption a batch of pixels; return the best caption of each image and what confidence is computed from.

        Args:
            pixels: uint8 (B, S, S, 3), values in [0, 255], as `captionlib.images.pixels.to_pixels` makes them.
            search: default: the checkpoint's own.

        Returns:
            B texts, each with its evidence.

        Raises:
            ValueError: the model gave an image no caption.
        """
        features = self._encode(pixels)
        found, detected = self._find(features, search, None, keep_steps=True)
        best = [of_image[:1] for of_image in found]
        collected = [one for one in self._evidence(features, best, detected) if one is not None]
        if len(collected) < len(best):
            raise ValueError(f"the model gave {len(best) - len(collected)} of {len(best)} images no caption")
        return [(detokenize(one.words), one) for one in collected]

    def _evidence(
        self, features: Tensor, found: Sequence[Sequence[Hypothesis]], detected: Sequence[DetectedWords | None]
    ) -> list[Evidence | None]:
        """Collect the evidence about all captions of a batch, image by image; None about one of no probability."""
        return [
            evidence(hypothesis, self.vocabulary.decode(hypothesis.tokens), norm, words)
            if hypothesis.word_log_probs
            else None
            for of_image, norm, words in zip(found, mean_feature_norms(features), detected, strict=True)
            for hypothesis in of_image
        ]

    def _find(
        self, features: Tensor, search: SearchConfig | None, image_ids: Sequence[int] | None, *, keep_steps: bool
    ) -> tuple[list[list[Hypothesis]], Sequence[DetectedWords | None]]:
        """Search; return the captions of each image, and what the word detector says about it."""
        # Two concurrent searches would only share the device. Meanwhile a second thread can encode its batch.
        with self._one_search:
            features = features.to(self.device)
            search = search or self.search
            # Steps are kept for the evidence, of which the detected words are a part.
            detected = self.captioner.detect(features) if keep_steps or search.reranks else None
            found = self.captioner.caption_features(
                features, search, image_ids, keep_steps=keep_steps, detected=detected
            )
        return found, detected or [None] * len(found)

    def _read(self, hypothesis: Hypothesis, limit: int, found: Evidence | None = None) -> Caption:
        words = self.vocabulary.decode(hypothesis.tokens)
        confidence = None
        if self.calibration is not None and found is not None:
            confidence = self.calibration(found)
        reason: FinishReason = "length" if len(words) >= limit else "end"
        return Caption(detokenize(words), hypothesis.log_prob, len(words), reason, confidence)

    def _to_pixels(self, image: Image | str | os.PathLike[str] | bytes) -> np.ndarray:
        """uint8 (S, S, 3)."""
        if isinstance(image, (str, os.PathLike)):
            image = Path(image).read_bytes()
        if isinstance(image, bytes):
            return to_pixels(decode_pixels(image, target_side=self.preprocessing.size).pixels, self.preprocessing)
        return to_pixels(self._open(image), self.preprocessing)

    def _open(self, image: Image | str | os.PathLike[str] | bytes) -> Image:
        if isinstance(image, (str, os.PathLike)):
            image = Path(image).read_bytes()
        if isinstance(image, bytes):
            return decode_image(image, target_side=self.preprocessing.size).image
        from PIL import ImageOps

        return to_rgb(ImageOps.exif_transpose(image))
