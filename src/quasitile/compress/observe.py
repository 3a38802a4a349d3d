"""What calibration sees of each matrix: sums over the tokens that pass through it.

M rows, N columns, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from quasitile.runtime import Place
from quasitile.runtime.device import CPU


class Sums:
    """Running sums of one matrix.

    Args:
        num_rows: M.
        num_columns: N.
        edges: Where the diagonal blocks of the second moments begin and end, 0 and N included; without, one block.
        shared: What finds matrices that meet the same inputs.
        device: Where the matrix is.

    Attributes:
        inputs: (N, N) sum over what meets the columns; with several blocks (K, W, W), padded with zeros.
        outputs: (M,) sums of squared gradients.
        count: Of vectors that met the columns.
        gradients: Like `inputs`, of the gradients at an embedding's output.
        frequencies: (M,) of an embedding's rows.
    """

    def __init__(
        self,
        num_rows: int,
        num_columns: int,
        edges: list[int] | None = None,
        shared: SharedInputs | None = None,
        device: torch.device = CPU,
    ) -> None:
        self.edges = edges or [0, num_columns]
        self.shared = shared
        self.outputs = torch.zeros(num_rows, device=device)
        self.count = 0
        self.frequencies = torch.zeros(num_rows, device=device)
        self._inputs: Tensor | None = None
        self._gradients: Tensor | None = None

    @property
    def inputs(self) -> Tensor:
        """See above."""
        if self._inputs is None:
            self._inputs = self._zeros()
        return self._inputs

    @inputs.setter
    def inputs(self, value: Tensor) -> None:
        self._inputs = value

    @property
    def gradients(self) -> Tensor:
        """See above."""
        if self._gradients is None:
            self._gradients = self._zeros()
        return self._gradients

    def add_inputs(self, x: Tensor, source: Tensor | None = None, count: int | None = None) -> None:
        """Add vectors (T, N), unless another matrix that meets the same ones has.

        Args:
            x: The vectors.
            source: The tensor that they are taken from, by which others are known to meet the same.
            count: How many of them count, or all.
        """
        self.count += len(x) if count is None else count
        if self.shared is None or source is None or self.shared.leader(self, source) is self:
            self._add(self.inputs, x)

    def add_gradients(self, g: Tensor) -> None:
        """Add gradients (T, N) at an embedding's output."""
        self._add(self.gradients, g)

    def _zeros(self) -> Tensor:
        width = max(stop - start for start, stop in pairwise(self.edges))
        blocks = () if len(self.edges) == 2 else (len(self.edges) - 1,)
        return torch.zeros(*blocks, width, width, device=self.outputs.device)

    def _add(self, total: Tensor, x: Tensor) -> None:
        if total.ndim == 2:
            total.addmm_(x.T, x)
            return
        for block, (start, stop) in zip(total, pairwise(self.edges), strict=True):
            part = x[:, start:stop]
            block[: stop - start, : stop - start].addmm_(part.T, part)


class SharedInputs:
    """Finds matrices that meet the same inputs, in the first batch; one of each group keeps the sum for all."""

    def __init__(self) -> None:
        self._leaders: dict[Sums, Sums] = {}
        self._seen: list[tuple[Tensor, Sums]] = []  # tensors are held, so that none can take another's place

    def leader(self, sums: Sums, source: Tensor) -> Sums:
        """The one that keeps the sum."""
        if sums not in self._leaders:
            same = (first for tensor, first in self._seen if tensor is source and first.edges == sums.edges)
            self._leaders[sums] = next(same, sums)
            self._seen.append((source, sums))
        return self._leaders[sums]

    def settle(self) -> None:
        """The first batch is over: let its tensors go."""
        self._seen.clear()

    def leader_of(self, sums: Sums) -> Sums:
        """The one that kept the sum of these."""
        leader = self._leaders.get(sums, sums)
        assert leader.count == sums.count, "two matrices met the same inputs at first and others later"
        return leader


def observe_linear(sums: Sums, _place: Place) -> Callable:
    """For `(..., N) -> (..., M)`, whichever way the weight is stored."""

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        x = _input(args, kwargs)
        _note(sums, x.detach().float().flatten(0, -2), output, lambda g: g.flatten(0, -2), x)

    return hook


