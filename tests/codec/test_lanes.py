"""Tiles decoded in turns give what one tile after another gives; one pass over rows gives what PyTorch's passes give."""

import constriction
import numpy as np
import pytest
import torch
from tests.codec.test_entropy import quantisers_of

from quasitile.codec import entropy, gaussian
from quasitile.codec.block import Tile, Tiling, row_bands
from quasitile.codec.dequantise import dequantise
from quasitile.codec.entropy import Statistics, decode_tile, decode_tiles, encode_tile
from quasitile.codec.factors import scale_values
from quasitile.codec.payload import FACTORS, models, spread_values
from quasitile.codec.tiling import TILINGS


def streams(tiling, num_states, spread, seed=0):
    """Everything `decode_tiles` takes, and the streams one by one."""
    rng = np.random.default_rng(seed)
    levels = [
        rng.integers(low, high, size).astype(np.uint8) for low, high, size in zip((5, 55), (30, 80), tiling.shape, strict=True)
    ]
    statistics = Statistics(*levels, shape=2, num_states=num_states)
    parts, corners = [], []
    for tile in (tile for band in row_bands(tiling) for tile in band):
        codes = np.rint(rng.standard_t(2, tile.shape) * spread).astype(np.int32)
        inner = statistics.levels(tile.rows, tile.columns)
        parts.append((*encode_tile(codes, quantisers_of(codes, num_states), inner, 2), inner))
        corners.append([tile.row_start, tile.row_stop, tile.column_start, tile.column_stop])
    stream = np.concatenate([np.concatenate([words, escapes.view(np.uint32)]) for words, escapes, _ in parts])
    sizes = (np.array([len(part[place]) for part in parts], np.int64) for place in (0, 1))
    return stream, *sizes, np.array(corners, np.int64), statistics, parts


@pytest.mark.parametrize("num_states", [1, 4, 8, 64])
@pytest.mark.parametrize(
    ("name", "shape", "spread"), [("penrose", (70, 90), 3.0), ("hierarchical", (130, 40), 0.1), ("whole", (9, 7), 300.0)]
)
def test_tiles_in_turns_are_tiles_one_by_one(name, shape, spread, num_states):
    *given, corners, statistics, parts = streams(TILINGS[name](*shape, 16, 0), num_states, spread)
    points = decode_tiles(*given, corners, statistics)
    for (words, escapes, levels), (top, bottom, left, right) in zip(parts, corners.tolist(), strict=True):
        assert np.array_equal(points[top:bottom, left:right], decode_tile(words, escapes, levels, 2, num_states))


def test_damage_in_any_tile_is_refused():
    stream, lengths, counts, corners, statistics, _ = streams(TILINGS["penrose"](70, 90, 16, 0), 8, 3.0)
    rng, refused = np.random.default_rng(0), 0
    for _ in range(50):
        damaged = stream.copy()
        damaged[rng.integers(len(stream))] ^= np.uint32(1 << int(rng.integers(32)))
        try:
            decode_tiles(damaged, lengths, counts, corners, statistics)
        except ValueError:
            refused += 1
    assert refused > 40  # a bit of a large code changes that code only
    with pytest.raises(ValueError, match="end where it should"):  # a large code too many
        decode_tiles(
            np.append(stream, np.uint32(7)), lengths, counts + (np.arange(len(counts)) == len(counts) - 1), corners, statistics
        )


def test_an_entry_holds_what_the_search_finds():
    for shape, trellis in ((0, False), (4, True)):
        entries = entropy.packed_entries(shape, trellis).reshape(2, entropy.NUM_LEVELS, -1)
        starts, largest, cumulative = entropy.cumulative_table(shape)
        for quantiser, level, part in ((0, 0, 255), (1, 20, 100), (1, 63, 3), (0, 63, 254)):
            entry, slot = int(entries[quantiser, level, part]), part << 14
            place = int(entropy.first_guesses(shape)[quantiser, level, part])
            code = place - starts[quantiser, level] - largest[level]
            assert cumulative[place] <= slot < cumulative[place + 1]
            assert (entry & 0x3FFFFF, entry >> 22 & 0x3FFFFF) == (cumulative[place], cumulative[place + 1] - cumulative[place])
            assert (entry >> 44) & 1 == code & 1
            assert (entry >> 45) - (1 << 17) == (2 * code - quantiser * np.sign(code) if trellis else code)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ordered", [False, True])
