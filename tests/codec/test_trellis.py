"""The search finds the best path, hands on errors as feedback does, and gains what the literature says it gains."""

import itertools

import numpy as np
import pytest
import torch
from tests.codec.test_factors import problem

from quasitile.codec.coding import Coding
from quasitile.codec.factors import damped_cholesky, scale_values
from quasitile.codec.machine import POLYNOMIALS, STATES, codes_of, machine, points_of
from quasitile.codec.matrix import decode_matrix, encode_matrix
from quasitile.codec.packing import pack, unpack
from quasitile.codec.residual import feedback_codes
from quasitile.codec.tiling import TILINGS
from quasitile.codec.trellis import search


def whole(rows, columns):
    return TILINGS["whole"](rows, columns, 16, 0)


@pytest.mark.parametrize("num_states", POLYNOMIALS)
def test_the_machine_keeps_the_parity_check_of_the_code(num_states):
    h1, h0 = POLYNOMIALS[num_states]
    parities = np.random.default_rng(0).integers(0, 2, 200)
    state, quantisers = 0, []
    for parity in parities:
        quantisers.append(state & 1)
        state = machine(num_states).following[state, parity]
    for place in range(num_states.bit_length(), 200):
        taps = range(num_states.bit_length())
        check = sum((h0 >> tap & 1) * quantisers[place - tap] + (h1 >> tap & 1) * parities[place - tap] for tap in taps)
        assert check % 2 == 0


