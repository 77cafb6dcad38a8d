"""Search: finds the most probable captions, or draws samples, with a `step` function over words.

The search is independent of the model. A step is `step(tokens (R,), state, memory) -> (log_probs (R, V), state)`, where
`memory` belongs to images (dimension 0: image) and `state` to hypotheses (dimension 0: row). Rows of one image are
adjacent; with the first word their number grows from one to the beam width. An image whose captions are complete leaves
the batch, and no image affects the captions of another.

Shapes: B images still searched, K rows per image (beams or samples), R = B * K rows, V words, L words so far.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from captionlib.config import SearchConfig
from captionlib.search.beam import Beam
from captionlib.search.constraints import Constraints
from captionlib.search.rows import Hypothesis, Memory, Rows, State
from captionlib.search.sampling import Sampling

__all__ = ["Hypothesis", "Memory", "State", "Step", "search"]

Step = Callable[[Tensor, State, Memory], tuple[Tensor, State]]

WORDS_BETWEEN_WAITS = {"cuda": 4}
"""Number of words between queries to the device for finished images. A query blocks the host, which cannot queue
further work meanwhile. A finished image stays in the batch until then, and its captions do not change."""


def search(
    step: Step,
    start: State,
    memory: Memory,
    config: SearchConfig,
    image_ids: Sequence[int] | None = None,
    *,
    keep_attention: bool = False,
    keep_steps: bool = False,
) -> list[list[Hypothesis]]:
    """Find `config.num_captions` captions per image, best first.

    Every caption ends in `<eos>`: after `max_tokens` words there is nothing else to choose. A model that gives no
    allowed word a probability leaves its hypotheses unfinished; one that answers NaN leaves a single hypothesis
    whose log-probability is NaN.

    Args:
        step: see the module's docstring. What it returns is not written to.
        start: the state before `<bos>`, one row per image.
        memory: dimension 0 of every tensor is the image.
        image_ids: what samples are keyed by, with `config.seed`: an image's samples are the same whatever the
            batch. Position in the batch where not given.
        keep_attention: collect `state["attention"]` (R, N) at each word.
        keep_steps: collect the log-probability of each word and the entropy of the distribution it was chosen from.

    Returns:
        Per image at least one caption. Samples may repeat each other. The captions of a beam differ, so that
        groups of a diverse beam which found the same ones leave fewer than were asked for.

    Raises:
        ValueError: `image_ids` are not as many as the images.
    """
    rows = Rows(start, memory, keep_attention=keep_attention, keep_steps=keep_steps)
    num_images = len(rows.images)
    if image_ids is not None and len(image_ids) != num_images:
        raise ValueError(f"{len(image_ids)} image_ids for {num_images} images: give one per image")
    if num_images == 0:
        return []
    constraints = Constraints(config, rows.device)
    method: Beam | Sampling
    if config.method == "sample":
        method = Sampling(config, range(num_images) if image_ids is None else image_ids, rows.device)
    else:
        method = Beam(config)
    wait = WORDS_BETWEEN_WAITS.get(rows.device.type, 1)
    for position in range(config.max_tokens + 1):
        log_probs, rows.state = step(rows.tokens[:, -1], rows.state, rows.memory)  # (R, V)
        rows.note_entropies(log_probs.float())
        log_probs = constraints(log_probs.float(), rows.tokens, position)
        rows.advance(*method.choose(log_probs.unflatten(0, (-1, rows.width)), rows, position))
        is_last = position == config.max_tokens
        if (position % wait == wait - 1 or is_last) and not rows.release(method.done(rows), config):
            break
    return rows.captions()
