"""Whole modules made narrower before their matrices are coded: MoDeGPT (arXiv 2408.09632).

A pair of matrices that meet inside a module is approximated together: feed-forward channels by
Nystrom's method, rotary planes of queries and keys by column selection, values and outputs by a
singular value decomposition of their product. What falls away becomes rows and columns of zeros,
which cost next to nothing in the stored model.

D width of the stream, M feed-forward channels, d width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from quasitile.codec.factors import damped_cholesky
from quasitile.compress.calibrate import Moments, without_cache
from quasitile.errors import InputError

SMOOTHNESS = 0.1  # of the layers' shares; larger makes them more alike
FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def nystrom(reader: Tensor, moment: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Keep the channels of the highest ridge leverage, and let the reader make up for the others.

    Args:
        reader: (D, M), the matrix that reads the channels.
        moment: (M, M) of the channels.
        count: How many are kept.

    Returns:
        The channels kept, in order, and the reader (D, M) with zeros in all other columns: the least
        squares estimate of what it read from what is kept.
    """
    moment = moment.double()
    ridge = moment.diagonal().mean().clamp_min(1e-30) * torch.eye(len(moment), dtype=torch.float64)
    leverage = torch.linalg.solve(moment + ridge, moment).diagonal()
    kept = leverage.argsort(descending=True, stable=True)[:count].sort().values
    lower = damped_cholesky(moment[kept][:, kept], damping=1e-6)
    estimate = torch.cholesky_solve(moment[kept], lower)  # (count, M): the pseudo-inverse times what they say of all
    thin = torch.zeros_like(reader)
    thin[:, kept] = (reader.double() @ estimate.T).to(reader.dtype)
    return kept, thin


def kept_planes(queries: Tensor, keys: Tensor, moment: Tensor, count: int) -> Tensor:
    """The coordinates of a head whose queries and keys have the largest product of norms.

    Rotary embeddings turn coordinate i with i + d/2, so both stay or go together; the norm over the
    pair does not depend on the position.

    Args:
        queries: (n, d, D) of the query heads that share the keys.
        keys: (d, D).
        moment: (D, D) of the inputs.
        count: Pairs that are kept.

    Returns:
        (2 count,) coordinates, in order.
    """
    power = torch.einsum("ndi,ij,ndj->d", queries.double(), moment.double(), queries.double())
    other = torch.einsum("di,ij,dj->d", keys.double(), moment.double(), keys.double())
    scores = (power.view(2, -1).sum(0) * other.view(2, -1).sum(0)).sqrt()
    kept = scores.argsort(descending=True, stable=True)[:count].sort().values
    return torch.cat([kept, kept + len(scores)])


