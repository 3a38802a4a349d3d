"""The order of a model's axes (design: "Order"): permutations and rotations that leave its function unchanged.

A raw weight matrix has no order in its index. Feed-forward channels and the value channels inside a head may be
permuted, and in RMSNorm decoders the residual stream may be rotated, the rotation being absorbed into the matrices that
read and write it: none of it takes a byte. What reads what is found by watching one forward pass, not by names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from quasitile.compress.calibrate import Moments, without_cache
from quasitile.errors import InputError

TOLERANCE = 1e-3  # of the logits' standard deviation: what rounding in float32 may change
Axis = tuple[Any, int]  # a parameter, and which of its axes is meant


@dataclass
class Stream:
    """Who reads and writes the residual stream of an RMSNorm decoder.

    Attributes:
        width: D.
        norms: Each norm, the scale it applies (D,), and the axes of what reads its output.
        writers: Axes along which the stream is written: embedding, outputs of attention and feed-forward, their biases.
    """

    width: int
    norms: list[tuple[nn.Module, Tensor, list[Axis]]] = field(default_factory=list)
    writers: list[Axis] = field(default_factory=list)


def energy_order(moment: Tensor) -> Tensor:
    """Channels by their energy in a second moment (N, N), largest first; of equal ones, the first."""
    return moment.diagonal().argsort(descending=True, stable=True)


def fiedler_order(moment: Tensor) -> Tensor:
    """Channels along the Fiedler vector of their correlation, so that those which go together stand together.

    The vector belongs to the second smallest eigenvalue of the Laplacian of `|correlation|`; exact, in float64. Of both
    directions it takes the one with more energy in the first half.
    """
    power = moment.double().diagonal().clamp_min(1e-30)
    weights = (moment.double() / power.sqrt() / power.sqrt()[:, None]).abs().fill_diagonal_(0)
    laplacian = torch.diag(weights.sum(1)) - weights
    if len(power) < 3:
        return energy_order(moment)
    order = torch.linalg.eigh(laplacian)[1][:, 1].argsort(stable=True)
    half = len(order) // 2
    return order.flip(0) if power[order[:half]].sum() < power[order[-half:]].sum() else order


def principal_axes(moment: Tensor) -> Tensor:
    """Orthonormal eigenvectors (N, N) of a second moment as columns, largest first; float64."""
    return torch.linalg.eigh(moment.double())[1].flip(1)


ORDERS: dict[str, Callable[[Tensor], Tensor]] = {"energy": energy_order, "spectral": fiedler_order, "rotate": energy_order}


def reorder(model: Any, moments: dict[str, Moments], order: str, probe: Tensor) -> None:
    """Give the axes of a model an order, in place. Its function stays what it was; `moments` do not fit it any more.

    Feed-forward channels are sorted by `order`; value channels inside each key-value head are sorted by energy, or
    rotated to their principal axes; with `rotate`, so is the residual stream.

    Args:
        model: In memory, float32. With `rotate`, an output head that shares the embedding's matrix gets its own.
        moments: By the name of the matrix.
        order: See `ORDERS`.
        probe: (B, T) token ids for a forward pass before and one after, which must agree.

    Raises:
        InputError: The order is impossible for this model.
    """
    before = logits_of(model, probe)
    with torch.no_grad():
        if order == "rotate":
            rotate_stream(model, read_stream(model, probe), moments)
        for name, axes in feed_forward_channels(model):
            if name in moments:
                _turn_all(axes, ORDERS[order](moments[name].inputs))
        for name, values, outputs, num_heads, head_dim in value_heads(model):
            if name in moments:
                turn_values(values, outputs, moments[name].inputs, num_heads, head_dim, rotated=order == "rotate")
    difference = float((logits_of(model, probe) - before).abs().max() / before.std().clamp_min(1e-30))
    if not difference <= TOLERANCE:
        raise InputError(
            f"order={order} would change what this model computes (by {difference:.1g} of its outputs' spread): its parts "
            "are joined in a way that is not known here; set order to none"
        )


def logits_of(model: Any, token_ids: Tensor) -> Tensor:
    """Logits, or the last hidden states of a model that has no head."""
    with torch.no_grad():
        outputs = model(token_ids, **without_cache(model))
    logits = getattr(outputs, "logits", None)
    return (outputs.last_hidden_state if logits is None else logits).float()


def turned(tensor: Tensor, axis: int, change: Tensor) -> Tensor:
    """A tensor with one axis permuted (`change` a row of indices) or rotated (`change` orthonormal, new axes as columns)."""
    if change.ndim == 1:
        return tensor.index_select(axis, change)
    return (tensor.movedim(axis, -1).double() @ change.double()).movedim(-1, axis).to(tensor.dtype)


def _turn_all(axes: list[Axis], change: Tensor) -> None:
    """Turn axes of length n or, where two halves of n stand one after the other, both halves alike."""
    for parameter, axis in axes:
        parts = parameter.data.split(len(change), axis)
        parameter.data = torch.cat([turned(part, axis, change) for part in parts], axis).contiguous()


# The residual stream.


def read_stream(model: Any, probe: Tensor) -> Stream:
    """Find who reads and writes the residual stream, by watching one forward pass.

    Raises:
        InputError: Something in the model is not invariant to a rotation, or is not known here.
    """
    table = model.get_input_embeddings()
    width = int(table.weight.shape[1])
    norms = [module for module in model.modules() if _is_norm(module, width)]
    for norm in norms:
        _check_rms(norm, width)
    with watched_readers(model, norms) as readings:
        logits_of(model, probe)
    stream = Stream(width, writers=[(table.weight, 1)])
    reading = {reader for readers in readings.values() for reader in readers}
    for norm in norms:
        if not readings.get(norm):
            raise _impossible("the output of one of its norms goes back into the residual stream")
        axes = [axis for reader in readings[norm] for axis in _reading_axes(reader, width)]
        stream.norms.append((norm, norm(torch.ones(width)).detach(), axes))
    for module in model.modules():
        if module not in reading:
            stream.writers += _writing_axes(module, width)
        elif any(parameter.ndim == 3 for parameter in module.parameters(recurse=False)):
            stream.writers += _expert_axes(module, width)[1]
    return stream


def rotate_stream(model: Any, stream: Stream, moments: dict[str, Moments]) -> None:
    """Fold each norm's scale into what reads it, then rotate the stream to the principal axes of what is read.

    The axes are those of the sum, over all norms, of the second moment of their outputs before their scale, each divided
    by its trace.

    Args:
        model: Changed in place.
        stream: From `read_stream`.
        moments: Of the matrices before anything was folded.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    head = untie(model)
    total = torch.zeros(stream.width, stream.width, dtype=torch.float64)
    for norm, scale, axes in stream.norms:
        axes = [(head.weight if head is not None and p is stream.writers[0][0] else p, axis) for p, axis in axes]
        known = [_moments_of(names.get(parameter, ""), moments) for parameter, _ in axes]
        for each in known[:1]:
            if each is not None:
                safe = torch.where(scale.abs() > 1e-6, scale, torch.inf).double()
                inner = each.inputs.double() / safe / safe[:, None]
                total += inner / inner.trace().clamp_min(1e-30)
        for parameter, axis in axes:
            shape = [1] * parameter.ndim
            shape[axis] = stream.width
            parameter.data *= scale.to(parameter.dtype).view(shape)
        _make_plain(norm, stream.width)
        stream.writers += axes  # read in the same axes as written
    basis = principal_axes(total)
    for parameter, axis in stream.writers:
        parameter.data = turned(parameter.data, axis, basis).contiguous()


