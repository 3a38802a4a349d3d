"""Shared numbers: circulants are what the Fourier transform says, hashed spectra what a slow loop says."""

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn
from tests.codec.test_factors import problem, true_damage
from torch.testing import assert_close

from quasitile.codec.structure import STRUCTURES, Structure, bucket_counts

SHAPES = [(12, 8), (13, 7), (3, 9), (1, 5)]


def random_matrix(shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def structure(name, shape, side=4, ratio=3):
    return Structure(name, shape, side, side if name == "circulant" else ratio)


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_is_expanded_is_projected_back(name, shape):
    form = structure(name, shape)
    weight = form.expand(form.project(random_matrix(shape)))
    assert weight.shape == shape
    if all(size % form.side == 0 for size in shape) or name == "circulant":
        assert_close(form.expand(form.project(weight)), weight)
    assert form.project(weight).shape == form.stored_shape
    assert form.stored_shape[0] * form.stored_shape[1] <= max(1.6 * shape[0] * shape[1] / form.ratio, 4 * shape[1], 2 * 4)


@pytest.mark.parametrize("name", STRUCTURES)
def test_the_projection_is_the_nearest_matrix_of_its_kind(name):
    form = structure(name, (12, 8))
    columns = torch.stack(
        [form.expand(unit.view(form.stored_shape)).flatten() for unit in torch.eye(np.prod(form.stored_shape)).double()]
    )
    weight = random_matrix((12, 8))
    nearest = np.linalg.lstsq(columns.T.numpy(), weight.flatten().numpy(), rcond=None)[0] @ columns.numpy()
    assert_close(form.expand(form.project(weight)).flatten(), torch.from_numpy(nearest))


def test_a_circulant_block_is_the_diagonal_of_its_fourier_transform():
    weight = random_matrix((12, 8))
    slow = np.zeros((12, 8))
    fourier = np.fft.fft(np.eye(4))
    for top in range(0, 12, 4):
        for left in range(0, 8, 4):
            spectrum = fourier @ weight[top : top + 4, left : left + 4].numpy() @ np.linalg.inv(fourier)
            slow[top : top + 4, left : left + 4] = (np.linalg.inv(fourier) @ np.diag(np.diag(spectrum)) @ fourier).real
    form = structure("circulant", (12, 8))
    assert_close(form.expand(form.project(weight)), torch.from_numpy(slow))


def test_an_error_of_a_circulant_costs_what_its_moments_say():
    _, moment, _ = problem(12, 8)
    form = structure("circulant", (12, 8))
    prices = torch.tensor([0.3, 2.0, 1.0]).repeat_interleave(4)  # alike inside each row of blocks: then it is exact
    error = random_matrix(form.stored_shape, 1)
    inputs, outputs = form.moments(moment.double(), prices.double())
    stored = true_damage(error, torch.zeros_like(error), inputs, outputs)
    assert stored == pytest.approx(true_damage(form.expand(error), torch.zeros(12, 8), moment, prices), rel=1e-6)


def slow_place(form, row, column):
    """Number and sign of a coefficient, in Python's whole numbers."""
    mask, side = 2**32 - 1, form.side
    mixed = (row * 2654435761 + column * 2246822519 + 374761393) & mask
    mixed = ((mixed ^ (mixed >> 15)) * 2246822519) & mask
    mixed = ((mixed ^ (mixed >> 13)) * 3266489917) & mask
    mixed ^= mixed >> 16
    frequency, counts = row % side + column % side, bucket_counts(form)
    return sum(counts[:frequency]) + (mixed >> 1) % counts[frequency], 1 - 2 * (mixed & 1)


def test_hashed_spectra_are_those_of_a_slow_loop():
    form = Structure("hashed", (24, 16), 8, 4)
    weight = random_matrix((24, 16)).numpy()
    spectrum, slow = np.zeros((24, 16)), np.zeros((24, 16))
    for top in range(0, 24, 8):
        for left in range(0, 16, 8):
            spectrum[top : top + 8, left : left + 8] = dctn(weight[top : top + 8, left : left + 8], norm="ortho")
    sums, uses = {}, {}
    for row in range(24):
        for column in range(16):
            number, sign = slow_place(form, row, column)
            sums[number] = sums.get(number, 0.0) + sign * spectrum[row, column]
            uses[number] = uses.get(number, 0) + 1
    for row in range(24):
        for column in range(16):
            number, sign = slow_place(form, row, column)
            spectrum[row, column] = sign * sums[number] / uses[number]
    for top in range(0, 24, 8):
        for left in range(0, 16, 8):
            slow[top : top + 8, left : left + 8] = idctn(spectrum[top : top + 8, left : left + 8], norm="ortho")
    assert_close(form.expand(form.project(torch.from_numpy(weight))), torch.from_numpy(slow))


def test_high_frequencies_share_more_and_the_numbers_are_as_many_as_asked():
    form = Structure("hashed", (256, 256), 8, 4)
    counts = bucket_counts(form)
    per_coefficient = [count / (1024 * min(f + 1, 15 - f)) for f, count in enumerate(counts)]
    assert per_coefficient == sorted(per_coefficient, reverse=True)
    assert 0.99 * 256 * 256 / 4 < sum(counts) <= 256 * 256 / 4
