"""Coded matrices in the place of a module's parameter.

Plain linear layers and embeddings become `TiledLinear` and `TiledEmbedding`. Any other module (a
scaled embedding, a convolution, a stack of experts) stays what it is, with its own `forward`; only
its parameter becomes a property that gives the decoded tensor. That executes densely.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from quasitile.runtime.layers import KINDS
from quasitile.runtime.linear import TiledEmbedding, TiledLinear, TiledMatrix


class TiledStack(nn.ModuleList):
    """The coded matrices of one parameter (E, M, N)."""

    def __init__(self, matrices: list[TiledMatrix]) -> None:
        super().__init__(matrices)
        self._stacked = torch.empty(0)
        self._views: list[Tensor] = []

    def weight(self) -> Tensor:
        """All weights (E, M, N). Packed matrices keep no second copy: theirs are views of the stack."""
        matrices: list[Any] = list(self)
        weights = [matrix.weight() for matrix in matrices]
        if any(matrix.trainable or matrix.loading or not matrix.dense.numel() for matrix in matrices):
            return torch.stack(weights)
        if [id(weight) for weight in weights] != [id(view) for view in self._views]:
            with torch.inference_mode(False):
                self._stacked = torch.stack(weights)
                self._views = list(self._stacked.unbind())
            for matrix, view in zip(matrices, self._views, strict=True):
                matrix.dense = view
        return self._stacked


def substitute(model: nn.Module, path: str, parameter: str, kind: str, matrices: list[TiledMatrix]) -> None:
    """Put coded matrices where a model has a dense parameter.

    Args:
        model: Changed in place.
        path: Of the module.
        parameter: Its name in the module.
        kind: See `KINDS`.
        matrices: One, or one an expert.
    """
    module: Any = model.get_submodule(path)
    parent, _, leaf = path.rpartition(".")
    if kind == "linear" and type(module).forward is nn.Linear.forward:
        setattr(model.get_submodule(parent), leaf, TiledLinear(matrices[0], module.bias))
        return
    if kind == "embedding" and type(module).forward is nn.Embedding.forward:
        setattr(model.get_submodule(parent), leaf, TiledEmbedding(matrices[0], module.padding_idx))
        return
    shape = module._parameters.pop(parameter).shape
    if kind == "experts":
        if not hasattr(module, "matrices"):
            module.matrices = nn.ModuleDict()
        module.matrices[parameter] = TiledStack(matrices)
    else:
        module.matrix = matrices[0]
    module.coded_parameters = {**getattr(module, "coded_parameters", {}), parameter: kind}
    module.coded_shapes = {**getattr(module, "coded_shapes", {}), parameter: shape}
    module.__class__ = with_coded_parameter(type(module), parameter)


@cache
def with_coded_parameter(original: type[nn.Module], parameter: str) -> type[nn.Module]:
    """A module's class with one parameter computed from coded matrices."""

    def tensor(module: Any) -> Tensor:
        kind = module.coded_parameters[parameter]
        weight = (module.matrices[parameter] if kind == "experts" else module.matrix).weight()
        return KINDS[kind].parameter(weight, module.coded_shapes[parameter])

    name = original.__name__ if original.__name__.startswith("Tiled") else f"Tiled{original.__name__}"
    return type(name, (original,), {parameter: property(tensor), "__module__": original.__module__})


def coded_parameters(model: nn.Module) -> Iterator[tuple[str, str, list[TiledMatrix]]]:
    """Name in the configuration, kind and matrices of every coded parameter of a model."""
    module: Any
    for path, module in model.named_modules():
        for parameter, kind in getattr(module, "coded_parameters", {}).items():
            if kind == "experts":
                yield f"{path}.{parameter}", kind, list(module.matrices[parameter])
            else:
                yield path, kind, [module.matrix]