@pytest.mark.parametrize("num_states", STATES)
def test_every_state_is_reached_from_two_edges_and_points_are_codes(num_states):
    known = machine(num_states)
    edges = {(int(s), int(p)) for s, p in zip(known.sources.ravel(), known.parities.ravel(), strict=True)}
    assert edges == set(itertools.product(range(num_states), (0, 1)))
    points, _ = search(3 * torch.randn(7, 40, generator=torch.Generator().manual_seed(0)), None, whole(7, 40), 1.0, num_states)
    codes, quantisers = codes_of(points.numpy() // (2 if num_states == 1 else 1), num_states)
    assert np.array_equal(points_of(codes, quantisers, num_states), points.numpy() // (2 if num_states == 1 else 1))


def test_what_is_no_path_is_refused():
    with pytest.raises(ValueError, match="no path of the trellis of 8 states"):
        codes_of(np.ones((2, 5), np.int32), 8)
    with pytest.raises(ValueError, match="trellis=3 is not one of 1, 4, 8"):
        machine(3)


def points_within(point, quantiser, parity, reach=40):
    codes = [k for k in range(-reach, reach + 1) if k % 2 == parity]
    return min((2 * k - quantiser * np.sign(k) for k in codes), key=lambda value: abs(value - point))


@pytest.mark.parametrize("num_states", [4, 8, 16])
def test_without_feedback_no_path_is_nearer(num_states):
    target = 2 * torch.randn(4, 9, generator=torch.Generator().manual_seed(1)).double()
    points, exact = search(target, None, whole(4, 9), 1.0, num_states, rate_weight=0.0)
    assert torch.allclose(exact, 2 * target, atol=1e-5)
    for row, found in zip(target.numpy(), points.numpy(), strict=True):
        best = np.inf
        for parities in itertools.product((0, 1), repeat=9):
            state, cost = 0, 0.0
            for j, parity in zip(reversed(range(9)), parities, strict=True):
                cost += (2 * row[j] - points_within(2 * row[j], state & 1, parity)) ** 2
                state = machine(num_states).following[state, parity]
            best = min(best, cost)
        assert ((2 * row - found) ** 2).sum() == pytest.approx(best, rel=1e-5)


def slow_search(row, lower, num_states):
    """One row of `search` without a price on bits: every survivor with the whole of its past."""
    survivors = {0: (0.0, np.zeros(len(row)), np.zeros(len(row)))}
    for j in reversed(range(len(row))):
        following = {}
        for state, (cost, lost, points) in survivors.items():
            wanted = row[j] + lost[j + 1 :] @ lower[j + 1 :, j] / lower[j, j]
            for parity in (0, 1):
                point = points_within(wanted, state & 1, parity)
                total = cost + ((wanted - point) * lower[j, j]) ** 2
                place = machine(num_states).following[state, parity]
                if place not in following or total < following[place][0]:
                    errors, chosen = lost.copy(), points.copy()
                    errors[j], chosen[j] = row[j] - point, point
                    following[place] = total, errors, chosen
        survivors = following
    return min(survivors.values(), key=lambda survivor: survivor[0])


@pytest.mark.parametrize("num_states", [1, 4, 8])
def test_with_feedback_it_is_the_slow_search(num_states):
    weight, moment, _ = problem()
    lower = damped_cholesky(moment)
    points, exact = search(weight.double(), lower, whole(*weight.shape), 0.2, num_states, rate_weight=0.0)
    for row in range(0, 60, 9):
        cost, lost, expected = slow_search(weight[row].double().numpy() / 0.1, lower.numpy(), num_states)
        assert np.array_equal(points[row].numpy(), expected)
        assert np.allclose((exact - points)[row].numpy() * lower.diagonal().numpy(), (lost @ lower.numpy()), atol=1e-4)
        assert cost == pytest.approx(((lost @ lower.numpy()) ** 2).sum(), rel=1e-6)


def test_blocks_of_columns_lose_next_to_nothing():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2000, 300, generator=generator).double() @ torch.randn(300, 300, generator=generator).double()
    lower = damped_cholesky(inputs.T @ inputs / 2000 / 300)
    weight = 3 * torch.randn(6, 300, generator=generator).double()
    points, _ = search(weight, lower, whole(6, 300), 1.0, 8, rate_weight=0.0)
    found = ((2 * weight - points) @ lower).square().sum(1)
    slow = [slow_search(2 * row.numpy(), lower.numpy(), 8)[0] for row in weight]
    assert found.sum().item() == pytest.approx(sum(slow), rel=0.02)


def test_one_state_is_ordinary_feedback():
    weight, moment, _ = problem()
    lower = damped_cholesky(moment)
    points, _ = search(weight.double(), lower, whole(*weight.shape), 0.2, 1, rate_weight=0.0)
    assert torch.equal(points.double(), 2 * feedback_codes(weight.double(), lower, 0.2)[0])


@pytest.mark.parametrize(("num_states", "decibels"), [(4, 0.99), (8, 1.09), (16, 1.16)])
def test_the_gain_is_the_published_one(num_states, decibels):
    """Granular gain of trellis-coded quantisation of a uniform source (Marcellin and Fischer 1990)."""
    target = 50 * torch.rand(40, 600, generator=torch.Generator().manual_seed(0)).double()
    points, _ = search(target, None, whole(40, 600), 1.0, num_states, rate_weight=0.0)
    error = (target - points / 2).square().mean().item()
    assert 10 * np.log10(1 / 12 / error) == pytest.approx(decibels, abs=0.07)


@pytest.mark.parametrize("tiling", ["fibonacci", "penrose", "whole"])
def test_tiles_decode_to_what_was_chosen_and_the_predicted_damage_is_the_damage(tiling):
    weight, moment, gradients = problem()
    layout = TILINGS[tiling](60, 48, 16, 0)
    coding = Coding(residual="identity", num_states=8, damping=1e-6)
    coded, predicted = encode_matrix(weight, layout, moment, gradients, 0.1, coding)
    stored = unpack(pack(coded))
    assert stored.num_states == 8
    for before, after in zip(coded.blocks, stored.blocks, strict=True):
        assert torch.equal(before.residual, after.residual)
    error = weight.double() - decode_matrix(stored).double()
    rounded = scale_values(coded.row_scales).double().square()  # gradients to a quarter octave
    assert predicted == pytest.approx(0.5 * (rounded * ((error @ moment.double()) * error).sum(1)).sum().item(), rel=0.08)


def test_at_the_same_bytes_a_trellis_loses_a_tenth_less_than_rounding():
    weight, moment, gradients = problem(200, 160)
    layout = whole(200, 160)
    plain, least = encode_matrix(weight, layout, moment, gradients, 0.2, Coding(residual="identity"))
    num_bytes = pack(plain).numel()
    for step in torch.linspace(0.15, 0.3, 31).tolist():
        coded, damage = encode_matrix(weight, layout, moment, gradients, step, Coding(residual="identity", num_states=8))
        if pack(coded).numel() <= num_bytes:
            break
    assert pack(coded).numel() <= num_bytes
    assert damage < 0.9 * least
