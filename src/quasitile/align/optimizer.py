"""What of a compressed model alignment trains, and at which rates."""

from __future__ import annotations

import torch
from torch import nn

from quasitile.align.cutoffs import CutOffs
from quasitile.align.settings import AlignSettings
from quasitile.runtime import tiled_matrices

FACTOR_RATE = 0.01  # the best of the rates that were tried, as those of entries (docs/results/learning-tried.md)
ENTRY_RATE, ENTRY_POWER, LARGEST_ENTRY_RATE = 0.003, -0.6, 0.004  # at a bit a weight, with the bits, below half a bit


def suited_rate(model: nn.Module) -> float:
    """The learning rate of the codes, in rounding steps, that suits a compressed model.

    The fewer bits, the less a rounding step costs beside what is lost already, so that codes may move faster; factors
    without a residual, whose codes are fewer and finer, faster still.

    Args:
        model: Not trainable yet.
    """
    bits = bits_with_residual(model)
    return FACTOR_RATE if bits is None else float(f"{min(LARGEST_ENTRY_RATE, ENTRY_RATE * bits**ENTRY_POWER):.2g}")


def bits_with_residual(model: nn.Module) -> float | None:
    """Bits a weight of a compressed model that is not trainable yet; nothing where it has factors alone."""
    matrices = list(tiled_matrices(model).values())
    if all(matrix.opened().residual_transform is None for matrix in matrices):
        return None
    num_weights = sum(matrix.shape[0] * matrix.shape[1] for matrix in matrices)
    return 8 * sum(matrix.payload.numel() for matrix in matrices) / num_weights


def make_trainable(module: nn.Module, settings: AlignSettings) -> None:
    """Put every matrix of a compressed model, or of a part of one, into its trainable state."""
    for parameter in module.parameters():
        parameter.requires_grad_(settings.norm_learning_rate > 0)
    generator = torch.Generator().manual_seed(settings.seed)
    for matrix in tiled_matrices(module).values():
        matrix.make_trainable(generator, settings.jitter)
        for block in matrix.rank_blocks():
            if settings.cut_offs and block.left.numel():
                block.cut_offs.extend([CutOffs(*side.shape).to(side.device) for side in (block.left, block.right)])


def optimizer_of(module: nn.Module, settings: AlignSettings) -> torch.optim.Optimizer:
    """AdamW over the coefficients, scales, cut-offs, norms and biases of a trainable model or a part of one."""
    assert settings.learning_rate is not None  # `align` chooses it
    codes, gains, cuts = [], [], []
    for matrix in tiled_matrices(module).values():
        for block in matrix.rank_blocks():
            codes += block.coefficients()
            gains += [block.gain] if block.gain.numel() else []
            cuts += list(block.cut_offs.parameters())
    coded = {id(p) for matrix in tiled_matrices(module).values() for p in matrix.parameters()}
    small = [p for p in module.parameters() if p.requires_grad and id(p) not in coded]
    rates = (
        (codes, settings.learning_rate),
        (gains, settings.scale_learning_rate),
        (cuts, settings.cut_off_learning_rate),
        (small, settings.norm_learning_rate),
    )
    groups = [{"params": parameters, "lr": rate, "peak": rate} for parameters, rate in rates if parameters and rate]
    return torch.optim.AdamW(groups, betas=(settings.momentum, 0.99), weight_decay=0.0, foreach=True)
