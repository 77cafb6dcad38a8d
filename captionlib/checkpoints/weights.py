"""The weights of a module, as checkpoints store them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from captionlib.checkpoints.files import CheckpointError
from captionlib.errors import UserError

if TYPE_CHECKING:  # the driver of a job reads checkpoints and should start without importing PyTorch
    from torch import Tensor, nn

# Batch norm uses this counter only for a cumulative average, which no network here uses.
_NOT_STORED = "num_batches_tracked"


def stored_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a module that a checkpoint stores."""
    return {name: value for name, value in module.state_dict().items() if not name.endswith(_NOT_STORED)}


def check_finite(name: str, value: Tensor) -> None:
    """Check a tensor that a checkpoint is to store.

    Raises:
        UserError: an element is infinite or NaN.
    """
    if not bool(value.isfinite().all()):
        raise UserError(f"the weights {name} are not finite: take an earlier state of the training")


def weights_fingerprint(module: nn.Module) -> str:
    """Return 16 hexadecimal digits that identify a module's weights, rounded to float16 as in checkpoints.

    An encoder keeps it when it is saved and loaded. A decoder does not if its checkpoint is compressed.
    """
    digest = hashlib.sha256()
    for name, value in sorted(stored_tensors(module).items()):
        digest.update(name.encode())
        digest.update((value.half() if value.is_floating_point() else value).contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def load_weights(module: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Copy weights into a module that its checkpoint's settings describe.

    Raises:
        CheckpointError: a parameter is missing, left over, or of another shape.
    """
    own = {name: tuple(value.shape) for name, value in stored_tensors(module).items()}
    given = {name: tuple(value.shape) for name, value in weights.items()}
    missing, extra = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    other = [f"{name} {given[name]} instead of {own[name]}" for name in own if given.get(name, own[name]) != own[name]]
    differences = {"missing": missing, "left over": extra, "of another shape": other}
    found = "; ".join(f"{kind}: {', '.join(names[:3])}" for kind, names in differences.items() if names)
    if found:
        raise CheckpointError(
            f"{where}: the weights do not fit its settings and vocabulary ({found}): it was edited, or put together "
            "from several checkpoints; copy it again as a whole"
        )
    module.load_state_dict(weights, strict=False)
