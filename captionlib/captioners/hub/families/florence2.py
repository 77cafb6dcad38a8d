"""Florence-2 (Xiao et al. 2024), such as florence-community/Florence-2-base. The prompt is one of its tasks."""

from __future__ import annotations

from captionlib.captioners.hub.families.base import Family
from captionlib.errors import UserError

TASKS = ("<CAPTION>", "<DETAILED_CAPTION>", "<MORE_DETAILED_CAPTION>")
"""Tasks whose answer is a caption."""


class Florence2(Family):
    """The processor replaces the task by a sentence."""

    noun = "Florence-2"
    default_prompt = TASKS[0]
    max_tokens = 128
    cpu_batch_size = 4
    gpu_batch_size = 32

    def check_prompt(self, prompt: str | None) -> None:
        """Accept only tasks whose answer is a caption."""
        if prompt not in TASKS:
            raise UserError(f"--prompt of Florence-2 is one of its tasks, {', '.join(TASKS)}; got {prompt!r}")


FAMILY = Florence2()
