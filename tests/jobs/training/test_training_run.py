"""A run's folder, before Ray is started."""

from __future__ import annotations

import json
from pathlib import Path

from jobs.training.run import clean


def test_checkpoints_that_are_not_whole_are_deleted(tmp_path: Path) -> None:
    for name in ("checkpoint_1", "checkpoint_2", "checkpoint_3", "best"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.pt").write_bytes(b"x")
    record = {"checkpoint_results": [{"checkpoint_dir_name": "checkpoint_2"}]}
    (tmp_path / "checkpoint_manager_snapshot.json").write_text(json.dumps(record))
    clean(str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint_2", "best", "checkpoint_manager_snapshot.json"}


def test_there_is_nothing_to_clean_before_the_first_run(tmp_path: Path) -> None:
    clean(str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
