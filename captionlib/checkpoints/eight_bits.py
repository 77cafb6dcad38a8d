"""Matrices as 8-bit integers with one scale per row, as a compressed checkpoint stores them.

Only storage changes: `load_checkpoint` converts them back to floating point. A matrix `decoder.X`, (rows, columns), is
stored as

    decoder.X          int8 (rows, columns), in [-127, 127]
    decoder.X:scale    float32 (rows, 1), greater than 0

and stands for their product. This is the symmetric ("absmax") quantization of Dettmers et al., "LLM.int8(): 8-bit
Matrix Multiplication for Transformers at Scale" (2022), section 2.1, applied to weights alone. As in section 3.1, each
output of a linear layer, which is a row of a PyTorch matrix, has its own scale. An element changes by at most half a
scale, 1/254 of the largest element of its row.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from captionlib.checkpoints.files import damaged
from captionlib.checkpoints.weights import check_finite

if TYPE_CHECKING:  # the driver of a job reads checkpoints and should start without importing PyTorch
    from torch import Tensor

PREFIXES = ("decoder.", "detector.")
"""Parts of a captioner whose matrices may be stored so. The encoder is not one of them: features that were extracted
with it are matched by the fingerprint of its float16 weights.
"""
_SCALE = ":scale"
_LIMIT = 127
_MIN_ELEMENTS = 4096  # smaller matrices would save almost nothing
_MIN_COLUMNS = 8  # with 4 columns, the scale of a row takes all the room that its elements save


def compress(weights: dict[str, Tensor], prefixes: tuple[str, ...] = PREFIXES) -> dict[str, Tensor]:
    """Replace large matrices of floating point numbers by 8-bit integers and scales.

    Args:
        weights: tensors as in model.safetensors. Matrices that are compressed already, and all other tensors, stay as
            they are.
        prefixes: beginnings of the names of the parts to compress.

    Raises:
        UserError: an element of a matrix is infinite or NaN.
    """
    stored: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name.startswith(prefixes) and not name.endswith(_SCALE) and _is_large_matrix(value):
            check_finite(name, value)
            stored[name], stored[name + _SCALE] = to_integers(value)
        else:
            stored[name] = value
    return stored


def decompress(weights: dict[str, Tensor], path: Path, prefixes: tuple[str, ...] = PREFIXES) -> dict[str, Tensor]:
    """Replace 8-bit integers and scales by float32 matrices; all other tensors stay as they are.

    Args:
        weights: tensors of the file `path`.
        prefixes: beginnings of the names of the parts that may be compressed.

    Raises:
        CheckpointError: a scale does not fit its matrix, or there is one without the other.
    """
    import torch

    restored: dict[str, Tensor] = {}
    for name, value in weights.items():
        if not name.startswith(prefixes):
            restored[name] = value
        elif name.endswith(_SCALE):
            matrix = name.removesuffix(_SCALE)
            if matrix not in weights:
                raise damaged(path, f"it holds {name} and no {matrix}")
        elif name + _SCALE in weights:
            scale = weights[name + _SCALE]
            if value.dtype != torch.int8 or value.ndim != 2:
                raise damaged(path, f"{name} has a scale and is no matrix of 8-bit integers")
            if scale.dtype != torch.float32 or scale.shape != (len(value), 1):
                raise damaged(
                    path,
                    f"{name + _SCALE} is {scale.dtype} of shape {tuple(scale.shape)} instead of torch.float32 of "
                    f"shape {(len(value), 1)}",
                )
            if not bool((scale.isfinite() & (scale > 0)).all()):
                raise damaged(path, f"{name + _SCALE} holds values that are not finite or not above 0")
            restored[name] = value.float() * scale
        elif value.dtype == torch.int8 and value.ndim == 2:
            raise damaged(path, f"{name} holds 8-bit integers and there is no {name + _SCALE}")
        else:
            restored[name] = value
    return restored


def to_integers(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Round finite (rows, columns) of floating point → int8 (rows, columns), float32 scales (rows, 1).

    A scale is the largest absolute value of its row, divided by 127. It is 1 for a row of zeros.
    """
    import torch

    matrix = matrix.float()
    scale = matrix.abs().amax(dim=1, keepdim=True) / _LIMIT  # (rows, 1)
    scale = scale.masked_fill(scale == 0, 1.0)
    integers = (matrix / scale).round().clamp(-_LIMIT, _LIMIT).to(torch.int8)  # (rows, columns)
    return integers.contiguous(), scale.contiguous()


def _is_large_matrix(value: Tensor) -> bool:
    return (
        value.is_floating_point()
        and value.ndim == 2
        and value.numel() >= _MIN_ELEMENTS
        and value.shape[1] >= _MIN_COLUMNS
    )
