"""Transforms are orthonormal, agree with SciPy, and truncation costs what Parseval says."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.fft import dct
from tests.conftest import TOLERANCE
from torch.testing import assert_close

from quasitile.codec.spectrum import TRANSFORMS, basis, energy_threshold, low_pass, round_with_dead_zone

EXACT = TOLERANCE[torch.float64]


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("size", [1, 2, 7, 32, 96])
def test_a_transform_is_orthonormal(name, size):
    transform = basis(name, size, torch.float64)
    assert_close(transform @ transform.T, torch.eye(size, dtype=torch.float64), **EXACT)


def test_the_dct_is_scipys():
    x = torch.randn(37, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert_close(basis("dct", 37, torch.float64) @ x, torch.from_numpy(dct(x.numpy(), axis=0, norm="ortho")), **EXACT)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_dropped_power_is_squared_error(name):
    generator = torch.Generator().manual_seed(1)
    block = torch.randn(33, 12, dtype=torch.float64, generator=generator)
    keep = torch.rand(33, 12, generator=generator) < 0.4
    transform = basis(name, 33, torch.float64)
    spectrum = transform @ block
    error = (block - transform.T @ (spectrum * keep)).square().sum()
    assert_close(error, spectrum[~keep].square().sum(), **EXACT)


def test_a_smooth_signal_keeps_its_power_at_low_frequencies():
    x = torch.linspace(0, 1, 64, dtype=torch.float64)[:, None] ** 2
    spectrum = basis("dct", 64, torch.float64) @ x
    assert low_pass(spectrum, 0.1).square().sum() > 0.999 * spectrum.square().sum()
    assert low_pass(spectrum, 0.1)[7:].abs().max() == 0


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=40), st.floats(0.5, 3))
def test_rounding_leaves_whole_numbers_and_drops_what_is_small(values, threshold):
    x = torch.tensor(values, dtype=torch.float64)
    rounded = round_with_dead_zone(x, threshold)
    assert torch.equal(rounded, rounded.round())
    assert (rounded[x.abs() < threshold] == 0).all()
    assert ((rounded - x).abs()[x.abs() >= threshold] <= 0.5).all()


def test_the_energy_threshold_drops_no_more_than_its_share():
    x = torch.randn(500, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    threshold = energy_threshold(x, 0.9)
    dropped = x[x.abs() < threshold].square().sum() / x.square().sum()
    assert 0.09 < dropped <= 0.1
    assert energy_threshold(torch.zeros(3), 0.9) == math.inf


def test_an_unknown_transform_is_named():
    with pytest.raises(ValueError, match=r"'dtc' is not one of dct"):
        basis("dtc", 4)
