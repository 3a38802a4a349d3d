"""Transforms are orthonormal, agree with SciPy, and truncation costs what Parseval says."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.fft import dct
from scipy.linalg import hadamard
from tests.conftest import TOLERANCE
from torch.testing import assert_close

from quasitile.codec.spectrum import (
    TRANSFORMS,
    TRUNCATIONS,
    Truncation,
    basis,
    low_pass,
    most_energy,
    num_kept,
    round_with_dead_zone,
)

EXACT = TOLERANCE[torch.float64]


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("size", [*range(1, 41), 96, 155, 160])
def test_a_transform_is_orthonormal(name, size):
    transform = basis(name, size, torch.float64)
    assert_close(transform @ transform.T, torch.eye(size, dtype=torch.float64), **EXACT)


def test_the_dct_is_scipys():
    x = torch.randn(37, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert_close(basis("dct", 37, torch.float64) @ x, torch.from_numpy(dct(x.numpy(), axis=0, norm="ortho")), **EXACT)


def test_the_order_of_the_transforms_is_that_of_the_format():
    assert list(TRANSFORMS) == ["dct", "identity", "random", "fft", "hadamard", "wavelet"]


@pytest.mark.parametrize("size", [1, 2, 3, 8, 37, 40])
def test_the_fft_has_numpys_power_at_each_frequency(size):
    x = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    power = (basis("fft", size, torch.float64) @ x).square()
    frequencies = np.fft.fft(x.numpy(), norm="ortho")
    for frequency in range(size // 2 + 1):
        rows = [row for row in (2 * frequency - 1, 2 * frequency) if 0 <= row < size]
        mirrored = {frequency, -frequency % size}
        expected = sum(abs(frequencies[index]) ** 2 for index in mirrored)
        assert float(power[rows].sum()) == pytest.approx(expected, rel=1e-10, abs=1e-14)


@pytest.mark.parametrize("size", [1, 2, 4, 16, 64])
def test_the_hadamard_rows_are_scipys_in_order_of_sequency(size):
    rows = basis("hadamard", size, torch.float64).numpy() * math.sqrt(size)
    assert [int((np.diff(row) != 0).sum()) for row in rows] == list(range(size))
    assert sorted(map(tuple, rows.round().astype(int))) == sorted(map(tuple, hadamard(size)))


def test_the_hadamard_of_other_sizes_is_one_for_each_binary_digit():
    rows = basis("hadamard", 13, torch.float64)
    parts = [rows[:, :8], rows[:, 8:12], rows[:, 12:]]
    for part, size in zip(parts, (8, 4, 1), strict=True):
        own = part[part.abs().sum(1) > 0]
        assert torch.equal(own, basis("hadamard", size, torch.float64))
    assert (rows[:3].sum(1) > 0).all()  # the constants of all parts come first
    assert_close(rows[3:].sum(1), torch.zeros(10, dtype=torch.float64), **EXACT)


@pytest.mark.parametrize("size", [1, 2, 5, 7, 16, 33])
def test_the_wavelet_is_a_haar_cascade(size):
    x = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(size)).tolist()
    nodes, details = [(value, 1) for value in x], []  # means of stretches, and their lengths
    while len(nodes) > 1:
        pairs = list(zip(nodes[::2], nodes[1::2], strict=False))
        details = [(a - b) * math.sqrt(m * n / (m + n)) for (a, m), (b, n) in pairs] + details
        nodes = [((m * a + n * b) / (m + n), m + n) for (a, m), (b, n) in pairs] + nodes[len(pairs) * 2 :]
    expected = [nodes[0][0] * math.sqrt(size), *details]
    found = basis("wavelet", size, torch.float64) @ torch.tensor(x, dtype=torch.float64)
    assert_close(found, torch.tensor(expected, dtype=torch.float64), **EXACT)


@pytest.mark.parametrize("name", ["dct", "fft", "hadamard", "wavelet"])
@pytest.mark.parametrize("size", [4, 16])
def test_the_first_function_is_constant(name, size):
    assert_close(basis(name, size, torch.float64)[0], torch.full((size,), size**-0.5, dtype=torch.float64), **EXACT)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_dropped_power_is_squared_error(name):
    generator = torch.Generator().manual_seed(1)
    block = torch.randn(33, 12, dtype=torch.float64, generator=generator)
    keep = torch.rand(33, 12, generator=generator) < 0.4
    transform = basis(name, 33, torch.float64)
    spectrum = transform @ block
    error = (block - transform.T @ (spectrum * keep)).square().sum()
    assert_close(error, spectrum[~keep].square().sum(), **EXACT)


@pytest.mark.parametrize("name", ["dct", "fft", "hadamard", "wavelet"])
def test_a_smooth_signal_keeps_its_power_at_low_frequencies(name):
    x = torch.sin(torch.linspace(0, math.pi, 64, dtype=torch.float64))[:, None]
    spectrum = basis(name, 64, torch.float64) @ x
    keep = low_pass(spectrum, 0.15)
    assert spectrum[keep].square().sum() > 0.98 * spectrum.square().sum()
    assert int(keep.sum()) == 10
    assert not keep[10:].any()


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=40), st.floats(0.5, 3))
def test_rounding_leaves_whole_numbers_and_drops_what_is_small(values, threshold):
    x = torch.tensor(values, dtype=torch.float64)
    rounded = round_with_dead_zone(x, threshold)
    assert torch.equal(rounded, rounded.round())
    assert (rounded[x.abs() < threshold] == 0).all()
    assert ((rounded - x).abs()[x.abs() >= threshold] <= 0.5).all()


def slow_mask(rule, values, amount, num_axes):
    """The truncation rules, an entry at a time."""
    flat = [(-abs(value), place) for place, value in enumerate(values.flatten().tolist())]
    if rule == "threshold":
        kept = {place for size, place in flat if -size >= amount}
    elif rule == "budget":
        kept = {place for _, place in sorted(flat)[: num_kept(len(flat), amount)]}
    elif rule == "energy":
        kept, power, total = set(), 0.0, sum(size * size for size, _ in flat)
        for size, place in sorted(flat):
            if power < amount * total * (1 - 1e-12):
                kept.add(place)
            power += size * size
    else:
        limits = [num_kept(size, amount) for size in values.shape[:num_axes]]
        places = itertools.product(*map(range, values.shape))
        kept = {n for n, place in enumerate(places) if all(i < limit for i, limit in zip(place, limits, strict=False))}
    return torch.tensor([place in kept for _, place in flat]).view(values.shape)


@pytest.mark.parametrize("rule", TRUNCATIONS)
@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([0.05, 0.3, 0.55, 0.9]), st.integers(1, 2), st.integers(0, 99))
def test_a_truncation_keeps_what_a_slow_one_keeps(rule, rows, columns, amount, num_axes, seed):
    values = torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(TRUNCATIONS[rule](values, amount, num_axes), slow_mask(rule, values, amount, num_axes))


def test_the_energy_rule_keeps_its_share_and_not_a_coefficient_more():
    x = torch.randn(500, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    kept = x[most_energy(x, 0.9)].square()
    assert kept.sum() >= 0.9 * x.square().sum() > kept.sum() - kept.min()
    assert not most_energy(torch.zeros(3), 0.9).any()
    assert most_energy(torch.zeros(0), 0.9).shape == (0,)


def test_a_share_of_a_count_is_not_rounded_up_by_its_last_bit():
    assert num_kept(100, 0.55) == 55
    assert num_kept(10, 0.01) == 1
    assert num_kept(7, 1.0) == 7


@pytest.mark.parametrize("rule", ["energy", "low_pass", "budget"])
def test_truncation_drops_codes_on_top_of_rounding_and_training_starts_from_zero_there(rule):
    values = 3 * torch.randn(24, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    codes, start = Truncation(rule, 0.7, 0.4).codes(values)
    keep = TRUNCATIONS[rule](values, 0.4, 1)
    assert torch.equal(codes[keep], round_with_dead_zone(values, 0.7)[keep])
    assert torch.equal(start[keep], values[keep])
    assert codes[~keep].abs().sum() == start[~keep].abs().sum() == 0
    everything, start = Truncation(rule, 0.7, 1.0).codes(values)
    assert torch.equal(everything, Truncation("threshold", 0.7).codes(values)[0])
    assert torch.equal(start, values)


def test_an_unknown_transform_is_named():
    with pytest.raises(ValueError, match=r"'dtc' is not one of dct"):
        basis("dtc", 4)
