"""Draws attention weights over the photo for each word.

Shapes: T words, N = rows x columns positions of the encoder's grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from captionlib.config import SquareMode

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

_GAP = 14
_PAPER, _INK, _MUTED = (255, 255, 255), (29, 32, 33), (105, 110, 114)
_GLOW = np.array([255.0, 176.0, 60.0])


def attention_map(
    image: Image.Image,
    words: Sequence[str],
    weights: np.ndarray,
    *,
    grid: tuple[int, int] | None = None,
    square: SquareMode = "squash",
    panel_side: int = 224,
    max_columns: int = 6,
) -> Image.Image:
    """Draw the photo, and for each word the photo lit where the decoder attended (Xu et al. 2015, figure 3).

    Within a panel, brightness is the weight relative to the largest weight of that word, so brightness cannot be
    compared between panels. The percentage beside the word is its largest weight (uniform attention is 1 / N).

    Args:
        image: upright RGB.
        words: T words, with `<eos>` if it is wanted.
        weights: (T, N), not negative, positions in row-major order from the top left. Average heads first.
        grid: (rows, columns) of the encoder's positions; None: a square grid.
        square: square mode of the preprocessing, so that the map is aligned.
        panel_side: longer side of a panel, in pixels.
        max_columns: number of panels per row.

    Returns:
        An RGB image; `.save("attention.png")` writes it.

    Raises:
        ValueError: shapes do not match, or weights are negative or not finite.
    """
    from PIL import Image, ImageDraw

    if panel_side < 16 or max_columns < 1:
        raise ValueError(f"panel_side must be at least 16 pixels, got {panel_side}; max_columns 1, got {max_columns}")
    maps = _maps(np.asarray(weights, dtype=np.float64), words, grid)
    photo = image.convert("RGB")
    scale = panel_side / max(photo.size)
    photo = photo.resize(
        (max(1, round(photo.width * scale)), max(1, round(photo.height * scale))), Image.Resampling.LANCZOS
    )
    font_size = max(11, round(panel_side / 14))
    label_height = round(font_size * 1.9)
    num_panels = len(words) + 1
    num_columns = min(max_columns, num_panels)
    num_rows = math.ceil(num_panels / num_columns)
    picture = Image.new(
        "RGB",
        (
            num_columns * (photo.width + _GAP) + _GAP,
            num_rows * (photo.height + label_height + _GAP) + _GAP,
        ),
        _PAPER,
    )
    draw = ImageDraw.Draw(picture)
    panels = [photo] + [_lit(photo, _over_photo(grid_map, photo.size, square)) for grid_map in maps]
    labels = [("", "")] + [(word, f"{weight.max():.0%}") for word, weight in zip(words, maps, strict=True)]
    for number, (panel, (word, percent)) in enumerate(zip(panels, labels, strict=True)):
        row, column = divmod(number, num_columns)
        left = _GAP + column * (photo.width + _GAP)
        top = _GAP + row * (photo.height + label_height + _GAP)
        picture.paste(panel, (left, top))
        _write(
            draw,
            (left, top + photo.height + round(0.7 * label_height)),
            photo.width,
            word,
            percent,
            font_size,
        )
    return picture


def _maps(weights: np.ndarray, words: Sequence[str], grid: tuple[int, int] | None) -> np.ndarray:
    """Check the weights and reshape them to (T, rows, columns)."""
    if weights.ndim != 2 or len(weights) != len(words):
        raise ValueError(
            f"expected weights of shape ({len(words)}, N) for {len(words)} words, got {weights.shape}; "
            "average the heads of multi-head attention first"
        )
    num_positions = weights.shape[1]
    if grid is None:
        side = math.isqrt(num_positions)
        grid = (side, side)
    if num_positions < 1 or grid[0] * grid[1] != num_positions:
        raise ValueError(f"{num_positions} positions are no grid of {grid[0]} x {grid[1]}: set grid")
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise ValueError("attention weights must be finite and not negative")
    return weights.reshape(-1, *grid)


def _over_photo(grid_map: np.ndarray, size: tuple[int, int], square: SquareMode) -> np.ndarray:
    """Scale the (rows, columns) map of a word to brightness (height, width) in [0, 1] for the photo of `size`."""
    from PIL import Image

    width, height = size
    if square == "squash":
        shown = (width, height)
    else:
        side = min(size) if square == "center_crop" else max(size)
        shown = (side, side)
    relative = grid_map / (grid_map.max() or 1.0)
    enlarged = Image.fromarray(relative.astype(np.float32)).resize(shown, Image.Resampling.BICUBIC)
    # The square and the photo have the same centre; areas that the encoder did not see stay dark.
    over = Image.new("F", size, 0.0)
    over.paste(enlarged, ((width - shown[0]) // 2, (height - shown[1]) // 2))
    return np.clip(np.asarray(over), 0.0, 1.0)


def _lit(photo: Image.Image, brightness: np.ndarray) -> Image.Image:
    """Render the photo dim and grey where `brightness` is 0, warm and in full colour where it is 1."""
    from PIL import Image

    colour = np.asarray(photo, dtype=np.float64)  # (H, W, 3)
    grey = colour.mean(axis=2, keepdims=True)
    light = brightness[..., None]
    dim = 0.30 * (0.75 * grey + 0.25 * colour)
    warm = 0.80 * colour + 0.20 * _GLOW
    return Image.fromarray(np.clip(dim + light * (warm - dim), 0, 255).round().astype(np.uint8))


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], width: int, word: str, percent: str, size: int) -> None:
    """Write the word at the left and the percentage at the right of a panel, on one base line at `place`."""
    from PIL import ImageFont

    left, base_line = place
    draw.text((left, base_line), word, fill=_INK, font=ImageFont.load_default(size), anchor="ls")
    small = ImageFont.load_default(max(9, round(size * 0.75)))
    draw.text((left + width, base_line), percent, fill=_MUTED, font=small, anchor="rs")
