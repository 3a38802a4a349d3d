"""The residual's rounding errors are the damage, feedback moves them where they cost least, and codes fit their step."""

import gc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.codec.test_factors import problem, true_damage
from tests.conftest import TOLERANCE
from torch.testing import assert_close

from quasitile.codec.coding import Coding
from quasitile.codec.factors import damped_cholesky, scale_values
from quasitile.codec.matrix import decode_matrix, encode_matrix
from quasitile.codec.packing import pack, unpack
from quasitile.codec.residual import feedback_codes, spectral_codes
from quasitile.codec.spectrum import TRANSFORMS
from quasitile.codec.tiling import TILINGS

EXACT = TOLERANCE[torch.float64]


def slow_feedback(target, lower, step):
    """One column after another, exactly as docs/mathematics.md writes it."""
    codes, errors = torch.zeros_like(target), torch.zeros_like(target)
    for j in reversed(range(target.shape[1])):
        wanted = target[:, j].clone()
        for i in range(j + 1, target.shape[1]):
            wanted += errors[:, i] * lower[i, j] / lower[j, j]
        codes[:, j] = (wanted / step).round()
        errors[:, j] = target[:, j] - codes[:, j] * step
    return codes


@pytest.mark.parametrize("width", [1, 7, 64])
def test_blocked_feedback_is_the_slow_one(width):
    weight, moment, _ = problem()
    lower = damped_cholesky(moment)
    codes, exact = feedback_codes(weight.double(), lower, 0.2, width=width)
    assert torch.equal(codes, slow_feedback(weight.double(), lower, 0.2))
    assert (exact - codes).abs().max() <= 0.5


def test_what_is_lost_is_within_half_a_step_once_the_columns_made_up_for_it():
    weight, moment, _ = problem()
    lower = damped_cholesky(moment)
    codes, _ = feedback_codes(weight.double(), lower, 0.2)
    lost = (weight.double() - 0.2 * codes) @ lower / lower.diagonal()
    assert lost.abs().max() <= 0.1 + 1e-9


def test_feedback_costs_less_than_rounding_by_itself():
    weight, moment, _ = problem()
    lower = damped_cholesky(moment)
    codes, _ = feedback_codes(weight.double(), lower, 0.5)
    by_itself = weight.double() - 0.5 * (weight.double() / 0.5).round()
    assert ((weight.double() - 0.5 * codes) @ lower).square().sum() < 0.8 * (by_itself @ lower).square().sum()


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_spectral_residual_loses_what_rounding_its_coefficients_loses(transform):
    weight = problem()[0].double()
    tiling = TILINGS["penrose"](60, 48, 16, 0)
    codes, exact = spectral_codes(weight, tiling, transform, torch.eye(48, dtype=torch.float64), 0.3)
    coding = Coding(residual=transform, damping=0)
    coded, _ = encode_matrix(weight, tiling, torch.eye(48), torch.ones(60), 0.3, coding)
    error = (weight - decode_matrix(coded).double()).square().sum()
    assert error.item() == pytest.approx(0.09 * (exact - codes).square().sum().item(), rel=1e-3)  # Parseval


@pytest.mark.parametrize("residual", TRANSFORMS)
@pytest.mark.parametrize("max_rank", [0, 3])
@pytest.mark.parametrize("tiling", ["fibonacci", "penrose", "whole"])
def test_the_predicted_damage_is_the_damage_and_bytes_come_back(residual, max_rank, tiling):
    weight, moment, gradients = problem()
    coding = Coding(residual=residual, max_rank=max_rank, damping=1e-6)
    coded, predicted = encode_matrix(weight, TILINGS[tiling](60, 48, 16, 0), moment, gradients, 0.1, coding)
    stored = scale_values(coded.row_scales).double().square()  # gradients as rounded to a quarter octave; the rest is damping
    assert predicted == pytest.approx(true_damage(weight, decode_matrix(coded), moment, stored), rel=0.08)
    assert max(block.rank for block in coded.blocks) <= max_rank
    back = unpack(pack(coded))
    assert torch.equal(decode_matrix(back), decode_matrix(coded))


def test_at_the_same_bytes_a_residual_loses_less_than_factors_alone():
    weight, moment, gradients = problem(96, 96)
    tiling = TILINGS["grid"](96, 96, 48, 0)
    factors, _ = encode_matrix(weight, tiling, moment, gradients, 0.3)
    num_bytes = pack(factors).numel()
    for step in torch.logspace(-2, 1, 40).tolist():
        coded, _ = encode_matrix(weight, tiling, moment, gradients, step, Coding(residual="identity"))
        if pack(coded).numel() <= num_bytes:
            break
    damage = [true_damage(weight, decode_matrix(c), moment, gradients) for c in (coded, factors)]
    assert damage[0] < 0.5 * damage[1]


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 20), st.sampled_from(sorted(TRANSFORMS)), st.integers(0, 5))
def test_any_shape_round_trips(rows, columns, short, residual, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    tiling = TILINGS["penrose"](rows, columns, short, seed)
    coding = Coding(residual=residual)
    coded, _ = encode_matrix(weight, tiling, torch.eye(columns), torch.ones(rows), 1e-3, coding)
    back = decode_matrix(unpack(pack(coded)))
    assert torch.equal(back, decode_matrix(coded))
    assert_close(back, weight, atol=5e-3, rtol=0)


def test_an_infinite_step_stores_nothing():
    weight, moment, gradients = problem()
    coded, damage = encode_matrix(
        weight, TILINGS["grid"](60, 48, 16, 0), moment, gradients, float("inf"), Coding(residual="identity", damping=1e-6)
    )
    assert torch.equal(decode_matrix(coded), torch.zeros(60, 48))
    assert damage == pytest.approx(true_damage(weight, torch.zeros(60, 48), moment, gradients), rel=0.3)  # scales are rounded


def test_feedback_leaves_nothing_for_the_collector():
    """Arrays of every band of a large table once stayed until cycles were looked for."""
    target, lower = torch.randn(4, 80, dtype=torch.float64), torch.eye(80, dtype=torch.float64)
    gc.collect()
    gc.disable()
    try:
        feedback_codes(target, lower, 0.1)
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_few_tokens_are_believed_less():
    """At equal bytes the error costs less on the inputs' true moment once the number of tokens seen is known."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(64, 64, generator=generator) / 8 + torch.eye(64)
    steps, costs, sizes = {0: 0.8, 96: 1.7}, {0: 0.0, 96: 0.0}, {0: 0, 96: 0}
    for _ in range(4):
        seen = torch.randn(96, 64, generator=generator) @ mixing.T
        weight = torch.randn(256, 64, generator=generator)
        for num_tokens, step in steps.items():
            coding, tiling = Coding(residual="identity", num_tokens=num_tokens), TILINGS["whole"](256, 64, 16, 0)
            matrix, _ = encode_matrix(weight, tiling, seen.T @ seen / 96, torch.ones(256), step, coding)
            costs[num_tokens] += float(((weight - decode_matrix(matrix)) @ mixing).square().sum())
            sizes[num_tokens] += pack(matrix).numel()
    assert sizes[96] <= sizes[0]
    assert costs[96] < 0.9 * costs[0]
