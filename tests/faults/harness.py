"""The caption job as a user starts it, and its output as a stranger reads it: with nothing of the job's own code."""

from __future__ import annotations

import abc
import contextlib
import io
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from .processes import Session

ROOT = Path(__file__).parents[2]
NUM_PHOTOS = int(os.environ.get("FAULT_PHOTOS", "5000"))
NUM_KILLS = int(os.environ.get("FAULT_KILLS", "24"))
SEED = int(os.environ.get("FAULT_SEED", "0"))
PATIENCE = 1_800
"""Seconds after which a run counts as hung."""


@dataclass(frozen=True)
class Place:
    """Where a job runs: its folders and its environment."""

    folder: Path
    """For logs, a home without settings, and the engine's cache."""
    ray_folder: Path
    """Ray's; its path is short, because of the sockets in it."""

    @classmethod
    def make(cls, folder: Path) -> Place:
        (folder / "home").mkdir(parents=True, exist_ok=True)
        return cls(folder, Path(tempfile.mkdtemp(prefix="ray-")))

    def env(self, more: Mapping[str, str]) -> dict[str, str]:
        """The whole environment of a job: nothing is inherited that could change what happens."""
        return {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "HOME": str(self.folder / "home"),
            "CAPTIONLIB_CACHE": str(self.folder / "cache"),
            "RAY_TMPDIR": str(self.ray_folder),
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            **more,
        }


def start_job(
    place: Place, env: Mapping[str, str], source: str, output: str, model: Path, *flags: str, name: str = "job"
) -> Session:
    """`python -m jobs.caption SOURCE OUTPUT` in a session of its own; what it prints is in its `log`."""
    command = [sys.executable, "-m", "jobs.caption", source, output, "--model", str(model), *flags]
    return Session(command, env=place.env(env), log=place.folder / f"{name}.log", cwd=ROOT)


def run_job(
    place: Place, env: Mapping[str, str], source: str, output: str, model: Path, *flags: str, name: str = "job"
) -> tuple[int, str]:
    """Run the job to its end: its exit code, and all that it printed."""
    job = start_job(place, env, source, output, model, *flags, name=name)
    try:
        code = job.wait(PATIENCE)
    finally:
        job.end()
    return code, job.log.read_text(errors="replace")


# --- the output -------------------------------------------------------------------------------------------------


class Rows(abc.ABC):
    """A job's output, wherever it is."""

    @property
    @abc.abstractmethod
    def url(self) -> str:
        """What the job takes as its output."""

    @abc.abstractmethod
    def objects(self) -> dict[str, Any]:
        """Name below the output → when it was last written."""

    @abc.abstractmethod
    def read(self, key: str) -> bytes:
        """The bytes of one of them."""

    def chunks(self) -> dict[range, Any]:
        """The image ids of each file of captions → when it was last written."""
        found = {}
        for key, written in self.objects().items():
            match = re.fullmatch(r"captions/captions-(\d{12})-(\d{12})\.parquet", key)
            if match is not None:
                found[range(int(match[1]), int(match[2]) + 1)] = written
        return found

    def num_rows(self) -> int:
        """Images that have a row, by the files' names."""
        return len({image_id for ids in self.chunks() for image_id in ids})

    def rows(self) -> list[dict[str, Any]]:
        """All rows of all files, by image id."""
        found: list[dict[str, Any]] = []
        for key in self.objects():
            if key.startswith("captions/"):
                found += pq.read_table(io.BytesIO(self.read(key))).to_pylist()
        return sorted(found, key=lambda row: row["image_id"])


@dataclass(frozen=True)
class Output(Rows):
    """An output in a bucket."""

    client: Any
    bucket: str
    prefix: str

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"

    def objects(self) -> dict[str, Any]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=f"{self.prefix}/")
        items = [item for page in pages for item in page.get("Contents", [])]
        return {item["Key"][len(self.prefix) + 1 :]: item["LastModified"] for item in items}

    def read(self, key: str) -> bytes:
        data: bytes = self.client.get_object(Bucket=self.bucket, Key=f"{self.prefix}/{key}")["Body"].read()
        return data


@dataclass(frozen=True)
class LocalOutput(Rows):
    """An output in a folder."""

    folder: Path

    @property
    def url(self) -> str:
        return str(self.folder)

    def objects(self) -> dict[str, Any]:
        found = {}
        for path in self.folder.rglob("*.parquet"):
            with contextlib.suppress(FileNotFoundError):  # it was replaced while we looked
                if not path.name.startswith("."):
                    found[str(path.relative_to(self.folder))] = path.stat().st_mtime
        return found

    def read(self, key: str) -> bytes:
        return (self.folder / key).read_bytes()


def assert_same_captions(rows: list[dict[str, Any]], undisturbed: list[dict[str, Any]]) -> None:
    """Every image once, with the ids, the captions and the errors of the undisturbed run."""
    assert [row["image_id"] for row in rows] == list(range(len(undisturbed)))
    for row, expected in zip(rows, undisturbed, strict=True):
        # Probabilities may differ in their last digits, since batches are made up differently.
        row, expected = (rounded(r) for r in (row, expected))
        assert row == expected


def rounded(row: dict[str, Any]) -> dict[str, Any]:
    """The row as far as it must be the same whatever batch the image was in."""
    if row["caption"] is None:
        return row
    captions = [(caption["text"], round(caption["log_prob"], 2)) for caption in row["captions"]]
    return {**row, "log_prob": round(row["log_prob"], 2), "captions": captions}
