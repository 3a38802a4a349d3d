"""Which rank blocks learn from a section (paper 3.3, step 4).

A block's *usage* by a text is the mean square of what it adds to its layer's output, over tokens.
Blocks that a section uses much more than background text does are the ones that handle its subject.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from quasitile.align.sharding import local
from quasitile.runtime import TiledMatrix, coded_parameters
from quasitile.runtime.linear import RankBlock

Usage = list[float]
PARTS = ("all", "spectral", "residual")


def rank_blocks(model: nn.Module) -> list[RankBlock]:
    """All blocks with something to train, in a fixed order."""
    return [block for m in model.modules() if isinstance(m, TiledMatrix) for block in m.rank_blocks() if block.coefficients()]


def learning_parts(block: RankBlock, part: str) -> list[nn.Parameter]:
    """What of a block may learn, by a name in `PARTS`: `spectral` are the coefficients of its factors (paper 3.3)."""
    return [values for values in block.coefficients() if part == "all" or (values is block.residual) == (part == "residual")]


@torch.no_grad()
def usage(model: Any, tokens: Tensor) -> dict[RankBlock, float]:
    """How much each block is used by a text.

    Args:
        model: With trainable blocks.
        tokens: (B, T) token ids.

    Returns:
        Mean square of each block's part of the layer's output, in scaled units that are the same
        for every text. Blocks of convolutions, of experts and of matrices in which weights
        share numbers count as used by every text alike.
    """
    found = dict.fromkeys(rank_blocks(model), 1.0)
    handles = []

    def watch_linear(layer: Any, args: tuple[Tensor, ...]) -> None:
        x = layer.matrix.along_axes(args[0].flatten(0, -2))
        moment = x.T @ x / len(x)
        for block in layer.matrix.rank_blocks():
            if block.coefficients():
                tile = layer.matrix.weight_of(block)
                part = moment[block.tile.columns, block.tile.columns]
                found[block] = float(((tile @ part) * tile).sum())

    def watch_embedding(layer: Any, args: tuple[Tensor, ...]) -> None:
        shares = torch.bincount(args[0].flatten(), minlength=layer.matrix.shape[0]) / args[0].numel()
        for block in layer.matrix.rank_blocks():
            if block.coefficients():
                found[block] = float((layer.matrix.weight_of(block).square().sum(1) * shares[block.tile.rows]).sum())

    watches = {"linear": watch_linear, "conv1d": watch_linear, "embedding": watch_embedding}
    for name, kind, matrices in coded_parameters(model):
        if kind in watches and matrices[0].structure is None:
            handles.append(model.get_submodule(name).register_forward_pre_hook(watches[kind]))
    try:
        model(tokens, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found


@torch.enable_grad()
def gradient_powers(model: Any, loss: Callable[[], Tensor]) -> dict[RankBlock, float]:
    """Mean square of the gradient at each block's coefficients.

    Args:
        model: With trainable blocks; their gradients are cleared.
        loss: Of a text or of questions.
    """
    blocks = rank_blocks(model)
    for block in blocks:
        for values in block.coefficients():
            values.requires_grad_(True).grad = None
    loss().backward()
    found = {block: gradient_power(block) for block in blocks}
    for block in blocks:
        for values in block.coefficients():
            values.grad = None
    return found


def gradient_power(block: RankBlock) -> float:
    """Mean square of the gradient that a block's coefficients have now; 0 where they have none.

    In shards: this process' part of it, the sum over its rows divided by all numbers of the block.
    """
    grads = [values.grad for values in block.coefficients() if values.grad is not None]
    return float(sum(local(grad).square().sum() for grad in grads)) / max(1, sum(grad.numel() for grad in grads))


def by_ratio(blocks: list[RankBlock], here: Usage, background: Usage, count: int, rng: random.Random) -> list[RankBlock]:
    """Those that count most for the section, relative to background text."""
    ratio = [used / max(usual, 1e-30) for used, usual in zip(here, background, strict=True)]
    order = sorted(range(len(blocks)), key=lambda i: -ratio[i])
    return [blocks[i] for i in order[:count]]


def at_random(blocks: list[RankBlock], here: Usage, background: Usage, count: int, rng: random.Random) -> list[RankBlock]:
    """As many, drawn at random: the control."""
    return rng.sample(blocks, count)


def every(blocks: list[RankBlock], here: Usage, background: Usage, count: int, rng: random.Random) -> list[RankBlock]:
    """All of them."""
    return blocks


def nothing(blocks: list[RankBlock], here: Usage, background: Usage, count: int, rng: random.Random) -> list[RankBlock]:
    """None: the model is asked and learns nothing, the other control."""
    return []


# By `usage` and by `gradient` differ in what is measured of the section and of background text: see `Reader.choose`.
SELECTIONS: dict[str, Callable[[list[RankBlock], Usage, Usage, int, random.Random], list[RankBlock]]] = {
    "usage": by_ratio,
    "gradient": by_ratio,
    "random": at_random,
    "all": every,
    "none": nothing,
}
