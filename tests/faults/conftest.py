"""One object store, one set of photos and one undisturbed run for all tests of this folder."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .harness import NUM_PHOTOS, Output, Place, run_job
from .inputs import make_checkpoint, upload_photos
from .servers import OWNER, ObjectStore, object_store


@pytest.fixture(scope="session", autouse=True)
def _servers_end_with_us() -> Iterator[None]:
    """`kill` on the tests takes the servers down as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    # Where a shell started us in the background, it has SIGINT ignored, and so would each job that we start.
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, before)
    signal.signal(signal.SIGINT, interrupt)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with object_store(tmp_path_factory.mktemp("store")) as server:
        yield server


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place.make(tmp_path_factory.mktemp("place"))
    yield made
    shutil.rmtree(made.ray_folder, ignore_errors=True)


@pytest.fixture(scope="session")
def photos(store: ObjectStore) -> str:
    """The URL of NUM_PHOTOS photos."""
    upload_photos(store.client(), "photos", "all", NUM_PHOTOS)
    return "s3://photos/all"


@pytest.fixture(scope="session")
def undisturbed(store: ObjectStore, photos: str, model: Path, place: Place) -> list[dict[str, Any]]:
    """The rows of a run of which nothing was in the way."""
    output = Output(store.client(), "captions", "undisturbed")
    code, log = run_job(place, OWNER.env(store.url), photos, output.url, model, "--no-report", name="undisturbed")
    assert code == 0, log
    rows = output.rows()
    captions = {row["caption"] for row in rows}
    assert len(captions) > len(rows) / 4, "captions that are all alike would prove nothing"
    return rows