def test_one_pass_gives_the_same_bits_as_several(dtype, ordered):
    generator = torch.Generator().manual_seed(0)
    points = torch.randint(-3000, 3000, (31, 57), generator=generator, dtype=torch.int32)
    points[3, 4] = 2**30 + 1
    scales = [scale_values(torch.randint(60, 200, (size,), generator=generator).to(torch.uint8)) for size in points.shape]
    order = torch.randperm(57, generator=generator) if ordered else None
    expected = points.float()
    expected *= 0.0123456789
    expected /= scales[0][:, None]
    expected /= scales[1]
    if order is not None:
        expected = expected[:, order.argsort()]
    out = torch.empty(points.shape, dtype=dtype)
    assert dequantise(points.numpy(), 0.0123456789, *scales, order, out)
    assert torch.equal(out, expected.to(dtype))
    assert not dequantise(points.numpy(), 1e38, *scales, order, out)


def factor_streams(shapes, ranks, spreads, seed=0):
    rng, words, rows, first = np.random.default_rng(seed), [], [], 0
    for (height, width), rank in zip(shapes.tolist(), ranks.tolist(), strict=True):
        inner = spreads[:, first : first + rank]
        deviations = models(height, width, inner)[1]
        row = np.rint(rng.standard_normal(len(deviations)) * deviations).clip(-32767, 32767).astype(np.int32)
        coder = constriction.stream.stack.AnsCoder()
        coder.encode_reverse(row, FACTORS, *models(height, width, inner))
        words.append(coder.get_compressed() if rank else np.zeros(0, np.uint32))
        rows.append(row)
        first += rank
    return np.concatenate(words), np.array([len(each) for each in words], np.int64), np.concatenate(rows)


@pytest.mark.parametrize("codes", [(20, 70), (0, 1), (60, 105)])
def test_factors_in_turns_are_those_of_the_library(codes):
    rng = np.random.default_rng(1)
    shapes = rng.integers(1, 40, (30, 2))
    ranks = rng.integers(0, 5, 30)
    spreads = rng.integers(*codes, (2, int(ranks.sum()))).astype(np.uint8)
    stream, lengths, expected = factor_streams(shapes, ranks, spreads)
    row = gaussian.decode_components(stream, lengths, shapes, ranks, spread_values(spreads))
    assert row is not None
    assert np.array_equal(row, expected)
    stream[len(stream) // 2] ^= 64
    assert gaussian.decode_components(stream, lengths, shapes, ranks, spread_values(spreads)) is None


def test_factors_far_out_are_left_to_the_library():
    shapes, ranks, spreads = np.array([[20, 10]]), np.array([1]), np.array([[40], [40]], np.uint8)
    row = np.zeros(30, np.int32)
    row[3] = 3000  # at a spread of 1
    coder = constriction.stream.stack.AnsCoder()
    coder.encode_reverse(row, FACTORS, *models(20, 10, spreads))
    words = coder.get_compressed()
    assert gaussian.decode_components(words, np.array([len(words)]), shapes, ranks, spread_values(spreads)) is None


def test_an_empty_set_of_tiles_has_no_factors():
    none = np.zeros(0, np.int64)
    tiling = Tiling((1, 1), (Tile(0, 1, 0, 1),))
    assert tiling.covers_exactly()
    assert (
        gaussian.decode_components(np.zeros(0, np.uint32), none, np.zeros((0, 2), np.int64), none, np.zeros((2, 0))).size == 0
    )
