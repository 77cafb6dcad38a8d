"""A job whose model looks at nothing but an image's middle pixel, so that each caption is known beforehand."""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from captionlib.config import Preprocessing
from captionlib.errors import CaptionlibWarning
from captionlib.images.transforms import EncoderSquare
from jobs.batch.decode_stage import Chunk
from jobs.batch.job import BatchJob, RunResult
from jobs.batch.model_stage import ModelStage
from jobs.batch.ray_pipeline import Pipeline, as_table
from jobs.batch.run import run_batch_job
from jobs.batch.settings import BatchSettings, FaultSettings, WorkSettings
from jobs.outputs import schemas

PHOTOS = Path(__file__).parents[1] / "photos"


@dataclass(frozen=True)
class StubFactory:
    version: int = 1
    seconds_per_image: float = 0.0
    kill_once: str | None = None
    """The worker kills itself if this file is not there, after it has made it."""
    deadly_id: int | None = None
    """The worker kills itself at this image, always."""
    unanswered_id: int | None = None
    """The model has no answer for this image."""
    failing_load: bool = False
    warning: str | None = None
    """The model warns of this when it is loaded."""
    failing_ids: tuple[int, ...] = ()
    """The model raises an exception at each of these images."""

    def schemas(self) -> Mapping[str, pa.Schema]:
        return {"captions": schemas.with_metadata(schemas.CAPTIONS, {"model": f"stub {self.version}"})}

    def load(self) -> Stub:
        if self.failing_load:
            raise RuntimeError("the stub does not load")
        if self.warning is not None:
            warnings.warn(self.warning, CaptionlibWarning, stacklevel=2)
        return Stub(self)


class Stub:
    overlaps = False

    def __init__(self, factory: StubFactory) -> None:
        self.factory = factory

    def __call__(
        self, pixels: np.ndarray | Sequence[np.ndarray], image_ids: Sequence[int]
    ) -> Mapping[str, Mapping[str, pa.Array]]:
        assert isinstance(pixels, np.ndarray)
        assert len(pixels) == len(image_ids)
        marker = self.factory.kill_once
        if marker is not None and not os.path.exists(marker):
            Path(marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if set(self.factory.failing_ids) & set(image_ids):
            raise RuntimeError("the stub is broken")
        if self.factory.deadly_id in image_ids:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.factory.seconds_per_image * len(image_ids))
        middle = pixels.shape[1] // 2
        captions = [
            f"{i}: {' '.join(map(str, image[middle, middle]))}" for i, image in zip(image_ids, pixels, strict=True)
        ]
        columns: dict[str, list[Any]] = {
            "caption": captions,
            "log_prob": [-1.0] * len(captions),
            "num_tokens": [4] * len(captions),
            "finish_reason": ["end"] * len(captions),
            "confidence": [0.25] * len(captions),
            "low_confidence": [None] * len(captions),
            "captions": [[{"text": text, "log_prob": -1.0}] for text in captions],
            "error": [None] * len(captions),
        }
        if (unanswered := self.factory.unanswered_id) in image_ids and unanswered is not None:
            place = list(image_ids).index(unanswered)
            for name, column in columns.items():
                column[place] = "NotFinite: no answer" if name == "error" else None
        types = schemas.CAPTIONS
        return {"captions": {k: pa.array(v, types.field(k).type) for k, v in columns.items()}}


@dataclass(frozen=True)
class InProcessPipeline(Pipeline):
    """Both stages as plain calls."""

    def receipts(self, chunks: Sequence[Chunk]) -> Generator[dict[str, Any]]:
        worker = ModelStage(self.factory, self.outputs, self.sidecar)
        for chunk in chunks:
            yield worker(self.fetch(as_table(chunk))).to_pylist()[0]


def settings(
    given: Path | str, output: Path | str, *, work: dict | None = None, faults: dict | None = None, **more
) -> BatchSettings:
    return BatchSettings(
        input=str(given),
        output=str(output),
        work=WorkSettings(**{"images_per_chunk": 8, **(work or {})}),
        faults=FaultSettings(**{"transport_pause": 0.0, **(faults or {})}),
        **more,
    )


def stub_job(factory: StubFactory = StubFactory(), **more) -> BatchJob:
    return BatchJob(
        kind="stub",
        verb="captioned",
        folders=("captions",),
        identity={"schema_version": 1, "model": f"stub {factory.version}"},
        transform=EncoderSquare(Preprocessing(size=16)),
        factory=lambda plan: factory,
        compact=True,
        **more,
    )


def run_stub(given: Path | str, output: Path | str, factory: StubFactory = StubFactory(), **more) -> RunResult:
    return run_batch_job(stub_job(factory), settings(given, output, **more))
