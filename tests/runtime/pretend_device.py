"""A device that computes on the CPU and, like a GPU, refuses to mix its tensors with those of the CPU.

Importing this registers `pretend` with PyTorch for the rest of the process, so tests do so in one of their own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree, backend_registration

NAME, CPU = "pretend", torch.device("cpu")
# As on a GPU: a copy may come from anywhere, an index may lie on the CPU.
MIXING = {"aten::copy_", "aten::_to_copy", "aten::to", "aten::index", "aten::index_put_", "aten::_index_put_impl_"}


class Module(backend_registration._DummyBackendModule):
    """What PyTorch asks a device's module."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """Of autocast, which does nothing here."""
        return [torch.bfloat16]

    def device_count(self) -> int:
        """One."""
        return 1

    def current_device(self) -> int:
        """The one."""
        return 0


class Pretending(Tensor):
    """A tensor on the device; `inner` is where its values are."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> Pretending:
        """Around a tensor of the CPU."""
        outer = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )
        outer.inner = inner
        return outer

    def tolist(self) -> Any:
        """As numbers."""
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, operator: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Compute on the CPU what is all on the device."""
        return compute(operator, args, kwargs or {})


def compute(operator: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """An operation on the inner tensors, its results on the device.

    Raises:
        RuntimeError: A tensor with dimensions lies on the CPU.
    """
    name = operator.name().partition(".")[0]
    if name == "aten::_fused_sdp_choice":  # the plain way
        return 0

    targets: list[torch.device] = []

    def inner(value: Any) -> Any:
        if isinstance(value, torch.device):
            targets.append(value)
            return CPU
        if isinstance(value, Tensor) and not isinstance(value, Pretending) and value.dim() and name not in MIXING:
            raise RuntimeError(f"{name}: a tensor {tuple(value.shape)} is on the CPU and not on the device of the others")
        return value.inner if isinstance(value, Pretending) else value

    plain, named = _pytree.tree_map(inner, args), _pytree.tree_map(inner, kwargs)
    result = operator(*plain, **named)
    if targets and targets[0].type != NAME:
        return result
    known = {id(value): arg for arg, value in zip(args, plain, strict=True) if isinstance(arg, Pretending)}

    def outer(value: Any) -> Any:  # what was changed in place stays the tensor that it was
        return known[id(value)] if id(value) in known else Pretending(value) if isinstance(value, Tensor) else value

    return _pytree.tree_map(outer, result)


def copy(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """Between the CPU and the device."""
    plain = [each.inner if isinstance(each, Pretending) else each for each in (target, source)]
    plain[0].copy_(plain[1])
    return target


backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=Module())
torch.__future__.set_swap_module_params_on_conversion(True)  # a module that is moved keeps its parameters, tied ones too
kernels, fallbacks = torch.library.Library("aten", "IMPL"), torch.library.Library("_", "IMPL")
fallbacks.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
kernels.impl("_copy_from", copy, "PrivateUse1")
kernels.impl("empty.memory_format", lambda size, dtype=None, **_: Pretending(torch.empty(size, dtype=dtype)), "PrivateUse1")
kernels.impl(
    "empty_strided", lambda *shape, dtype=None, **_: Pretending(torch.empty_strided(*shape, dtype=dtype)), "PrivateUse1"
)
