"""Residual codes come back exactly, in few more bits than their entropy; damaged streams are refused."""

import constriction
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quasitile.codec.entropy import (
    NUM_LEVELS,
    NUM_SHAPES,
    Statistics,
    code_bits,
    decode_bytes,
    decode_tile,
    encode_bytes,
    encode_tile,
    fit,
    largest_code,
    probabilities,
    spread_of,
)
from quasitile.codec.machine import STATES, machine, points_of

WHOLE = slice(None)


def uneven_codes(spread, rows=300, columns=200, seed=0):
    """Normal codes whose spread differs by row and by column, and that spread."""
    rng = np.random.default_rng(seed)
    spreads = spread * np.exp(0.5 * rng.standard_normal(rows))[:, None] * np.exp(0.5 * rng.standard_normal(columns))
    return np.rint(rng.standard_normal((rows, columns)) * spreads).astype(np.int64), spreads


def true_entropy(spreads):
    """Mean bits of rounded normal variables, by summing over their values."""
    values = np.arange(-4000, 4001)
    total = 0.0
    for spread in np.quantile(spreads, np.linspace(0.001, 0.999, 200)):
        density = np.exp(-0.5 * (np.linspace(-4000.5, 4000.5, 8001 * 8) / spread) ** 2).reshape(8001, 8).sum(1)
        mass = density / density.sum()
        total -= (mass[mass > 0] * np.log2(mass[mass > 0])).sum()
    assert len(values) == 8001
    return total / 200


@pytest.mark.parametrize("spread", [0.7, 3.0, 30.0])
def test_the_bits_are_within_three_per_cent_of_the_entropy(spread):
    codes, spreads = uneven_codes(spread)
    statistics = fit(codes)
    nothing = np.zeros(codes.shape, np.uint8)
    words, escapes = encode_tile(codes, nothing, statistics.levels(WHOLE, WHOLE), statistics.shape)
    bits = (32 * len(words) + 32 * len(escapes)) / codes.size
    assert bits == pytest.approx(true_entropy(spreads), rel=0.03)
    assert bits == pytest.approx(code_bits(codes, nothing, statistics) / codes.size, rel=0.002)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 30),
    st.integers(0, 30),
    st.sampled_from([0.0, 0.1, 2.0, 500.0]),
    st.integers(0, NUM_SHAPES - 1),
    st.sampled_from(STATES),
    st.integers(0, 9),
)
def test_any_path_comes_back(rows, columns, spread, shape, num_states, seed):
    rng = np.random.default_rng(seed)
    codes = np.rint(rng.standard_t(1.5, (rows, columns)) * spread).clip(-5e8, 5e8).astype(np.int32)
    levels = rng.integers(0, NUM_LEVELS, (rows, columns)).astype(np.uint8)
    quantisers = quantisers_of(codes, num_states)
    words, escapes = encode_tile(codes, quantisers, levels, shape)
    decoded = decode_tile(words, escapes, levels, shape, num_states)
    assert np.array_equal(decoded, points_of(codes, quantisers, num_states))


def quantisers_of(codes, num_states):
    """The machine, code by code."""
    quantisers = np.zeros(codes.shape, np.uint8)
    for row, chosen in zip(codes, quantisers, strict=True):
        state = 0
        for j in reversed(range(len(row))):
            chosen[j] = state % 2
            state = machine(num_states).following[state, row[j] % 2]
    return quantisers


def test_the_coder_takes_as_many_bytes_as_the_constriction_library():
    codes, level = np.rint(2 * np.random.default_rng(0).standard_normal((100, 100))).astype(np.int32), 20
    words, _ = encode_tile(codes, np.zeros(codes.shape, np.uint8), np.full(codes.shape, level, np.uint8), 0)
    coder = constriction.stream.stack.AnsCoder()
    model = constriction.stream.model.Categorical(probabilities(level, 0), perfect=False)
    coder.encode_reverse(codes.ravel() + largest_code(level), model)
    assert abs(len(words) - len(coder.get_compressed())) <= 1


def test_a_code_too_large_for_a_symbol_is_written_out():
    codes = np.zeros((20, 20), dtype=np.int32)
    codes[3, 4], codes[7, 1] = 10**6, -(10**6)
    statistics = fit(codes.astype(np.int64))
    levels = statistics.levels(WHOLE, WHOLE)
    words, escapes = encode_tile(codes, np.zeros(codes.shape, np.uint8), levels, statistics.shape)
    assert escapes.tolist() == [10**6, -(10**6)]
    assert np.array_equal(decode_tile(words, escapes, levels, statistics.shape), codes)


@pytest.mark.parametrize("shape", range(NUM_SHAPES))
@pytest.mark.parametrize("level", [0, 5, 16, 40, NUM_LEVELS - 1])
def test_the_second_quantiser_has_half_the_cell_at_zero(level, shape):
    p, largest = probabilities(level, shape, 1), largest_code(level)
    assert p.sum() == pytest.approx(1, abs=1e-12)
    assert (p > 0).all()
    wide = probabilities(level, shape)
    if level >= 16:
        assert p[largest] == pytest.approx(wide[largest] / 2, rel=0.03 if level > 16 else 0.25)
        beyond = p[largest + 1 : -1].sum() + p[largest] / 2  # what lies above zero
        assert beyond == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("shape", range(NUM_SHAPES))
@pytest.mark.parametrize("level", [0, 16, 40])
def test_probabilities_are_those_of_the_distribution(level, shape):
    p, largest = probabilities(level, shape), largest_code(level)
    assert p.sum() == pytest.approx(1)
    assert (p > 0).all()
    assert np.allclose(p[:-1], p[:-1][::-1], atol=2**-21)
    values = np.arange(-largest, largest + 1)
    variance = (p[:-1] * values**2).sum()
    if level >= 16:
        assert variance == pytest.approx(spread_of(level) ** 2 + 1 / 12, rel=0.02)


def test_damaged_streams_are_refused():
    codes, _ = uneven_codes(2.0, 40, 40)
    statistics = fit(codes)
    levels = statistics.levels(WHOLE, WHOLE)
    words, escapes = encode_tile(codes, np.zeros(codes.shape, np.uint8), levels, statistics.shape)
    more = np.append(words, np.uint32(5))
    with pytest.raises(ValueError, match="end where it should"):
        decode_tile(more, escapes, levels, statistics.shape)
    with pytest.raises(ValueError, match="end where it should"):
        decode_tile(words, np.array([3], dtype=np.int32), levels, statistics.shape)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 255), max_size=80))
def test_side_information_comes_back(values):
    data = encode_bytes(np.array(values, dtype=np.uint8))
    words = np.frombuffer(data[6:], "<u4").astype(np.uint32)
    assert int.from_bytes(data[2:6], "little") == len(words)
    assert decode_bytes(data[0], data[1], words, len(values)).tolist() == values


def test_levels_stay_in_range():
    statistics = Statistics(np.array([0, 255], np.uint8), np.array([0, 255], np.uint8), 0)
    assert statistics.levels(WHOLE, WHOLE).tolist() == [[0, 63], [63, 63]]
