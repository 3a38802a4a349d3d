"""Factors are optimal under the whitened norm, survive singular moments, and keep their promise of damage."""

import math

import pytest
import torch
from tests.conftest import TOLERANCE
from torch.testing import assert_close

from quasitile.codec.coding import Coding
from quasitile.codec.factors import (
    damped_cholesky,
    kept_rank,
    rounded_normal_bits,
    scale_codes,
    scale_values,
    solve_left,
    whitened_svd,
)
from quasitile.codec.matrix import decode_matrix, encode_matrix
from quasitile.codec.packing import pack, unpack
from quasitile.codec.spectrum import TRANSFORMS
from quasitile.codec.tiling import TILINGS

EXACT = TOLERANCE[torch.float64]


def problem(num_rows=60, num_columns=48, seed=0):
    """A weight, inputs of uneven power, and uneven output gradients."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(num_rows, num_columns, generator=generator)
    mixing = torch.randn(num_columns, num_columns, generator=generator) * torch.logspace(0, -1.5, num_columns)
    inputs = torch.randn(500, num_columns, generator=generator) @ mixing.T
    gradients = torch.rand(num_rows, generator=generator) + 0.1
    return weight, inputs.T @ inputs / 500, gradients


def true_damage(weight, decoded, moment, gradients):
    error = (weight - decoded).double()
    return 0.5 * float(((error @ moment.double()) * error * gradients.double()[:, None]).sum())


def test_truncating_the_whitened_svd_is_optimal():
    weight, moment, _ = problem()
    lower = damped_cholesky(moment)
    left, values, right = whitened_svd(weight.double(), lower)
    assert_close(left * values @ right.T, weight.double(), **EXACT)
    for rank in (1, 5, 20):
        error = (weight.double() - left[:, :rank] * values[:rank] @ right[:, :rank].T) @ lower
        assert error.square().sum().item() == pytest.approx(values[rank:].square().sum().item(), rel=1e-8)  # Eckart-Young
        other = torch.linalg.svd(weight.double(), full_matrices=False)
        plain = (weight.double() - other.U[:, :rank] * other.S[:rank] @ other.Vh[:rank]) @ lower
        assert error.square().sum() < plain.square().sum()


@pytest.mark.parametrize(
    "moment",
    [
        torch.zeros(6, 6),
        torch.ones(6, 6),
        torch.diag(torch.tensor([1.0, 0, 0, 0, 0, 0])),
        -1e-6 * torch.eye(6) + torch.ones(6, 6),
    ],
    ids=["zero", "rank one", "one input", "slightly indefinite"],
)
def test_singular_moments_never_fail(moment):
    lower = damped_cholesky(moment)
    assert torch.isfinite(lower).all()
    assert (lower.diagonal() > 0).all()
    assert torch.equal(lower, lower.tril())
    mean = moment.double().diagonal().mean().clamp_min(1e-30)
    expected = moment.double() + 0.01 * mean * torch.eye(6, dtype=torch.float64)
    assert_close(lower @ lower.T, expected, rtol=1e-5, atol=1e-5)


def test_the_left_factor_is_the_least_squares_solution():
    generator = torch.Generator().manual_seed(3)
    target = torch.randn(9, 14, dtype=torch.float64, generator=generator)
    right = torch.randn(14, 4, dtype=torch.float64, generator=generator)
    expected = torch.linalg.lstsq(right, target.T).solution.T
    assert_close(solve_left(target, right), expected, rtol=1e-6, atol=1e-6)


def test_the_entropy_of_rounded_normals_matches_a_histogram():
    generator = torch.Generator().manual_seed(4)
    for spread in (0.1, 0.3, 1.0, 4.0, 40.0):
        counts = (torch.randn(400_000, generator=generator) * spread).round().unique(return_counts=True)[1] / 400_000
        empirical = float(-(counts * counts.log2()).sum())
        assert float(rounded_normal_bits(torch.tensor([spread]))) == pytest.approx(empirical, abs=0.01)


def test_more_precision_keeps_more_components():
    values, norms = torch.logspace(0, -4, 30).double(), torch.ones(30).double()
    ranks = [kept_rank(values, norms, (40, 40), step, 1.0)[0] for step in (1e-1, 1e-2, 1e-3)]
    assert ranks == sorted(ranks)
    assert ranks[0] < ranks[-1]


@pytest.mark.parametrize("tiling", TILINGS)
@pytest.mark.parametrize("feedback", [True, False], ids=["feedback", "no feedback"])
def test_the_predicted_damage_is_the_damage(tiling, feedback):
    weight, moment, gradients = problem()
    coded, predicted = encode_matrix(
        weight, TILINGS[tiling](60, 48, 16, 0), moment, gradients, 0.05, Coding(feedback=feedback, damping=1e-6)
    )
    damage = true_damage(weight, decode_matrix(coded), moment, gradients)
    if feedback or tiling == "whole":  # without feedback, what different column bands lose is not independent
        assert predicted == pytest.approx(damage, rel=0.05)
    else:
        assert predicted == pytest.approx(damage, rel=0.5)


def test_a_finer_step_costs_less_damage_and_none_in_the_limit():
    weight, moment, gradients = problem()
    tiling = TILINGS["fibonacci"](60, 48, 16, 0)
    damages = []
    for step in (0.3, 0.1, 0.03, 1e-3):
        coded, _ = encode_matrix(weight, tiling, moment, gradients, step)
        damages.append(true_damage(weight, decode_matrix(coded), moment, gradients))
    assert damages == sorted(damages, reverse=True)
    coded, _ = encode_matrix(weight, tiling, moment, gradients, 1e-3)
    assert float((weight - decode_matrix(coded)).norm() / weight.norm()) < 0.02


def test_feedback_lowers_the_damage_at_the_same_step():
    weight, moment, gradients = problem()
    tiling = TILINGS["grid"](60, 48, 16, 0)
    damage = {}
    for feedback in (True, False):
        coded, _ = encode_matrix(weight, tiling, moment, gradients, 0.3, Coding(feedback=feedback))
        numbers = sum(block.left.numel() + block.right.numel() for block in coded.blocks)
        damage[feedback] = true_damage(weight, decode_matrix(coded), moment, gradients) * numbers
    assert damage[True] < damage[False]


def test_an_infinite_step_stores_nothing_and_decodes_to_zero():
    weight, moment, gradients = problem()
    coded, _ = encode_matrix(weight, TILINGS["fibonacci"](60, 48, 16, 0), moment, gradients, math.inf)
    assert all(block.rank == 0 for block in coded.blocks)
    assert torch.equal(decode_matrix(coded), torch.zeros(60, 48))


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (17, 33)])
def test_odd_shapes_and_zero_matrices(shape):
    tiling = TILINGS["penrose"](*shape, 16, 0)
    moment, gradients = torch.eye(shape[1]), torch.ones(shape[0])
    coded, damage = encode_matrix(torch.zeros(shape), tiling, moment, gradients, 0.1)
    assert damage == 0
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    coded, _ = encode_matrix(weight, tiling, moment, gradients, 1e-3)
    assert_close(decode_matrix(coded), weight, rtol=0.05, atol=0.02)


def test_a_rank_limit_holds():
    weight, moment, gradients = problem()
    coded, _ = encode_matrix(weight, TILINGS["grid"](60, 48, 16, 0), moment, gradients, 1e-3, Coding(max_rank=3))
    assert max(block.rank for block in coded.blocks) == 3


@pytest.mark.parametrize("rule", ["energy", "low_pass", "budget"])
@pytest.mark.parametrize("residual", [None, "dct"], ids=["factors", "residual"])
def test_truncation_lowers_what_is_kept_and_its_damage_is_predicted(rule, residual):
    weight, moment, gradients = problem()
    tiling = TILINGS["penrose"](60, 48, 16, 0)
    kept, damages = [], []
    for keep in (1.0, 0.6, 0.3):
        coding = Coding(truncation=rule, keep=keep, residual=residual, damping=1e-6)
        coded, predicted = encode_matrix(weight, tiling, moment, gradients, 0.05, coding)
        kept.append(sum(int(block.codes().count_nonzero()) for block in coded.blocks))
        damages.append(true_damage(weight, decode_matrix(coded), moment, gradients))
        assert predicted == pytest.approx(damages[-1], rel=0.05)
    assert kept == sorted(kept, reverse=True)
    assert damages == sorted(damages)
    assert kept[-1] < 0.75 * kept[0]
    plain, _ = encode_matrix(weight, tiling, moment, gradients, 0.05, Coding(residual=residual, damping=1e-6))
    assert kept[0] == sum(int(block.codes().count_nonzero()) for block in plain.blocks)


def test_low_pass_leaves_no_high_frequency_in_factors_or_residual():
    weight, moment, gradients = problem()
    tiling = TILINGS["grid"](60, 48, 16, 0)
    coding = Coding(truncation="low_pass", keep=0.5, residual="wavelet", max_rank=2)
    coded, _ = encode_matrix(weight, tiling, moment, gradients, 0.05, coding)
    for block in coded.blocks:
        rows, columns = len(block.left), len(block.right)
        assert block.left[math.ceil(rows / 2) :].abs().sum() == block.right[math.ceil(columns / 2) :].abs().sum() == 0
        assert block.residual[math.ceil(rows / 2) :].abs().sum() == block.residual[:, math.ceil(columns / 2) :].abs().sum() == 0
        assert block.residual.count_nonzero() > 0


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("residual", [None, "same"], ids=["factors", "residual"])
def test_every_transform_codes_a_matrix(transform, residual):
    weight, moment, gradients = problem()
    tiling = TILINGS["penrose"](60, 48, 16, 0)
    coding = Coding(transform=transform, residual=transform if residual else None, max_rank=4 if residual else None)
    coded, _ = encode_matrix(weight, tiling, moment, gradients, 1e-3, coding)
    back = unpack(pack(coded))
    assert (back.transform, back.residual_transform) == (transform, transform if residual else "identity")
    assert torch.equal(decode_matrix(back), decode_matrix(coded))
    assert float((weight - decode_matrix(back)).norm() / weight.norm()) < 0.02


def test_scales_are_within_an_eighth_of_an_octave():
    values = torch.logspace(-4, 4, 500)
    ratio = scale_values(scale_codes(values)) / values
    assert ratio.log2().abs().max() <= 1 / 8 + 1e-5