def values_and_outputs(values: Tensor, outputs: Tensor, moment: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The product of values and outputs at a lower rank, best for inputs of this second moment.

    Args:
        values: (d, D).
        outputs: (n, D, d) of the query heads that share the values.
        moment: (D, D) of the inputs of the values.
        rank: Of the product.

    Returns:
        Values and outputs of the same shapes, with zeros from coordinate `rank` on.
    """
    lower = damped_cholesky(moment, damping=1e-6)
    stacked = outputs.double().flatten(0, 1)
    left, singular, right = torch.linalg.svd(stacked @ values.double() @ lower, full_matrices=False)
    rank = min(rank, len(values))
    root = singular[:rank].sqrt()
    thin_values, thin_outputs = torch.zeros_like(values), torch.zeros_like(outputs)
    whitened = root[:, None] * right[:rank]
    thin_values[:rank] = torch.linalg.solve_triangular(lower, whitened, upper=False, left=False).to(values.dtype)
    thin_outputs[..., :rank] = (left[:, :rank] * root).view(*outputs.shape[:2], rank).to(outputs.dtype)
    return thin_values, thin_outputs


def layer_shares(influence: Tensor, share: float) -> Tensor:
    """The share that each layer keeps: layers that change their input little keep less.

    What is dropped is shared out by a softmax of minus the influence over `SMOOTHNESS`; no layer
    drops more than everything but a fiftieth, and the others take over the excess.

    Args:
        influence: (L,) one minus the mean cosine between a layer's input and its output.
        share: The mean over layers.
    """
    dropped = torch.zeros_like(influence)
    weight = (-influence / SMOOTHNESS).softmax(0)
    total, most = (1 - share) * len(influence), 0.98
    free = torch.ones_like(influence, dtype=torch.bool)
    while free.any():
        proposal = weight / weight[free].sum() * (total - float(dropped[~free].sum()))
        over = free & (proposal > most)
        if not over.any():
            dropped[free] = proposal[free]
            break
        dropped[over] = most
        free &= ~over
    return 1 - dropped


@torch.no_grad()
def influence_of(model: Any, layers: list[nn.Module], windows: Tensor, batch_size: int) -> Tensor:
    """One minus the mean cosine between each layer's input and output, over tokens."""
    sums = torch.zeros(len(layers), dtype=torch.float64)

    def watch(place: int) -> Callable:
        def hook(_module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            states = output[0] if isinstance(output, tuple) else output
            sums[place] += nn.functional.cosine_similarity(args[0].float(), states.float(), dim=-1).sum().double()

        return hook

    handles = [layer.register_forward_hook(watch(place)) for place, layer in enumerate(layers)]
    try:
        for batch in windows.split(batch_size):
            model(batch, **without_cache(model))
    finally:
        for handle in handles:
            handle.remove()
    return 1 - sums / windows.numel()


@torch.no_grad()
def modegpt(model: Any, moments: dict[str, Moments], windows: Tensor, batch_size: int, share: float) -> None:
    """Make every layer's attention and feed-forward module narrower, in place.

    Args:
        model: A decoder of Llama's layout.
        moments: Of its matrices, by name.
        windows: (count, T) token ids, for the layers' influence.
        batch_size: Windows at a time.
        share: Of channels, rotary planes and value coordinates kept, a mean over layers.

    Raises:
        InputError: The model is laid out in another way.
    """
    attention, feed_forward = modules_with(model, ATTENTION), modules_with(model, FEED_FORWARD)
    parents = [path.rpartition(".")[0] for path in attention]
    if not attention or parents != [path.rpartition(".")[0] for path in feed_forward]:
        raise InputError(
            f"modules=modegpt needs layers with {', '.join(ATTENTION)} and {', '.join(FEED_FORWARD)}, which a "
            f"{type(model).__name__} does not have; choose another preset"
        )
    influence = influence_of(model, [model.get_submodule(parent) for parent in parents], windows, batch_size)
    for kept, one, other in zip(layer_shares(influence, share).tolist(), attention, feed_forward, strict=True):
        narrow_attention(one, attention[one], moments, kept)
        narrow_feed_forward(other, feed_forward[other], moments, kept)


def modules_with(model: nn.Module, names: tuple[str, ...]) -> dict[str, Any]:
    """The modules that have linear layers of all these names, by path."""
    return {
        path: module
        for path, module in model.named_modules()
        if all(isinstance(getattr(module, name, None), nn.Linear) for name in names)
    }


def narrow_feed_forward(path: str, module: Any, moments: dict[str, Moments], share: float) -> None:
    """Nystrom's method on the channels of one module."""
    weight = module.down_proj.weight
    kept, thin = nystrom(weight, moments[f"{path}.down_proj"].inputs, at_least_one(share * weight.shape[1]))
    weight.copy_(thin)
    for layer in (module.gate_proj, module.up_proj):
        clear_rows(layer, kept)


def narrow_attention(path: str, module: Any, moments: dict[str, Moments], share: float) -> None:
    """Column selection on queries and keys, and a singular value decomposition of values and outputs, head by head.

    Raises:
        InputError: Queries or keys are normalised, partly rotated, or there are biases on values or outputs.
    """
    width = module.head_dim
    queries, keys, values, outputs = (getattr(module, name) for name in ATTENTION)
    rotary = getattr(module.config, "rope_parameters", None) or {}
    if hasattr(module, "q_norm") or rotary.get("partial_rotary_factor", 1) != 1 or values.bias is not None:
        raise InputError(
            f"modules=modegpt cannot narrow {path}, whose queries are normalised or partly rotated or whose values have "
            "a bias; choose another preset"
        )
    moment = moments[f"{path}.q_proj"].inputs
    query_heads = queries.weight.unflatten(0, (-1, width))  # (heads, d, D), a view
    key_heads, value_heads = keys.weight.unflatten(0, (-1, width)), values.weight.unflatten(0, (-1, width))
    output_heads = outputs.weight.unflatten(1, (-1, width)).transpose(0, 1)  # (heads, D, d), a view
    group = len(query_heads) // len(key_heads)
    planes: list[Tensor] = []
    for head in range(len(key_heads)):
        mine = slice(head * group, (head + 1) * group)
        planes.append(kept_planes(query_heads[mine], key_heads[head], moment, at_least_one(share * width / 2)))
        thin = values_and_outputs(value_heads[head], output_heads[mine], moment, at_least_one(share * width))
        value_heads[head], output_heads[mine] = thin
    clear_rows(keys, torch.cat([head * width + kept for head, kept in enumerate(planes)]))
    clear_rows(queries, torch.cat([head * width + planes[head // group] for head in range(len(query_heads))]))


def clear_rows(layer: nn.Linear, kept: Tensor) -> None:
    """Set all other outputs of a layer to zero, biases included."""
    others = torch.ones(layer.out_features, dtype=torch.bool)
    others[kept] = False
    layer.weight[others] = 0
    if layer.bias is not None:
        layer.bias[others] = 0


def at_least_one(count: float) -> int:
    """The nearest whole number from 1 on."""
    return max(1, round(count))


# A way is a function `(model, moments, windows, batch_size, share)` that changes a model's dense weights in place.
MODULES: dict[str, Callable[[Any, dict[str, Moments], Tensor, int, float], None]] = {"modegpt": modegpt}
