"""The table of captions at the end of a job."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.batch import summary
from jobs.batch.job import RunResult


@pytest.mark.parametrize(
    ("confidences", "heading", "first", "second"),
    [((0.876, None), "confidence", "0.88", ""), ((None, None), "log p", "-8.3", "-9.1")],
)
def test_confidence_is_shown_where_there_is_one(
    confidences: tuple[float | None, float | None],
    heading: str,
    first: str,
    second: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows: list[dict[str, Any]] = [
        {"path": f"{name}.jpg", "caption": "a dog runs", "log_prob": log_prob, "confidence": confidence}
        for name, log_prob, confidence in zip(("a", "b"), (-8.26, -9.14), confidences, strict=True)
    ]
    monkeypatch.setattr(summary, "_sample", lambda *_, **__: rows)
    result: Any = RunResult  # it is only passed on
    summary.print_captions(result, 2)
    printed = capsys.readouterr().out
    assert heading in printed
    table = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines()]
    assert [cells for cells in table if cells] == [["a.jpg", "a dog runs", first], ["b.jpg", "a dog runs", second]]
