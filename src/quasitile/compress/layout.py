"""Whether tiles suit their matrices, and where a hierarchical tiling is deflated.

It is deflated where smaller tiles lower the damage by more than their bytes are worth. Bytes and damage are exchanged as
everywhere else: at the rounding step that the size allows, a bit is worth `step^2 ln(2) / 6` of squared error in the
scaled domain (docs/mathematics.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from quasitile.codec.block import Tile
from quasitile.codec.coding import Coding
from quasitile.codec.factors import kept_rank, rounded_normal_bits, whitened_svd
from quasitile.codec.matrix import Scaled, scaled
from quasitile.codec.payload import check_bases
from quasitile.codec.tiling import TILINGS, hierarchical
from quasitile.compress.allocate import Job, first_step, in_threads
from quasitile.compress.settings import CompressSettings
from quasitile.errors import InputError

BITS_OF_TILE = 96  # its corners, rank and length of stream


def check_tiles(shapes: Mapping[str, tuple[int, ...]], settings: CompressSettings) -> None:
    """Refuse tiles whose transforms no reader would accept, before anything is computed.

    Args:
        shapes: Of the matrices by name; those with a structure, or of modules made narrower, have others and are not looked at.
        settings: Their tiling and transforms.

    Raises:
        InputError: A tile's side is too long for a transform's basis.
    """
    if settings.structure != "none" or settings.modules != "none" or not settings.transforms - {"identity"}:
        return
    seen = set()
    for name, shape in shapes.items():
        if shape in seen:
            continue
        seen.add(shape)
        num_rows, num_columns = shape
        tiling = TILINGS[settings.tiling.name](num_rows, num_columns, settings.tiling.short, settings.tiling.seed)
        try:
            check_bases(tiling, settings.transforms)
        except ValueError as error:
            raise InputError(f"{name}, tiling.name={settings.tiling.name}: {error}") from error


def deflate_where_it_pays(jobs: list[Job], coding: Coding, num_bytes: float, short: int, seed: int, workers: int) -> list[Job]:
    """The same jobs, each with the hierarchical tiling that costs least at about the step of this size.

    Args:
        jobs: The matrices, with the tiling that the step is estimated from.
        coding: How they will be coded.
        num_bytes: What they may take together.
        short: The shorter side of the smallest tiles.
        seed: Phase of the chain.
        workers: Threads.
    """
    step, _ = first_step(jobs, coding, num_bytes, workers)

    def laid_out(job: Job) -> Job:
        problem = scaled(*job.stored(), coding)
        powers = row_by_column_powers(problem.weight)
        num_rows, num_columns = problem.weight.shape
        tiling = hierarchical(
            num_rows, num_columns, short, seed, cost=lambda tile: tile_cost(problem, powers, tile, step, coding)
        )
        return replace(job, tiling=tiling)

    return in_threads(laid_out, jobs, workers, "deflate tiles")


def row_by_column_powers(weight: Tensor) -> Tensor:
    """The power of each entry (M, N) as the mean powers of its row and its column say."""
    power = weight.square()
    return torch.outer(power.mean(1), power.mean(0)) / power.mean().clamp_min(1e-30)


def tile_cost(problem: Scaled, powers: Tensor, tile: Tile, step: float, coding: Coding) -> float:
    """Squared error that a tile leaves in the scaled domain, plus what its bits are worth at this step.

    From the singular values of the whitened tile: components that do not pay are lost, the others cost
    rounding and bits. A residual codes what they leave; its statistics know the rows and columns of the
    whole matrix (`powers`) and no tiles, so for a residual alone no cut pays. What a truncation other
    than the dead zone drops is not foreseen.
    """
    num_rows, num_columns = tile.shape
    whitener = problem.lower[tile.columns, tile.columns]
    limit = coding.max_rank if coding.residual is None else coding.max_rank or 0
    target = rest = problem.weight[tile.rows, tile.columns]
    rank, bits = 0, 0.0
    if limit != 0:
        left, values, right = whitened_svd(target, whitener)
        moment = float(whitener.square().sum()) / num_columns
        rank, bits = kept_rank(values[:limit], right.norm(dim=0)[:limit], tile.shape, step, moment, coding.price)
        rest = target - left[:, :rank] * values[:rank] @ right[:, :rank].T
    if coding.residual is None:
        lost = float((rest @ whitener).square().sum())
    else:
        left_over = rest.square().sum() / target.square().sum().clamp_min(1e-30)
        power = powers[tile.rows, tile.columns] * left_over
        bits += float(rounded_normal_bits(power.sqrt() / step).sum())
        lost = float(power.clamp_max(step**2 / 12).sum())
    rounding = rank * (num_rows + num_columns) * step**2 / 12
    return lost + rounding + coding.price * step**2 * math.log(2) / 6 * (bits + BITS_OF_TILE)
