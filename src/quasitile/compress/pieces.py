"""A model run one piece at a time: what comes before its stack of layers, each layer, and what comes after.

The model's own `forward` does the work, so masks, positions and anything else that a layer is given are
what they are in the whole model; only the layers that are not wanted are passed over, and its table
and its head are read row by row and never held.

B batch, T tokens, D hidden, M rows of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from quasitile.compress.calibrate import without_cache
from quasitile.compress.observe import Sums, note_embedding
from quasitile.compress.stack import Captured, NotAStack, Stack, forwards
from quasitile.runtime.skeleton import Skeleton

CHUNK_NUMBERS = 1 << 24  # of a weight that is read row by row, in memory at a time
RESIDENT_NUMBERS = 1 << 28  # of a layer; the linear layers of a larger one are read row by row too


class Pieces(Stack):
    """The pieces of a model.

    Args:
        skeleton: The model, without its weights.

    Raises:
        NotAStack: It has no stack of layers that can be run one after another.
    """

    def __init__(self, skeleton: Skeleton) -> None:
        self.skeleton, self.model = skeleton, skeleton.model
        self._unloaded: dict[str, str] = {}
        head = self.model.get_output_embeddings()
        self.head = next((name for name, module in self.model.named_modules() if module is head), None) if head else None
        if self.head is not None and self._head_key() is None:
            self.head = None
        super().__init__(self.model)
        inside = set(skeleton.under(self.path))
        names = {module: name for name, module in self.model.named_modules()}
        self.embedding_name = names[self.embedding]
        apart = {f"{self.embedding_name}.weight"} | ({f"{self.head}.weight"} if self.head else set())
        matrices = {skeleton.tensor_name(layer) for layer in skeleton.layers} | skeleton.converted
        self.outside = [name for name in skeleton.sources if name in matrices and name not in inside | apart]
        if skeleton.direct(self.embedding_name) is None:
            raise NotAStack(f"the table of {self.embedding_name} is not stored as it is used")

    def _head_key(self) -> str | None:
        """The tensor in the files that is the head's weight."""
        assert self.head is not None
        layer = self.skeleton.tied.get(self.head, self.head)
        return self.skeleton.direct(layer) if layer in self.skeleton.layers else None

    def others(self) -> dict[nn.Module, Callable]:
        """The head, and matrices of a very large layer, read row by row."""
        found = {} if self.head is None else {self.model.get_submodule(self.head): self._from_rows(self.head, self._head_key())}
        return found | {self.model.get_submodule(name): self._from_rows(name, key) for name, key in self._unloaded.items()}

    def _from_rows(self, name: str, key: str | None) -> Callable:
        """The `forward` of a linear layer whose weight stays on disk."""
        module: Any = self.model.get_submodule(name)
        return lambda x: _FromRows.apply(x, self.skeleton.reader, key, module.bias)

    def load_layer(self, index: int) -> None:
        """Read the weights of a layer; of one that is very large only those that are not used row by row."""
        skeleton, path = self.skeleton, f"{self.path}.{index}"
        names = skeleton.under(path)
        mine = {name: place for name, place in skeleton.layers.items() if name.startswith(f"{path}.")}
        if sum(place.weight.numel() for place in mine.values()) > RESIDENT_NUMBERS:
            plain = [
                n for n, place in mine.items() if place.kind == "linear" and type(place.module).forward is nn.Linear.forward
            ]
            self._unloaded = {name: key for name in plain if (key := skeleton.direct(name)) is not None}
            names = [name for name in names if name.removesuffix(".weight") not in self._unloaded]
        skeleton.load(names)

    def drop(self) -> None:
        """Forget the weights of the piece."""
        self._unloaded = {}
        self.skeleton.drop()

    def before(self, batch: Tensor, sums: Sums | None = None, rows_of: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """What the first layer is given (B, T, D); the weights outside the stack must be loaded.

        Args:
            batch: (B, T) token ids.
            sums: Of the table; then gradients flow back to its output and are added.
            rows_of: Rows of another table by their numbers, instead of those on disk.
        """
        key = self.skeleton.direct(self.embedding_name)
        assert key is not None
        ids, places = batch.unique(return_inverse=True)
        if rows_of is not None:
            rows = rows_of(ids)
        else:
            rows = torch.cat([self.skeleton.reader.rows(key, int(row), int(row) + 1) for row in ids]).to(batch.device).float()
        kept = self.embedding._parameters["weight"], self.embedding.padding_idx
        original = type(self.embedding).forward
        plain = original is nn.Embedding.forward

        def table(_token_ids: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            self.embedding._parameters["weight"] = nn.Parameter(rows, requires_grad=sums is not None)
            self.embedding.padding_idx = None
            try:
                out = original(self.embedding, places, *args, **kwargs)
            finally:
                self.embedding._parameters["weight"], self.embedding.padding_idx = kept
            if sums is not None:
                note_embedding(sums, batch, None if plain else rows[places], out)
            return out

        def passed(_index: int, hidden: Tensor, _args: tuple, _kwargs: dict) -> Tensor:
            raise Captured(hidden)

        try:
            with self._stubbed(passed, self.in_tuples), forwards({self.embedding: table}):
                self.model(batch, **without_cache(self.model))
        except Captured as captured:
            return captured.args[0]
        raise AssertionError("no layer was called")

    def after(self, batch: Tensor, hidden: Tensor) -> Any:
        """The model's outputs from what the last layer gave (B, T, D); the weights outside the stack must be loaded."""
        last = len(self.layers) - 1
        return self.run(batch, lambda index, given, _args, _kwargs: hidden if index == last else given)


def largest_layer(skeleton: Skeleton, path: str) -> int:
    """Numbers in the matrices of the largest layer of a stack."""
    sizes: dict[str, int] = {}
    for name, place in skeleton.layers.items():
        if name.startswith(f"{path}."):
            index = name.removeprefix(f"{path}.").partition(".")[0]
            sizes[index] = sizes.get(index, 0) + place.weight.numel()
    return max(sizes.values(), default=0)


class _FromRows(torch.autograd.Function):
    """`x W^T + b` with the rows of W read from disk as they are needed, forwards and backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, reader: Any, key: str, bias: Tensor | None) -> Tensor:
        ctx.reader, ctx.key = reader, key
        num_rows, width = reader.shape(key)
        out = x.new_empty(*x.shape[:-1], num_rows)
        for start, stop in _chunks(num_rows, width):
            out[..., start:stop] = x @ reader.rows(key, start, stop).to(x).T
        return out if bias is None else out + bias

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = gradients
        num_rows, width = ctx.reader.shape(ctx.key)
        out = gradient.new_zeros(*gradient.shape[:-1], width)
        for start, stop in _chunks(num_rows, width):
            out += gradient[..., start:stop] @ ctx.reader.rows(ctx.key, start, stop).to(gradient)
        return out, None, None, None


def _chunks(num_rows: int, width: int) -> Iterator[tuple[int, int]]:
    size = max(1, CHUNK_NUMBERS // width)
    return ((start, min(start + size, num_rows)) for start in range(0, num_rows, size))
