"""The GPTQ baseline is GPTQ: each column's loss is made up for as the optimal brain surgeon would."""

import pytest
import torch
from tests.codec.test_factors import problem
from torch.testing import assert_close

from quasitile.baselines import gptq


def surgeon(weight, moment, bits, group):
    """The same by the surgeon's own formula: a new inverse for what is still free, column after column."""
    damped = moment.double() + 0.01 * moment.double().diagonal().mean() * torch.eye(len(moment), dtype=torch.float64)
    current, rounded = weight.double().clone(), torch.zeros_like(weight, dtype=torch.float64)
    for j in range(weight.shape[1]):
        if j % group == 0:
            low = current[:, j : j + group].amin(1).clamp_max(0)
            scale = ((current[:, j : j + group].amax(1).clamp_min(0) - low) / (2**bits - 1)).clamp_min(1e-12)
        rounded[:, j] = ((current[:, j] - low) / scale).round().clamp(0, 2**bits - 1) * scale + low
        inverse = torch.linalg.inv(damped[j:, j:])
        error = (current[:, j] - rounded[:, j]) / inverse[0, 0]
        current[:, j:] -= error[:, None] * inverse[0]
    return rounded.float()


@pytest.mark.parametrize("bits", [2, 4])
def test_it_is_the_surgeon_column_after_column(bits):
    weight, moment, _ = problem()
    rounded, _ = gptq(weight, moment, bits, group=16)
    assert_close(rounded, surgeon(weight, moment, bits, 16), rtol=1e-4, atol=1e-5)


def test_it_loses_less_than_rounding_alone_and_counts_its_grids():
    weight, moment, _ = problem()
    rounded, stored = gptq(weight, moment, 3, group=24)
    alone, _ = gptq(weight, torch.eye(48), 3, group=24)
    assert stored == 3 + 32 * 2 / 48

    def damage(other):
        error = (weight - other).double()
        return float(((error @ moment.double()) * error).sum())

    assert damage(rounded) < 0.8 * damage(alone)


def test_impossible_rates_are_refused():
    with pytest.raises(ValueError, match=r"bits=0 must lie in \[1, 8\]"):
        gptq(torch.zeros(2, 2), torch.eye(2), 0)
