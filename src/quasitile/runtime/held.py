"""Weights of trainable matrices, computed once for several passes through a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from quasitile.runtime.linear import tiled_matrices


@contextmanager
def held_weights(model: nn.Module) -> Iterator[None]:
    """Compute every trainable weight once for all forward passes inside, which share one backward pass or have none."""
    matrices = tiled_matrices(model).values()
    for matrix in matrices:
        matrix.hold(True)
    try:
        yield
    finally:
        for matrix in matrices:
            matrix.hold(False)


def inference_mode(model: nn.Module) -> torch.no_grad | torch.inference_mode:
    """The mode for passes without gradients; in shards not PyTorch's own, since passes with gradients use the same buffers."""
    in_shards = any(matrix.in_shards for matrix in tiled_matrices(model).values())
    return torch.no_grad() if in_shards else torch.inference_mode()


@contextmanager
def gathered_gradients(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Compute every trainable weight once for several passes inside, each with a backward pass of its own.

    Their gradients gather at the weights; what is yielded hands them on to the coefficients, as often as it is called. So
    only one pass' activations are in memory at a time, and no pass computes the weights again.
    """
    with held_weights(model):
        pairs = [pair for matrix in tiled_matrices(model).values() for pair in matrix.detach_held()]

        def hand_on() -> None:
            found = [(weight, leaf) for weight, leaf in pairs if leaf.grad is not None]
            if found:
                weights, leaves = zip(*found, strict=True)
                torch.autograd.backward(weights, [leaf.grad for leaf in leaves], retain_graph=True)
            for _, leaf in found:
                leaf.grad = None

        yield hand_on
