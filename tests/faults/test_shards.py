"""Runs with --shard in a real object store, and a merge that is killed: every image once, in the end."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from .harness import PATIENCE, ROOT, Output, Place, run_job
from .inputs import is_broken, upload_photos
from .processes import Session, wait_until
from .servers import OWNER, ObjectStore

pytestmark = pytest.mark.slow

PHOTOS, OF = 120, 3


def test_a_merge_in_a_bucket_that_is_killed(store: ObjectStore, model: Path, place: Place) -> None:
    upload_photos(store.client(), "photos", "divided", PHOTOS)
    source, output = "s3://photos/divided", Output(store.client(), "captions", "divided")
    flags = ["--no-report", "--images-per-chunk", "8"]
    for k in range(1, OF + 1):
        code, log = run_job(
            place, OWNER.env(store.url), source, output.url, model, *flags, "--shard", f"{k}/{OF}", name=f"shard-{k}"
        )
        assert code == 0, log

    def merge(*more: str) -> Session:
        command = [sys.executable, "-m", "jobs.merge", output.url, *more]
        return Session(command, env=place.env(OWNER.env(store.url)), log=place.folder / "merge.log", cwd=ROOT)

    killed = merge()
    assert wait_until(lambda: bool(output.chunks()), PATIENCE)
    killed.end()  # perhaps only after it has written run.json, as its last act
    code, log = run_job(place, OWNER.env(store.url), source, output.url, model, *flags, name="too early")
    assert (code == 2 and "jobs.merge" in log) or "run.json" in output.objects(), log

    merge("--delete-shards").finish(PATIENCE)

    assert not [key for key in output.objects() if key.startswith("shard-") or key == "merge.json"]
    rows = output.rows()
    assert [row["image_id"] for row in rows] == list(range(PHOTOS))
    assert len({row["path"] for row in rows}) == PHOTOS
    broken = sum(is_broken(number) for number in range(PHOTOS))
    record = json.loads(output.read("run.json"))
    assert record["images"] == {"planned": PHOTOS, "captioned": PHOTOS - broken, "failed": broken}
    code, log = run_job(place, OWNER.env(store.url), source, output.url, model, *flags, name="after")
    assert code == 0, log
    assert "Nothing to do" in log
