"""Reports counters of the actors to Ray's metrics, which Prometheus scrapes: images by result, seconds by step."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from captionlib.masking import masked

STEPS = ("read", "decode", "model", "write")


class Metrics:
    """Counters of this process, named ray_captionlib_… in Prometheus. Without Ray they have no effect.

    Args:
        output: folder or URL of the output, the tag that distinguishes the jobs of a cluster.
    """

    def __init__(self, output: str) -> None:
        self._counters: dict[str, Any] = {}
        ray = sys.modules.get("ray")
        if ray is None or not ray.is_initialized():
            return
        from ray.util.metrics import Counter

        made = (
            ("done", "images_done", "Images that have a caption, or features.", ()),
            ("failed", "images_failed", "Images that have an error.", ()),
            ("seconds", "seconds", "Seconds of work, by step; summed over threads.", ("step",)),
        )
        for key, name, description, tags in made:
            self._counters[key] = Counter(f"captionlib_{name}", description, ("output", *tags))
            self._counters[key].set_default_tags({"output": masked(output)})

    def count(self, receipt: Mapping[str, Any]) -> None:
        """Count a committed chunk.

        Args:
            receipt: a row of `schemas.RECEIPT`.
        """
        if not self._counters:
            return
        for name in ("done", "failed"):
            if receipt[name]:
                self._counters[name].inc(receipt[name])
        for step in STEPS:
            if receipt[f"{step}_seconds"] > 0:
                self._counters["seconds"].inc(receipt[f"{step}_seconds"], {"step": step})
