"""Whether a computation runs in Triton's kernels or in PyTorch's."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor


@cache
def _installed() -> bool:
    return find_spec("triton") is not None


def kernels_for(x: Tensor) -> ModuleType | None:
    """The kernels where a tensor is on a CUDA device, no gradient goes through it, and Triton is installed; else nothing."""
    if not x.is_cuda or (torch.is_grad_enabled() and x.requires_grad) or not _installed():
        return None
    from quasitile.runtime import kernels

    return kernels
