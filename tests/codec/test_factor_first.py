"""Factor first slices one factorisation; a randomised decomposition is nearly the exact one."""

import pytest
import torch
from tests.codec.test_factors import problem, true_damage
from torch.testing import assert_close

from quasitile.codec.coding import Coding
from quasitile.codec.factors import SVDS, damped_cholesky, randomised_svd, scale_values, whitened_svd
from quasitile.codec.matrix import decode_matrix, encode_matrix, scaled
from quasitile.codec.packing import pack, unpack
from quasitile.codec.tiling import TILINGS


@pytest.mark.parametrize("tiling", ["fibonacci", "penrose", "whole"])
def test_slices_of_one_factorisation_together_are_that_factorisation(tiling):
    weight, moment, gradients = problem()
    coding = Coding(transform="dct", factor_first=True, max_rank=5, svd="exact")
    tiles = TILINGS[tiling](60, 48, 24, 0)
    coded, predicted = encode_matrix(weight, tiles, moment, gradients, 3e-3, coding)
    whole = scaled(weight, moment, gradients, coding)
    u, s, vh = torch.linalg.svd(whole.weight @ whole.lower)  # the slow way: truncate, undo, and only then cut into tiles
    truncated = u[:, :5] * s[:5] @ vh[:5] @ torch.linalg.inv(whole.lower)
    unscaled = truncated / scale_values(whole.row_codes).double()[:, None] / scale_values(whole.column_codes).double()
    assert_close(decode_matrix(coded).double(), unscaled, rtol=1e-2, atol=3e-3 * float(unscaled.abs().max()))
    assert predicted == pytest.approx(0.5 * float(s[5:].square().sum()), rel=0.02)
    assert torch.equal(decode_matrix(unpack(pack(coded))), decode_matrix(coded))


def test_a_tile_leaves_out_the_components_that_do_not_pay_in_it():
    weight, moment, gradients = problem()
    weight[:24] *= 0.01
    coded, _ = encode_matrix(weight, TILINGS["grid"](60, 48, 24, 0), moment, gradients, 0.05, Coding(factor_first=True))
    ranks = {tile.row_start: block.rank for tile, block in zip(coded.tiling.tiles, coded.blocks, strict=True)}
    assert ranks[0] < max(ranks.values())
    assert all(block.rank <= min(tile.shape) for tile, block in zip(coded.tiling.tiles, coded.blocks, strict=True))


def test_the_predicted_damage_of_slices_is_the_damage():
    weight, moment, gradients = problem()
    coding = Coding(factor_first=True, damping=1e-6)
    coded, predicted = encode_matrix(weight, TILINGS["penrose"](60, 48, 16, 0), moment, gradients, 0.1, coding)
    stored = scale_values(coded.row_scales).double().square()
    assert predicted == pytest.approx(true_damage(weight, decode_matrix(coded), moment, stored), rel=0.05)


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_the_randomised_decomposition_is_within_five_per_cent_of_the_least_error(decay):
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(120, 90, generator=generator, dtype=torch.float64)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    matrix = u * (s * torch.arange(1, 91).double() ** -decay) @ vh
    left, values, right = randomised_svd(matrix, 12)
    least = torch.linalg.svdvals(matrix)[12:].square().sum()
    assert (matrix - left * values @ right).square().sum() <= 1.05 * least
    assert_close(left.T @ left, torch.eye(12, dtype=torch.float64))
    assert all(torch.equal(a, b) for a, b in zip((left, values, right), randomised_svd(matrix, 12), strict=True))


@pytest.mark.parametrize("svd", SVDS)
def test_only_large_tiles_with_few_components_are_decomposed_at_random(svd, monkeypatch):
    called = []
    monkeypatch.setattr("quasitile.codec.factors.LARGE_TILE", 40)
    monkeypatch.setattr(
        "quasitile.codec.factors.randomised_svd", lambda matrix, rank: called.append(rank) or randomised_svd(matrix, rank)
    )
    weight, moment, _ = problem()
    lower = damped_cholesky(moment)
    for rank in (4, 40, None):
        _, s, v = whitened_svd(weight.double(), lower, svd, rank)
        exact = torch.linalg.svdvals(weight.double() @ lower)
        assert_close(s[:4], exact[:4], rtol=0.02, atol=0)
        assert_close((lower.T @ v)[:, :4].T @ (lower.T @ v)[:, :4], torch.eye(4, dtype=torch.float64))
    assert called == ([] if svd == "exact" else [4])
