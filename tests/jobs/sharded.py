"""What the tests of merging share: an output with the shards of three runs of the stub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas
from stubs import run_stub

OF = 3


def run_shards(source: Path | str, output: Path | str, **more: Any) -> None:
    """Run the job of each shard."""
    for k in range(1, OF + 1):
        run_stub(source, output, shard=f"{k}/{OF}", **more)


def rows(output: Path, folder: str = "captions") -> pandas.DataFrame:
    return pandas.read_parquet(output / folder).sort_values("image_id").reset_index(drop=True)


def record_of(output: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((output / "run.json").read_text())
    return record


def change_record(folder: Path, **values: Any) -> None:
    (folder / "run.json").write_text(json.dumps(record_of(folder) | values))


def contents(output: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The bytes of all rows and manifests of an output, and its record without what differs from merge to merge."""
    files = {str(path.relative_to(output)): path.read_bytes() for path in output.glob("[!s]*/*.parquet")}
    record = record_of(output)
    return files, record | {"runs": record["runs"][:-1], "merged": record["merged"]["rows"]}
