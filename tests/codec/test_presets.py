"""Each preset does what its paper says: slow references in NumPy, in the limit of fine rounding where rounding is ours."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.codec.test_factors import problem, true_damage
from torch.testing import assert_close

from quasitile import load_recipe
from quasitile.codec.matrix import decode_matrix, encode_matrix, scaled
from quasitile.codec.tiling import TILINGS
from quasitile.compress.pipeline import coding_for

WHOLE = TILINGS["whole"](60, 48, 16, 0)


def coding_of(preset, share=0.5, **changes):
    return replace(coding_for(load_recipe(preset).compress, share), damping=1e-9, **changes)


def best_of_rank(matrix, rank):
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    return (left[:, :rank] * values[:rank]) @ right[:rank]


def relative(found, expected):
    return float((found.double() - torch.as_tensor(expected)).norm() / np.linalg.norm(expected))


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_svd_llm_truncates_what_the_inputs_were_whitened_for(share):
    weight, moment, gradients = problem()
    rank = int(share * 60 * 48 / (60 + 48))
    root = np.linalg.cholesky(moment.double().numpy())
    expected = best_of_rank(weight.double().numpy() @ root, rank) @ np.linalg.inv(root)
    coded, _ = encode_matrix(weight, WHOLE, moment, gradients, 1e-3, coding_of("svd-llm", share))
    assert coded.blocks[0].rank == rank
    assert relative(decode_matrix(coded), expected) < 2e-3


def test_its_mixed_form_is_the_best_of_its_rank_for_both_sides():
    weight, moment, gradients = problem()
    coded, _ = encode_matrix(weight, WHOLE, moment, gradients, 0.02, coding_of("svd-llm-mixed"))
    rank = coded.blocks[0].rank
    root = np.linalg.cholesky(moment.double().numpy())
    values = np.linalg.svd(np.sqrt(gradients.numpy())[:, None] * weight.double().numpy() @ root, compute_uv=False)
    assert 10 < rank <= 48
    truncated = 0.5 * np.square(values[rank:]).sum()
    damage = true_damage(weight, decode_matrix(coded), moment, gradients)
    rounding = 0.02**2 / 24 * rank * (60 + 48)
    assert truncated <= damage < truncated + 1.2 * rounding


def powers_of_a_quarter_octave(count, seed):
    """Numbers whose roots are exactly stored scales."""
    return torch.exp2(torch.randint(-6, 7, (count,), generator=torch.Generator().manual_seed(seed)) / 2)


@pytest.mark.parametrize("part", ["rows", "entries"])
def test_losparse_is_factors_and_the_most_important_of_what_they_leave(part):
    weight, moment, _ = problem()
    gradients, power = powers_of_a_quarter_octave(60, 1), powers_of_a_quarter_octave(48, 2)
    moment = moment * (power / moment.diagonal()).sqrt() * (power / moment.diagonal()).sqrt()[:, None]
    coding = coding_of("losparse", 0.5, residual_part=part)
    assert (coding.factor_share, coding.residual_share) == (0.25, 0.25)
    scale = np.sqrt(np.outer(gradients.numpy(), power.numpy()))
    priced = weight.double().numpy() * scale
    low_rank = best_of_rank(priced, int(0.25 * 60 * 48 / (60 + 48)))
    rest, sparse = priced - low_rank, np.zeros((60, 48))
    if part == "rows":
        for row in sorted(range(60), key=lambda i: -np.abs(rest[i]).mean())[:15]:
            sparse[row] = rest[row]
    else:
        for place in sorted(np.ndindex(60, 48), key=lambda ij: -abs(rest[ij]))[:720]:
            sparse[place] = rest[place]
    coded, damage = encode_matrix(weight, WHOLE, moment, gradients, 4e-3, coding)
    assert relative(decode_matrix(coded), (low_rank + sparse) / scale) < 2e-3
    assert damage == pytest.approx(true_damage(weight, decode_matrix(coded), moment, gradients), rel=1e-4)


def slow_feedback(target, lower, step):
    """LDLQ entry by entry: each is moved by what the entries after it in its row lost."""
    codes = np.zeros_like(target)
    for row in range(len(target)):
        lost = np.zeros(target.shape[1])
        for j in reversed(range(target.shape[1])):
            moved = target[row, j] + sum(lost[i] * lower[i, j] / lower[j, j] for i in range(j + 1, target.shape[1]))
            codes[row, j] = np.rint(moved / step)
            lost[j] = target[row, j] - step * codes[row, j]
    return codes


def slow_factors(target, lower, step, rank):
    """Whitened singular vectors; V rounded, U solved for the rounded V and rounded."""
    _, values, right = np.linalg.svd(target @ lower, full_matrices=False)
    right = np.linalg.solve(lower.T, right[:rank].T)
    mean = np.square(lower).sum() / len(lower)
    total = np.zeros((len(right), rank))
    steps = np.array([step / (value * math.sqrt(mean)) for value in values[:rank]])
    for k in range(rank):
        total[:, k] = np.rint(right[:, k] / steps[k])
    scale = torch.from_numpy(step * steps).to(torch.bfloat16).double().numpy()
    left = np.linalg.lstsq(lower.T @ total, (target @ lower).T, rcond=None)[0].T
    return np.rint(left / scale) * scale @ total.T


def test_caldera_fits_the_quantised_matrix_and_the_factors_in_turn():
    weight, moment, gradients = problem(24, 16)
    step, tiling = 0.4, TILINGS["whole"](24, 16, 16, 0)
    coding = coding_of("caldera", price=0.0, max_rank=3)  # without a price of bits, the round of the least error is kept
    space = scaled(weight, moment, gradients, coding)
    target, lower = space.weight.numpy(), space.lower.numpy()
    errors, low_rank = [], np.zeros_like(target)
    for _ in range(coding.alternations):
        quantised = step * slow_feedback(target - low_rank, lower, step)
        low_rank = slow_factors(target - quantised, lower, step, 3)
        errors.append(np.square((target - quantised - low_rank) @ lower).sum())
    coded, _ = encode_matrix(weight, tiling, moment, gradients, step, coding)
    scales = space.weight / weight.double()
    error = (space.weight - decode_matrix(coded).double() * scales).numpy()
    assert len(errors) == 5
    assert np.square(error @ lower).sum() == pytest.approx(min(errors), rel=1e-3)
    assert coded.blocks[0].rank == 3


def test_every_matrix_has_about_the_same_bits_where_outputs_have_no_price():
    weight, moment, gradients = problem()
    sizes = []
    for scale in (1.0, 100.0):
        coded, _ = encode_matrix(scale * weight, WHOLE, moment * scale, gradients / scale, 0.1, coding_of("caldera"))
        sizes.append(float(coded.blocks[0].residual.abs().mean()))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.25)  # scales are rounded to a quarter of an octave


def test_knowing_less_of_the_inputs_costs_more():
    weight, moment, gradients = problem()
    damages = []
    for inputs in ("correlated", "powers", "none"):
        coding = coding_of("svd-llm", inputs=inputs, prices="rows")
        coded, predicted = encode_matrix(weight, WHOLE, moment, gradients, 1e-3, coding)
        damages.append(true_damage(weight, decode_matrix(coded), moment, gradients))
        assert predicted == pytest.approx(damages[-1], rel=0.05)  # row scales are rounded
    assert damages == sorted(damages)


def test_a_fixed_rank_ends_where_the_matrix_does():
    moment, gradients = torch.eye(6), torch.ones(5)
    weight = torch.outer(torch.arange(1.0, 6), torch.ones(6))  # of rank 1
    coding = coding_of("caldera", residual=None, alternations=0, max_rank=4)
    coded, _ = encode_matrix(weight, TILINGS["whole"](5, 6, 16, 0), moment, gradients, 1e-3, coding)
    assert coded.blocks[0].rank <= 2
    assert_close(decode_matrix(coded), weight, rtol=0.01, atol=0.01)
    coded, damage = encode_matrix(torch.zeros(5, 6), TILINGS["whole"](5, 6, 16, 0), moment, gradients, 1e-3, coding)
    assert (coded.blocks[0].rank, damage) == (0, 0)
