"""How coded layers compute: `dense`, `factored` or `lazy`; `auto` chooses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from quasitile.errors import InputError
from quasitile.runtime.decode import named
from quasitile.runtime.lazy import Cache
from quasitile.runtime.linear import TiledMatrix, tiled_matrices

EXECUTIONS = ("auto", "dense", "factored", "lazy")
ROOM = 0.8  # of the free memory that `auto` uses
FEWER = 0.6  # of the dense weight's numbers: with at most so many, factors are faster


@dataclass(frozen=True)
class Execution:
    """How the coded layers of a model compute.

    Attributes:
        name: `dense` decodes every weight at load. `factored` multiplies with what is stored. `lazy` decodes when a
            weight is used. `auto` takes factors where they are few, dense weights where there is memory for them, else
            what fits.
        cache_bytes: What `lazy` may keep decoded; with `auto`, what is left of the memory.
        memory_bytes: What `auto` may use; nothing for what is free.
    """

    name: str = "dense"
    cache_bytes: int = 0
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.name not in EXECUTIONS:
            raise InputError(f"execution={self.name!r} is not one of {', '.join(EXECUTIONS)}")
        if self.cache_bytes < 0:
            raise InputError(f"cache_bytes={self.cache_bytes} must be at least 0")


_default: ContextVar[Execution | None] = ContextVar("execution", default=None)
_process = Execution()  # where no context says anything else; for whole programs, whose threads have contexts of their own


@contextmanager
def execution(name: str, cache_bytes: int = 0, memory_bytes: int | None = None) -> Iterator[None]:
    """Models that are loaded inside, by Transformers too, compute in this way; see `Execution`."""
    token = _default.set(Execution(name, cache_bytes, memory_bytes))
    try:
        yield
    finally:
        _default.reset(token)


def set_default(wanted: Execution) -> None:
    """Models that are loaded from now on compute in this way."""
    global _process
    _process = wanted


def set_execution(model: nn.Module, name: str, cache_bytes: int = 0, memory_bytes: int | None = None) -> str:
    """Change how the coded layers of a loaded model compute; see `Execution`.

    Returns:
        The execution that `auto` chose, or the one that was given.

    Raises:
        InputError: Unknown execution, or stored bytes that contradict themselves, with the layer's name.
    """
    return apply(model, Execution(name, cache_bytes, memory_bytes))


def apply(model: nn.Module, wanted: Execution | None = None) -> str:
    """Let the coded layers of a model, loaded but perhaps not yet decoded, compute as is wanted or by default."""
    wanted = wanted or _default.get() or _process
    matrices = tiled_matrices(model)
    for name, matrix in matrices.items():
        with named(name):
            matrix.release()
    if wanted.name == "auto":
        wanted = chosen(matrices, wanted.memory_bytes)
    cache = Cache(wanted.cache_bytes)
    for name, matrix in matrices.items():
        with named(name):
            matrix.name = name
            matrix.execute(wanted.name, cache)
    return wanted.name


def chosen(matrices: dict[str, TiledMatrix], memory_bytes: int | None) -> Execution:
    """What `auto` means for a model whose stored bytes are already in memory."""
    if not matrices:
        return Execution("dense")
    sizes = [matrix.sizes() for matrix in matrices.values()]
    dense, factored = (sum(size[key] for size in sizes) for key in ("dense_bytes", "factored_bytes"))
    device = next(iter(matrices.values())).payload.device
    room = int(ROOM * free_bytes(device)) if memory_bytes is None else memory_bytes
    if factored <= FEWER * dense and not any(size["residual"] for size in sizes) and factored <= room:
        return Execution("factored")
    if dense <= room:
        return Execution("dense")
    return Execution("factored") if factored <= room else Execution("lazy", room)


def free_bytes(device: torch.device) -> int:
    """Memory that could be taken on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
        return 1024 * int(lines["MemAvailable"].split()[0])
    return 8 << 30  # where the system does not say


def resident_bytes(model: nn.Module) -> int:
    """Bytes of all tensors that a loaded model holds, stored ones and decoded ones; shared memory once."""
    tensors = [*model.parameters(), *model.buffers()]
    matrices = tiled_matrices(model).values()
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values()) + sum(matrix.lazy.held_bytes for matrix in matrices if matrix.lazy is not None)
