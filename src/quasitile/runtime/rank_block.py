"""The trainable form of one tile."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from quasitile.codec.block import Block, Tile, Tiling
from quasitile.codec.machine import codes_of
from quasitile.codec.matrix import decode_tile
from quasitile.codec.trellis import RATE_WEIGHT, search
from quasitile.runtime.device import CPU


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
        self.cut_offs = nn.ModuleList()  # of left and right, where they are learned (`quasitile.align.cutoffs`)

    @property
    def entries_only(self) -> bool:
        """Whether the tile is its residual, entry by entry: no factors and no transform."""
        return self.residual is not None and not self.left.numel() and self.transforms[1] == "identity"

    @property
    def version(self) -> int:
        """A number that grows with every change in place of what is trained; asked for at every pass, so it is cheap."""
        own = sum(values._version for values in self._parameters.values() if values is not None)
        return own + sum(values._version for values in self.cut_offs.parameters()) if len(self.cut_offs) else own

    def scaled(self) -> Tensor:
        """The components' scales as they are stored, in bf16; gradients pass through."""
        scale = self.scale * self.gain.exp()
        return scale + (scale.to(torch.bfloat16).float() - scale).detach()

    def coefficients(self) -> list[nn.Parameter]:
        """What is measured in rounding steps and trained: factors, residual, or both."""
        return [p for p in (self.left, self.right, self.residual) if p is not None and p.numel()]

    def _gate(self, side: int) -> Any:
        return self.cut_offs[side]

    def rounded(self) -> Block:
        """The block with whole coefficients; gradients pass through the rounding."""
        residual = None if self.residual is None else straight_through(self.residual)
        left, right = straight_through(self.left), straight_through(self.right)
        if len(self.cut_offs):
            left, right = left * self._gate(0).gates(), right * self._gate(1).gates()
        return Block(
            left,
            right,
            self.scaled(),
            residual=residual,
            residual_step=self.residual_step,
        )

    def stored(self, coarser: float = 1.0) -> Block:
        """The block as it would be stored now, with all steps `coarser` times as large; on the CPU, where coders run."""
        root = coarser**0.5
        left, right = self.left.detach() / root, self.right.detach() / root
        if len(self.cut_offs):
            left, right = left * self._gate(0).kept(), right * self._gate(1).kept()
        left, right, scale = (values.to(CPU) for values in (left, right, self.scaled().detach() * coarser))
        residual = None if self.residual is None else self.residual.detach().to(CPU) / coarser
        exact = Block(left, right, scale, None, residual, self.residual_step * coarser)
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
    """Move residual codes that training has moved off the trellis to a near path through it that costs few bits, in place."""
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
        points, _ = search(wanted, None, tiling, 2.0, num_states, RATE_WEIGHT)
        for tile, block in zip(tiling.tiles, blocks, strict=True):
            assert block.remainders is not None
            block.residual = points[tile.rows, tile.columns].float()
            beside = wanted[tile.rows, tile.columns] - block.residual
            block.remainders[-beside.numel() :] = beside.clamp(-0.499, 0.499).flatten()


def assemble(tiling: Tiling, blocks: list[RankBlock]) -> Tensor:
    """The tiled matrix (M, N) from its blocks, differentiable: tiles joined along bands.

    Works for tilings whose tiles form row bands, which all of `quasitile.codec.tiling` do.
    """
    if all(block.entries_only for block in blocks):  # rounded as a whole: a few large operations instead of many small ones
        entries = joined(tiling, [block.residual for block in blocks if block.residual is not None])
        return straight_through(entries) * blocks[0].residual_step
    return joined(tiling, [block() for block in blocks])


def joined(tiling: Tiling, parts: list[Tensor]) -> Tensor:
    """Tiles (P, Q) in the order of a tiling as one matrix (M, N)."""
    bands: list[list[Tensor]] = []
    top = -1
    for tile, part in zip(tiling.tiles, parts, strict=True):
        if tile.row_start != top:
            bands.append([])
            top = tile.row_start
        bands[-1].append(part)
    return torch.cat([torch.cat(band, dim=1) for band in bands])
