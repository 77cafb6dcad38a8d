"""A CUDA device that is simulated on a CPU, for tests of what goes wrong between two devices.

Its tensors say `cuda:0`, are computed on the CPU, and refuse to meet CPU tensors and NumPy as real ones do. That finds
a forgotten `.to(device)`, `.cpu()` or `device=`. It says nothing about speed, bfloat16, CUDA graphs or streams, and
autograd's backward pass does not run on it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

_CUDA = torch.device("cuda", 0)
# Operations that take tensors of both devices on a real GPU.
_MAY_MIX = {"_to_copy", "copy_", "index", "index_put_", "index_put", "_index_put_impl_"}


class Simulated(torch.Tensor):
    """A tensor on the simulated device, around the CPU tensor that holds its values."""

    @staticmethod
    def __new__(cls, values):
        with torch.inference_mode(False):  # or a view of a parameter could not be made in inference mode
            made = torch.Tensor._make_wrapper_subclass(
                cls,
                values.shape,
                strides=values.stride(),
                storage_offset=values.storage_offset(),
                dtype=values.dtype,
                device=_CUDA,
            )
        made.values_on_cpu = values  # type: ignore[attr-defined]
        return made

    def __init__(self, values):
        pass

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[override]
        return _run(func, args, kwargs or {})

    def numpy(self, *args, **kwargs):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    __array__ = numpy

    def tolist(self):
        return self.values_on_cpu.tolist()  # type: ignore[attr-defined]


class Mode(TorchDispatchMode):
    """Within it, `device="cuda"` makes simulated tensors."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


@contextlib.contextmanager
def simulated_cuda() -> Iterator[torch.device]:
    """A context in which there is a CUDA device: gives that device."""
    from captionlib import devices

    # Process-wide, and harmless without a device: modules can take parameters of another tensor class.
    torch._C._ensureCUDADeviceGuardSet()
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    devices.constant.cache_clear()
    with contextlib.ExitStack() as stack:
        replaced = {
            "_lazy_init": lambda: None,
            "is_available": lambda: True,
            "is_bf16_supported": lambda *args, **kwargs: True,
            "set_device": lambda *args: None,
            "current_device": lambda: 0,
            "get_rng_state": lambda *args: torch.zeros(16, dtype=torch.uint8),
            "set_rng_state": lambda *args: None,
        }
        for name, value in replaced.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        stack.enter_context(mock.patch.object(torch.Tensor, "pin_memory", lambda tensor: tensor))
        torch._C._set_only_lift_cpu_tensors(True)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            stack.enter_context(Mode())
            yield _CUDA
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(before)
            torch._C._set_only_lift_cpu_tensors(False)
            devices.constant.cache_clear()


def _run(func, args, kwargs):
    name = func._schema.name.split("::")[1]
    if name == "_has_compatible_shallow_copy_type":  # a module asks whether its parameter can become such a tensor
        return False
    tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
    here = [t for t in tensors if isinstance(t, Simulated)]
    elsewhere = [t for t in tensors if not isinstance(t, Simulated) and t.dim() > 0]
    may_mix = name in _MAY_MIX and not (name.startswith("index") and not isinstance(args[0], Simulated))
    if here and elsewhere and not may_mix:
        raise RuntimeError(f"Expected all tensors to be on the same device, but found cuda:0 and cpu: {func}")
    on_cuda = bool(here)
    if kwargs.get("device") is not None:
        on_cuda = torch.device(kwargs["device"]).type == "cuda"
        kwargs = {**kwargs, "device": torch.device("cpu")}
    elif name == "copy_":
        on_cuda = isinstance(args[0], Simulated)
    if kwargs.get("pin_memory"):
        kwargs = {**kwargs, "pin_memory": False}
    args, kwargs = tree_map(lambda t: t.values_on_cpu if isinstance(t, Simulated) else t, (args, kwargs))  # type: ignore[attr-defined]
    if name == "_thnn_fused_lstm_cell":  # an operation that exists on CUDA only
        gates = args[0] + args[1] + (args[3] + args[4] if len(args) > 4 else 0)
        i, f, g, o = gates.chunk(4, 1)
        c = f.sigmoid() * args[2] + i.sigmoid() * g.tanh()
        out = (o.sigmoid() * c.tanh(), c, gates)
    else:
        out = func(*args, **kwargs)
    same = {id(t.values_on_cpu): t for t in here}  # type: ignore[attr-defined]

    def wrap(x):
        if not isinstance(x, torch.Tensor) or isinstance(x, Simulated):
            return x
        if id(x) in same:  # what is on the CPU already is not copied there
            return same[id(x)] if on_cuda else x
        return Simulated(x) if on_cuda else x

    return tree_map(wrap, out)