def untie(model: Any) -> Any:
    """Give an output head that shares the embedding's matrix one of its own; it is stored and counted then.

    Returns:
        The head, or nothing where it had its own already.
    """
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is not table.weight:
        return None
    head.weight = nn.Parameter(table.weight.detach().clone(), requires_grad=table.weight.requires_grad)
    model.config.tie_word_embeddings = False
    tied = getattr(model, "all_tied_weights_keys", None)
    for name, module in model.named_modules():
        if module is head and tied:
            tied.pop(f"{name}.weight", None)
    return head


def _impossible(why: str) -> InputError:
    return InputError(f"order=rotate is impossible for this model: {why}; set order to energy, spectral or none")


def _is_norm(module: nn.Module, width: int) -> bool:
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    return weight is not None and weight.ndim == 1 and len(weight) == width


def _check_rms(norm: nn.Module, width: int) -> None:
    """A norm divides by the root mean square and applies a scale, nothing else."""
    if len(list(norm.parameters())) > 1:
        raise _impossible("it has LayerNorms, which are not invariant to rotations")
    x = torch.randn(4, width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = norm(torch.ones(width)) * x / x.square().mean(-1, keepdim=True).sqrt()
        found = norm(x)
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-4):
        raise _impossible(f"{type(norm).__name__} is no root mean square norm")


