"""Where models compute: a GPU where there is one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from quasitile.errors import InputError
from quasitile.progress import human_bytes, say

CPU = torch.device("cpu")


def device_of(name: str) -> torch.device:
    """The device that a setting names.

    Args:
        name: As PyTorch writes it (`cpu`, `cuda`, `cuda:1`, `xpu`, ...), or `auto`: a CUDA device where there is one, this
            process' own where `torchrun` started several, else the CPU.

    Raises:
        InputError: There is no such device here.
    """
    if name == "auto":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError, ImportError) as error:
        line = str(error).strip().partition("\n")[0]
        raise InputError(f"device={name!r} cannot be used here ({line}); give cpu, or auto to take what there is") from error
    return device


def put_on(model: Any, device: torch.device) -> RemovableHandle:
    """Move a model, and until the handle is removed whatever its forward pass is given, to a device."""
    model.to(device)
    return model.register_forward_pre_hook(lambda _, args, kwargs: moved((args, kwargs), device), with_kwargs=True)


def with_room(device: torch.device, num_bytes: int) -> torch.device:
    """The device if so much of its memory is free, else the CPU, and say so."""
    if device.type != "cuda" or (free := torch.cuda.mem_get_info(device)[0]) >= num_bytes:
        return device
    say(f"  on the CPU: {human_bytes(num_bytes)} of {device}'s memory would be needed and {human_bytes(free)} are free")
    return CPU


@contextmanager
def lent_to(model: Any, device: torch.device) -> Iterator[None]:
    """A model of the CPU on a device for a while: weights, gradients and half as much again for what is between must fit.

    Where they do not, it computes on the CPU, and says so.
    """
    device = with_room(device, int(2.5 * sum(values.numel() * values.element_size() for values in model.parameters())))
    if device.type == "cpu":
        yield
        return
    handle = put_on(model, device)
    try:
        yield
    finally:
        handle.remove()
        model.to(CPU)


def moved(value: Any, device: torch.device) -> Any:
    """A tensor, or all tensors of nested lists, tuples and dictionaries, on a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: moved(each, device) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(moved(each, device) for each in value)
    return value