def observe_convolution(sums: Sums, place: Place) -> Callable:
    """Every position is a row of (in x kernel); with groups, each group's inputs count alike."""
    convolution: Any = place.module
    mode = "constant" if convolution.padding_mode == "zeros" else convolution.padding_mode

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        x = nn.functional.pad(_input(args, kwargs).detach().float(), convolution._reversed_padding_repeated_twice, mode=mode)
        num_axes = len(convolution.kernel_size)
        x = x.unflatten(1, (convolution.groups, -1))  # (B, G, C, *space)
        for axis, (kernel, stride, dilation) in enumerate(
            zip(convolution.kernel_size, convolution.stride, convolution.dilation, strict=True), 3
        ):
            x = x.unfold(axis, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
        x = x.movedim(2, 2 + num_axes)  # (B, G, *positions, C, *kernel)
        patches = x.flatten(3 + num_axes - 1).flatten(0, -2)
        _note(sums, patches, output, lambda g: g.movedim(1, -1).flatten(0, -2))

    return hook


def observe_embedding(sums: Sums, place: Place) -> Callable:
    """How often each row is looked up, and the gradients that arrive at it, through its scale if it has one."""
    plain = type(place.module).forward is nn.Embedding.forward

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        token_ids = _input(args, kwargs)
        note_embedding(sums, token_ids, None if plain else place.weight.detach()[token_ids], output)

    return hook


def note_embedding(sums: Sums, token_ids: Tensor, rows: Tensor | None, output: Tensor) -> None:
    """Add a look-up.

    Args:
        sums: Of the table.
        token_ids: (B, T).
        rows: What the table holds for them (B, T, N), where the module scales it.
        output: (B, T, N) of the module.
    """
    sums.frequencies += torch.bincount(token_ids.flatten(), minlength=len(sums.frequencies))
    sums.count += token_ids.numel()
    scale = 1.0
    if rows is not None:
        scale = float((output.detach() * rows).sum() / rows.square().sum().clamp_min(1e-30))
    output.register_hook(lambda gradient: sums.add_gradients(scale * gradient.float().flatten(0, -2)))


OBSERVERS: dict[str, Callable[[Sums, Place], Callable]] = {
    "linear": observe_linear,
    "conv1d": observe_linear,
    "convolution": observe_convolution,
    "embedding": observe_embedding,
}


def _input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else next(iter(kwargs.values()))


def _note(sums: Sums, x: Tensor, output: Tensor, flattened: Callable[[Tensor], Tensor], source: Tensor | None = None) -> None:
    """Add inputs (T, N) now, and gradients at the outputs, `flattened` to (T, M), when they come."""
    sums.add_inputs(x, source)

    def with_gradient(gradient: Tensor) -> None:
        sums.outputs.add_(flattened(gradient.float()).square().sum(0))

    if output.requires_grad:
        output.register_hook(with_gradient)


class ExpertWatch(TorchFunctionMode):
    """Sees which expert multiplies which tokens.

    Experts are slices of one parameter, and no module is called for one of them. This watches the
    products themselves: their second factor is a view of the parameter, and where it begins says
    which expert it is. Where the rows of the stored matrix turn out to be inputs, columns meet the
    gradients and rows are priced by the inputs: damage is symmetric in the two.

    Args:
        sums: Of every expert, by the parameter they are slices of.
    """

    PRODUCTS = ("linear", "matmul", "__matmul__", "mm", "bmm")

    def __init__(self, sums: dict[Tensor, list[Sums]]) -> None:
        super().__init__()
        self.sums = {id(parameter): (parameter, each) for parameter, each in sums.items()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a product, and note it if an expert takes part."""
        output = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in self.PRODUCTS and len(args) > 1 and isinstance(args[1], Tensor):
            x, weight = args[:2]
            parameter, sums = self.sums.get(id(weight if weight._base is None else weight._base), (None, []))
            if parameter is not None:
                self._note(parameter, sums, x, weight, output, func.__name__ == "linear")
        return output

    def _note(self, parameter: Tensor, sums: list[Sums], x: Tensor, weight: Tensor, output: Tensor, linear: bool) -> None:
        stored = weight.stride()[-2:] == parameter.stride()[-2:] and weight.shape[-2:] == parameter.shape[-2:]
        flipped = weight.stride()[-2:] == parameter.mT.stride()[-2:] and weight.shape[-2:] == parameter.mT.shape[-2:]
        if not stored and not flipped:
            return  # a part of an expert
        rows_are_outputs = stored == linear
        if weight.ndim == 3:
            for expert, (mine, inputs) in enumerate(zip(sums, x, strict=True)):
                _note_expert(mine, inputs, output, expert, rows_are_outputs)
        else:
            expert = (weight.storage_offset() - parameter.storage_offset()) // parameter[0].numel()
            _note_expert(sums[expert], x, output, None, rows_are_outputs)


def _note_expert(sums: Sums, x: Tensor, output: Tensor, index: int | None, rows_are_outputs: bool) -> None:
    x = x.detach().float().reshape(-1, x.shape[-1])
    count = int(x.any(-1).sum())  # where all experts get all tokens, those of others are zero
    if rows_are_outputs:
        sums.add_inputs(x, count=count)
    else:
        sums.count += count
        sums.outputs += x.square().sum(0)

    def with_gradient(gradient: Tensor) -> None:
        flat = (gradient if index is None else gradient[index]).detach().float().reshape(-1, gradient.shape[-1])
        if rows_are_outputs:
            sums.outputs.add_(flat.square().sum(0))
        else:
            sums.add_inputs(flat, count=0)

    if output.requires_grad:
        output.register_hook(with_gradient)


@contextmanager
def separate_experts(model: Any, wanted: bool) -> Iterator[None]:
    """Let Transformers compute one expert after another, as the class is written, and not grouped."""
    if not wanted or not hasattr(model, "set_experts_implementation"):
        yield
        return
    config, key = model.config, "_experts_implementation"
    before = getattr(config, key, None)
    model.set_experts_implementation("eager")
    try:
        yield
    finally:
        if before is not None:
            model.set_experts_implementation(before)
