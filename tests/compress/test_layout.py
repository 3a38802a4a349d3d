"""A hierarchical tiling is deflated where that pays, and nowhere else."""

import math
from itertools import pairwise

import pytest
import torch

from quasitile.codec.block import Tile
from quasitile.codec.coding import Coding
from quasitile.codec.matrix import encode_matrix, scaled
from quasitile.codec.packing import pack
from quasitile.codec.tiling import SUPERTILE_LEVEL, TILINGS, hierarchical, level_width, long_width
from quasitile.compress.allocate import Job
from quasitile.compress.calibrate import Moments
from quasitile.compress.layout import deflate_where_it_pays, row_by_column_powers, tile_cost

SHORT = 16
LONG = long_width(SHORT)
SUPER = level_width("L", SHORT, SUPERTILE_LEVEL)


def job_of(weight, seed=0):
    """A job with uneven inputs and gradients."""
    num_rows, num_columns = weight.shape
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(600, num_columns, generator=generator) * torch.logspace(0, -0.5, num_columns)
    moments = Moments(inputs.T @ inputs / 600, torch.rand(num_rows, generator=generator) + 0.1)
    return Job("layer", weight, hierarchical(num_rows, num_columns, SHORT), moments)


def two_kinds(seed=0):
    """On the left a supertile of rank 4; on the right one whose smallest tiles are each of rank 1 by themselves."""
    generator = torch.Generator().manual_seed(seed)
    smooth = torch.randn(SUPER, 4, generator=generator) @ torch.randn(4, SUPER, generator=generator) / 2
    rough = torch.zeros(SUPER, level_width("S", SHORT, SUPERTILE_LEVEL))
    edges = [0, LONG, LONG + SHORT, SUPER]
    for top, bottom in pairwise(edges):
        for left, right in ((0, LONG), (LONG, LONG + SHORT)):
            shape = bottom - top, right - left
            rough[top:bottom, left:right] = torch.outer(*(torch.randn(size, generator=generator) for size in shape))
    return torch.cat([smooth, rough], 1) + 0.01 * torch.randn(SUPER, SUPER + rough.shape[1], generator=generator)


def test_only_what_gains_is_deflated():
    job = job_of(two_kinds())
    (laid_out,) = deflate_where_it_pays([job], Coding(), 1500, SHORT, 0, 1)
    assert laid_out.tiling.covers_exactly()
    left = [tile for tile in laid_out.tiling.tiles if tile.column_stop <= SUPER]
    right = [tile for tile in laid_out.tiling.tiles if tile.column_start >= SUPER]
    assert len(left) + len(right) == len(laid_out.tiling.tiles)
    assert all(tile.shape[1] == SUPER for tile in left)
    assert {tile.shape[1] for tile in right} == {LONG, SHORT}


def test_where_there_is_no_room_or_only_a_residual_supertiles_stay():
    noise = torch.randn(150, 120, generator=torch.Generator().manual_seed(1))
    coarse = hierarchical(150, 120, SHORT, cost=lambda tile: 1.0)
    (laid_out,) = deflate_where_it_pays([job_of(noise)], Coding(), -1, SHORT, 0, 1)
    assert laid_out.tiling == coarse
    (with_residual,) = deflate_where_it_pays([job_of(noise)], Coding(residual="identity"), 9000, SHORT, 0, 1)
    assert with_residual.tiling == coarse


@pytest.mark.parametrize(
    "coding", [Coding(), Coding(residual="identity", max_rank=3), Coding(residual="dct")], ids=["factors", "both", "residual"]
)
def test_the_cost_of_tiles_is_what_coding_them_costs(coding):
    job = job_of(two_kinds(2))
    step = 0.03
    problem = scaled(job.weight, job.moments.inputs, job.moments.outputs, coding)
    powers = row_by_column_powers(problem.weight)
    for name in ("hierarchical", "fibonacci", "whole"):
        tiling = TILINGS[name](*job.weight.shape, SHORT, 0)
        expected = sum(tile_cost(problem, powers, tile, step, coding) for tile in tiling.tiles)
        coded, damage = encode_matrix(job.weight, tiling, job.moments.inputs, job.moments.outputs, step, coding)
        actual = 2 * damage + step**2 * math.log(2) / 6 * 8 * pack(coded).numel()
        assert expected == pytest.approx(actual, rel=0.15), name


def test_the_chosen_tiling_costs_no_more_than_either_extreme():
    job = job_of(two_kinds(3))
    (laid_out,) = deflate_where_it_pays([job], Coding(), 1500, SHORT, 0, 1)
    (again,) = deflate_where_it_pays([job], Coding(), 1500, SHORT, 0, 1)
    assert laid_out.tiling == again.tiling
    problem = scaled(job.weight, job.moments.inputs, job.moments.outputs, Coding())
    powers = row_by_column_powers(problem.weight)
    for step in (0.05, 0.02):

        def cost(tile: Tile, step=step) -> float:
            return tile_cost(problem, powers, tile, step, Coding())

        best = hierarchical(*job.weight.shape, SHORT, cost=cost)
        for other in (job.tiling, hierarchical(*job.weight.shape, SHORT, cost=lambda tile: 1.0), laid_out.tiling):
            assert sum(map(cost, best.tiles)) <= sum(map(cost, other.tiles)) + 1e-12