def _make_plain(norm: Any, width: int) -> None:
    """Let a norm apply a scale of 1, whether it stores the scale or what it differs from 1 by."""
    for value in (1.0, 0.0):
        norm.weight.data.fill_(value)
        if torch.allclose(norm(torch.ones(width)), torch.ones(width), atol=1e-3):
            return
    raise _impossible(f"{type(norm).__name__} cannot be given a scale of 1")


@contextmanager
def watched_readers(model: nn.Module, norms: list[nn.Module]) -> Iterator[dict[nn.Module, list[nn.Module]]]:
    """Which modules with matrices get the very output of which norm."""
    readings: dict[nn.Module, list[nn.Module]] = {}
    outputs: dict[int, tuple[nn.Module, Tensor]] = {}  # by address; held, so that no address is used twice

    def written(norm: nn.Module, _args: Any, output: Tensor) -> None:
        outputs[output.data_ptr()] = norm, output

    def read(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        first = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        norm, output = outputs.get(first.data_ptr(), (None, None)) if first is not None else (None, None)
        if norm is not None and output is not None and first is not None and first.numel() == output.numel():
            readings.setdefault(norm, []).append(module)

    handles = [norm.register_forward_hook(written) for norm in norms]
    for module in model.modules():
        if any(parameter.ndim > 1 for parameter in module.parameters(recurse=False)):
            handles.append(module.register_forward_pre_hook(read, with_kwargs=True))
    try:
        yield readings
    finally:
        for handle in handles:
            handle.remove()


def _reading_axes(module: Any, width: int) -> list[Axis]:
    """The axes along which a module with matrices reads."""
    if isinstance(module, Conv1D):
        return [(module.weight, 0)]
    if any(parameter.ndim == 3 for parameter in module.parameters(recurse=False)):
        return _expert_axes(module, width)[0]
    return [(module.weight, 1)]


def _writing_axes(module: Any, width: int) -> list[Axis]:
    """The axes along which a module that does not read the stream may write it: outputs as wide as it is."""
    if isinstance(module, nn.Linear) and module.out_features == width:
        return [(module.weight, 0), *([] if module.bias is None else [(module.bias, 0)])]
    if isinstance(module, Conv1D) and module.nf == width:
        return [(module.weight, 1), (module.bias, 0)]
    return []


def _expert_axes(module: nn.Module, width: int) -> tuple[list[Axis], list[Axis]]:
    """Reading and writing axes of stacked experts: the largest stack reads (gate and up in one), the others write."""
    stacks = sorted((p for p in module.parameters(recurse=False) if p.ndim == 3), key=lambda p: -p.numel())
    reading = [(p, 2 if p.shape[2] == width else 1) for p in stacks[:1]]
    writing = [(p, 1 if p.shape[1] == width else 2) for p in stacks[1:]]
    biases = [(p, 1) for p in module.parameters(recurse=False) if p.ndim == 2 and p.shape[1] == width]
    return reading, writing + biases


def _moments_of(parameter: str, moments: dict[str, Moments]) -> Moments | None:
    """Of the matrix that a parameter holds, or of the first expert in it."""
    return moments.get(parameter.removesuffix(".weight")) or moments.get(f"{parameter}.0")


# Channels inside a layer.


def feed_forward_channels(model: nn.Module) -> Iterator[tuple[str, list[Axis]]]:
    """Name of the matrix that reads the channels, and all axes along which they run, of every feed-forward layer.

    A feed-forward layer is a module without heads whose last matrix reads channels, and whose one or two others write
    them (gate and up, or both in one).
    """
    for path, module in model.named_modules():
        linear = {name: child for name, child in module.named_children() if isinstance(child, (nn.Linear, Conv1D))}
        if len(linear) not in (2, 3) or hasattr(module, "head_dim") or hasattr(module, "num_heads"):
            continue
        name, last = list(linear.items())[-1]
        inside, outside = _sizes(last)
        others = [child for child in linear.values() if child is not last]
        fits = (inside,) if len(others) == 2 else (inside, 2 * inside)
        fitting = all(_sizes(other)[0] == outside and _sizes(other)[1] in fits for other in others)
        if fitting and inside != outside and (len(others) == 2 or inside > outside):  # two narrow ones may be projections
            yield f"{path}.{name}".lstrip("."), [_axis(last, 1), *(a for o in others for a in (_axis(o, 0), *_bias(o)))]


def value_heads(model: nn.Module) -> Iterator[tuple[str, Any, Any, int, int]]:
    """Name of the output matrix, value and output module, number of key-value heads, and their width."""
    for path, module in model.named_modules():
        children = dict(module.named_children())
        values, outputs, head_dim = children.get("v_proj"), children.get("o_proj"), getattr(module, "head_dim", None)
        if not (isinstance(values, nn.Linear) and isinstance(outputs, nn.Linear) and isinstance(head_dim, int)):
            continue
        if values.out_features % head_dim == 0 and outputs.in_features % values.out_features == 0:
            yield f"{path}.o_proj", values, outputs, values.out_features // head_dim, head_dim


def turn_values(values: Any, outputs: Any, moment: Tensor, num_heads: int, head_dim: int, *, rotated: bool) -> None:
    """Turn the value channels inside each key-value head, alike for all query heads that share it.

    Args:
        values: Module that writes them, (heads x head_dim, ...).
        outputs: Module that reads them, (..., query heads x head_dim).
        moment: (N, N) second moment of what `outputs` reads.
        num_heads: Key-value heads.
        head_dim: Their width.
        rotated: To their principal axes; otherwise they are sorted by energy.
    """
    group = outputs.in_features // values.out_features
    for head in range(num_heads):
        mine = slice(head * head_dim, (head + 1) * head_dim)
        shared = [slice(q * head_dim, (q + 1) * head_dim) for q in range(head * group, (head + 1) * group)]
        inner = torch.stack([moment[each, each] for each in shared]).sum(0)
        change = principal_axes(inner) if rotated else energy_order(inner)
        values.weight.data[mine] = turned(values.weight.data[mine], 0, change)
        if values.bias is not None:
            values.bias.data[mine] = turned(values.bias.data[mine], 0, change)
        for each in shared:
            outputs.weight.data[:, each] = turned(outputs.weight.data[:, each], 1, change)


def _sizes(module: Any) -> tuple[int, int]:
    """How many numbers a linear module reads and writes."""
    return (module.in_features, module.out_features) if isinstance(module, nn.Linear) else (module.nx, module.nf)


def _axis(module: Any, axis: int) -> Axis:
    """The axis of outputs (0) or inputs (1) of a linear module's weight."""
    return module.weight, axis if isinstance(module, nn.Linear) else 1 - axis


def _bias(module: Any) -> list[Axis]:
    return [] if module.bias is None else [(module.bias, 0)]
