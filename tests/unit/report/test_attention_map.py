from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from captionlib import report

WHITE = Image.new("RGB", (120, 60), (255, 255, 255))


def panel(picture: Image.Image, number: int, width: int, height: int) -> np.ndarray:
    """Brightness (height, width) of a panel in the first row, in [0, 1]."""
    left = 14 + number * (width + 14)
    return np.asarray(picture.crop((left, 14, left + width, 14 + height)).convert("L")) / 255


def one_hot(position: int, num_positions: int = 4) -> np.ndarray:
    return np.eye(num_positions)[[position]]


def test_light_falls_where_the_weight_is() -> None:
    picture = report.attention_map(WHITE, ["dog"], one_hot(1), panel_side=120)
    assert panel(picture, 0, 120, 60).min() == 1  # the photo itself
    dog = panel(picture, 1, 120, 60)
    quarters = [dog[:30, :60].mean(), dog[:30, 60:].mean(), dog[30:, :60].mean(), dog[30:, 60:].mean()]
    assert np.argmax(quarters) == 1
    assert dog[5, 115] > 0.9
    assert dog[55, 5] == pytest.approx(0.30, abs=0.01)


def test_a_cropped_photo_is_dark_where_the_encoder_did_not_look() -> None:
    even = np.full((1, 4), 0.25)
    cropped = panel(report.attention_map(WHITE, ["a"], even, panel_side=120, square="center_crop"), 1, 120, 60)
    assert cropped[:, :29] == pytest.approx(0.30, abs=0.01)
    assert cropped[:, 31:89].min() > 0.9
    assert cropped[:, 91:] == pytest.approx(0.30, abs=0.01)


def test_padding_is_not_part_of_the_photo() -> None:
    # The square is 120 x 120, the photo its rows 30 to 90: of four grid rows the first, lit, is padding.
    # The photo begins half-way between the middles of a row of weight 1 (at 15) and one of weight 0 (at 45).
    weights = np.array([[1, 1, 0, 0, 0, 0, 0, 0]]) / 2
    picture = report.attention_map(WHITE, ["a"], weights, panel_side=120, square="pad", grid=(4, 2))
    padded = panel(picture, 1, 120, 60)
    assert padded[0].mean() == pytest.approx(0.30 + 0.5 * 0.67, abs=0.03)
    assert padded[15:].max() < 0.33
    squashed = panel(report.attention_map(WHITE, ["a"], weights, panel_side=120, grid=(4, 2)), 1, 120, 60)
    assert squashed[:5].min() > 0.9


def test_panels_wrap_and_fit_the_photo() -> None:
    picture = report.attention_map(WHITE, list("abcde"), np.full((5, 9), 1 / 9), panel_side=120, max_columns=3)
    label_height = (picture.height - 14 - 2 * (60 + 14)) / 2
    assert picture.width == 3 * (120 + 14) + 14
    assert 15 <= label_height <= 30


@pytest.mark.parametrize(
    ("weights", "grid", "message"),
    [
        (np.ones((2, 4)), None, r"expected weights of shape \(1, N\) for 1 words, got \(2, 4\)"),
        (np.ones((1, 8, 4)), None, "average the heads of multi-head attention first"),
        (np.ones((1, 5)), None, "5 positions are no grid of 2 x 2: set grid"),
        (np.ones((1, 6)), (2, 2), "6 positions are no grid of 2 x 2"),
        (np.full((1, 4), np.nan), None, "must be finite and not negative"),
        (-np.ones((1, 4)), None, "must be finite and not negative"),
    ],
)
def test_weights_that_are_no_map(weights: np.ndarray, grid: tuple[int, int] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        report.attention_map(WHITE, ["dog"], weights, grid=grid)
