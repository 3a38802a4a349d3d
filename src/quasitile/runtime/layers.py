"""Where the weight matrices of a model are, found by structure, whatever the architecture.

M rows, N columns, E experts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class Kind:
    """How a parameter is seen as one or more matrices, rows being outputs where that is known.

    Attributes:
        matrix: From the parameter to its matrix (M, N), or for experts to all (E, M, N).
        parameter: Back, from what `matrix` gives and the parameter's shape.
    """

    matrix: Callable[[Tensor], Tensor]
    parameter: Callable[[Tensor, torch.Size], Tensor]


def _same(tensor: Tensor, _shape: torch.Size | None = None) -> Tensor:
    return tensor


def _transposed(tensor: Tensor, _shape: torch.Size | None = None) -> Tensor:
    return tensor.T


KINDS: dict[str, Kind] = {
    "linear": Kind(_same, _same),  # (out, in)
    "embedding": Kind(_same, _same),  # (tokens, width)
    "conv1d": Kind(_transposed, _transposed),  # Transformers' linear layer with a weight (in, out)
    "convolution": Kind(lambda tensor: tensor.flatten(1), lambda matrix, shape: matrix.reshape(shape)),  # (out, in x kernel)
    "experts": Kind(_same, _same),  # (E, M, N): a matrix an expert, as it is stored
}


@dataclass(frozen=True)
class Place:
    """One matrix of a model.

    Attributes:
        kind: See `KINDS`.
        path: Of the module that holds it.
        module: That module.
        parameter: Which of its parameters.
        index: Which expert, in a stack.
    """

    kind: str
    path: str
    module: nn.Module
    parameter: str = "weight"
    index: int | None = None

    @property
    def name(self) -> str:
        """Of the matrix: that of its module, or `MODULE.PARAMETER.INDEX` in a stack."""
        return self.path if self.index is None else f"{self.path}.{self.parameter}.{self.index}"

    @property
    def tensor(self) -> Tensor:
        """The whole parameter."""
        return getattr(self.module, self.parameter)

    @property
    def weight(self) -> Tensor:
        """The matrix (M, N), a view of the parameter."""
        matrix = KINDS[self.kind].matrix(self.tensor)
        return matrix if self.index is None else matrix[self.index]


def compressible_layers(model: Any) -> tuple[dict[str, Place], dict[str, str]]:
    """Every weight matrix of a model by name, and heads tied to the input embedding.

    Matrices are the weights of linear layers in either orientation, of convolutions (out x (in x
    kernel)), of the input embedding, and of stacks of experts: three-dimensional parameters of any
    other module. Everything else is none: norms, biases, routers (linear layers with as many
    outputs as there are experts beside them), tables of positions and token types, and what has a
    single row or column.

    Returns:
        Matrices to compress, and head name -> embedding name for heads that share its weight.
    """
    table = input_embedding(model)
    skipped = routers(model)
    found = [place for path, module in model.named_modules() if module not in skipped for place in _places(path, module, table)]
    embedding = next((place for place in found if place.kind == "embedding"), None)
    tied = {
        place.name: embedding.name
        for place in found
        if embedding is not None and place.kind == "linear" and place.tensor is embedding.tensor
    }
    return {place.name: place for place in found if place.name not in tied}, tied


def input_embedding(model: Any) -> nn.Module | None:
    """The module that tokens are read with; nothing of a plain module, or of a model that reads no tokens."""
    look = getattr(model, "get_input_embeddings", None)
    try:
        return look() if look is not None else None
    except NotImplementedError:  # what Transformers raises where there is none
        return None


def routers(model: nn.Module) -> set[nn.Module]:
    """Linear layers with as many outputs as a module beside them has experts, stacked or in a list."""
    found: set[nn.Module] = set()
    for parent in model.modules():
        children = list(parent.children())
        counts = {len(child) for child in children if isinstance(child, nn.ModuleList)}
        counts |= {len(p) for child in children for p in child.parameters(recurse=False) if p.ndim == 3}
        found |= {child for child in children if isinstance(child, nn.Linear) and child.out_features in counts}
    return found


def _places(path: str, module: nn.Module, table: nn.Module | None) -> list[Place]:
    parameters = {name: tensor for name, tensor in module.named_parameters(recurse=False, remove_duplicate=False)}
    kind = kind_of(module, table)
    if kind is not None:
        weight = parameters.get("weight")
        is_matrix = weight is not None and min(KINDS[kind].matrix(weight).shape) > 1
        return [Place(kind, path, module)] if is_matrix else []
    return [
        Place("experts", path, module, name, index)
        for name, tensor in parameters.items()
        if tensor.ndim == 3 and min(tensor.shape) > 1
        for index in range(len(tensor))
    ]


def kind_of(module: nn.Module, table: nn.Module | None) -> str | None:
    """The kind of a module with one weight matrix; nothing for any other module.

    Args:
        module: Of a model.
        table: The model's input embedding.
    """
    if module is table and isinstance(module, nn.Embedding):
        return "embedding"
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, Conv1D):
        return "conv1d"
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return "convolution"
    return None
