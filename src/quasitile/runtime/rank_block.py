"""The trainable form of one tile."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from quasitile.codec.block import Block, Tile, Tiling
from quasitile.codec.machine import codes_of
from quasitile.codec.matrix import decode_tile
from quasitile.codec.trellis import search


class RankBlock(nn.Module):
    """The trainable form of a block: spectral coefficients and residual codes in units of their rounding steps.

    Args:
        block: Where to start from.
        tile: Where it lies.
        transforms: Of the factors and of the residual, see `quasitile.codec.spectrum.TRANSFORMS`.
    """

    scale: Tensor

    def __init__(self, block: Block, tile: Tile, transforms: tuple[str, str]) -> None:
        super().__init__()
        self.tile, self.transforms, self.residual_step = tile, transforms, block.residual_step
        self.residual = nn.Parameter(block.residual.clone()) if block.residual is not None else None
        self.left = nn.Parameter(block.left.clone())
        self.right = nn.Parameter(block.right.clone())
        self.gain = nn.Parameter(torch.zeros_like(block.scale))  # logarithm of what training does to the scale
        self.register_buffer("scale", block.scale.clone(), persistent=False)

    def scaled(self) -> Tensor:
        """The components' scales as they are stored, in bf16; gradients pass through."""
        scale = self.scale * self.gain.exp()
        return scale + (scale.to(torch.bfloat16).float() - scale).detach()

    def coefficients(self) -> list[nn.Parameter]:
        """What is measured in rounding steps and trained: factors, residual, or both."""
        return [p for p in (self.left, self.right, self.residual) if p is not None and p.numel()]

    def rounded(self) -> Block:
        """The block with whole coefficients; gradients pass through the rounding."""
        residual = None if self.residual is None else straight_through(self.residual)
        return Block(
            straight_through(self.left),
            straight_through(self.right),
            self.scaled(),
            residual=residual,
            residual_step=self.residual_step,
        )

    def stored(self, coarser: float = 1.0) -> Block:
        """The block as it would be stored now, with all steps `coarser` times as large."""
        root = coarser**0.5
        left, right = self.left.detach() / root, self.right.detach() / root
        residual = None if self.residual is None else self.residual.detach() / coarser
        exact = Block(left, right, self.scaled().detach() * coarser, None, residual, self.residual_step * coarser)
        rounded = replace(
            exact, left=left.round(), right=right.round(), residual=None if residual is None else residual.round()
        )
        return replace(rounded, remainders=exact.codes() - rounded.codes())

    def forward(self) -> Tensor:
        """The tile (P, Q)."""
        return decode_tile(self.rounded(), *self.transforms)


def straight_through(values: Tensor) -> Tensor:
    """Whole numbers; gradients pass as if nothing had been rounded."""
    return values + (values.round() - values).detach()


def to_path(blocks: list[Block], tiling: Tiling, num_states: int) -> None:
    """Move residual codes that training has moved off the trellis to the nearest path through it, in place."""
    try:
        for block in blocks:
            assert block.residual is not None
            codes_of(block.residual.to(torch.int32).numpy(), num_states)
    except ValueError:
        wanted = torch.zeros(tiling.shape)
        for tile, block in zip(tiling.tiles, blocks, strict=True):
            assert block.residual is not None
            assert block.remainders is not None
            beside = block.remainders[-block.residual.numel() :].view_as(block.residual)
            wanted[tile.rows, tile.columns] = block.residual + beside
        points, _ = search(wanted, None, tiling, 2.0, num_states, rate_weight=0.0)
        for tile, block in zip(tiling.tiles, blocks, strict=True):
            assert block.remainders is not None
            block.residual = points[tile.rows, tile.columns].float()
            beside = wanted[tile.rows, tile.columns] - block.residual
            block.remainders[-beside.numel() :] = beside.clamp(-0.499, 0.499).flatten()


def assemble(tiling: Tiling, blocks: list[RankBlock]) -> Tensor:
    """The tiled matrix (M, N) from its blocks, differentiable: tiles joined along bands.

    Works for tilings whose tiles form row bands, which all of `quasitile.codec.tiling` do.
    """
    bands: list[list[Tensor]] = []
    top = -1
    for tile, block in zip(tiling.tiles, blocks, strict=True):
        if tile.row_start != top:
            bands.append([])
            top = tile.row_start
        bands[-1].append(block())
    return torch.cat([torch.cat(band, dim=1) for band in bands])
