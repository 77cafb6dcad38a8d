"""A Ray Data job that does nothing, with one actor: no job on Ray Data starts and ends sooner.

python tests/benchmarks/empty_job.py
"""

from __future__ import annotations

import logging
from typing import Any

import ray


class Nothing:
    """What comes in goes out."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return batch


if __name__ == "__main__":
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    ray.data.range(10).map_batches(Nothing, compute=ray.data.ActorPoolStrategy(size=1)).take_all()
