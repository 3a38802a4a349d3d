"""Training in shards by PyTorch's FSDP2: each process keeps its part of every parameter, gradient and optimiser state.

A decoder layer's coefficients are whole only while that layer computes; the matrices are assembled from
them then. Everything outside the stack of layers (table, head, norms) is another such unit.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from quasitile.compress.stack import find_stack
from quasitile.runtime import TiledMatrix


class Shards:
    """A model whose parameters are shared out among processes.

    Args:
        model: Loaded whole by every process, the same; what is to be trained is trainable already. Its parameters
            become shards, so an optimiser has to be made after this.
        num: Processes.

    Raises:
        NotAStack: The model has no stack of layers.
    """

    def __init__(self, model: Any, num: int) -> None:
        # Logits are a view of what the head gives; nothing here writes into them.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)
        device = next(model.parameters()).device
        mesh = init_device_mesh(device.type, (num,))
        empty = {parameter for parameter in model.parameters() if not parameter.numel()}  # nothing to share out
        _, layers = find_stack(model)
        for module in (*layers, model):  # none is kept whole after a forward pass, which may have no backward pass
            fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=empty)
        self.model, self.units = model, [*layers, model]
        self._unit_of: dict[TiledMatrix, nn.Module] = {}
        for unit in self.units:
            for module in unit.modules():
                if isinstance(module, TiledMatrix):
                    self._unit_of.setdefault(module, unit)
                    module.in_shards = True

    @contextmanager
    def whole(self, matrix: TiledMatrix) -> Iterator[None]:
        """The parameters of a matrix as they are without shards; all processes must ask for it."""
        with unsharded(self._unit_of[matrix]):
            yield

    @torch.no_grad()
    def collect(self, into: nn.Module | None) -> None:
        """Copy all parameters into a model of the same parameters without shards; all processes must call this.

        Args:
            into: The model, or nothing in processes that only take part.
        """
        mine = dict(self.model.named_parameters())
        target = dict(into.named_parameters()) if into is not None else {}
        for unit in self.units:
            with unsharded(unit):
                for name, parameter in self.model.named_parameters():
                    if name in target and not isinstance(parameter, DTensor):
                        target.pop(name).copy_(parameter)
        assert into is None or not target, f"{len(target)} of {len(mine)} parameters were not collected"


@contextmanager
def unsharded(module: nn.Module) -> Iterator[None]:
    """The parameters of one unit as they are without shards."""
    assert isinstance(module, FSDPModule)
    module.unshard()
    try:
        yield
    finally:
        module.reshard()


def local(values: Tensor) -> Tensor:
    """What this process keeps of a tensor: rows of a shard, or all of it."""
    return values.to_local() if isinstance(values, DTensor) else values
