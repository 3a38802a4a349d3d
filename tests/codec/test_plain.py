"""Coding some rows at a time gives what coding the whole matrix gives."""

import io
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from quasitile.codec.coding import Coding
from quasitile.codec.factors import scale_values
from quasitile.codec.matrix import decode_matrix, encode_matrix
from quasitile.codec.packing import pack, unpack
from quasitile.codec.plain import block_edges, code_rows, column_cuts, input_side, part_of, row_scale_codes, unit_of
from quasitile.codec.plain_packing import CodeStore, grouped_bands, pack_plain, sampled_bytes
from quasitile.codec.tiling import TILINGS

CODING = Coding(residual="identity", num_states=1)
TRELLIS = Coding(residual="identity", num_states=8)


def problem(num_rows=90, num_columns=70, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(num_rows, num_columns, generator=generator)
    x = torch.randn(200, num_columns, generator=generator) * torch.logspace(0, -1, num_columns)
    return weight, x.T @ x / 200, torch.rand(num_rows, generator=generator) + 0.1


def in_blocks(moment, edges):
    """(K, W, W) padded blocks of a moment, and the moment with zeros between them."""
    parts = [moment[start:stop, start:stop] for start, stop in pairwise(edges)]
    width = max(len(part) for part in parts)
    blocks = torch.zeros(len(parts), width, width)
    for block, part in zip(blocks, parts, strict=True):
        block[: len(part), : len(part)] = part
    return blocks, torch.block_diag(*parts)


def coded(weight, tiling, moment, edges, outputs, step, coding=CODING, rows_at_a_time=20, folder=None):
    """The payload, the damage and the squared error."""
    side, row_codes = input_side(moment, edges, coding), row_scale_codes(outputs, coding)
    damage = squared_error = 0.0
    out = io.BytesIO()
    with CodeStore(tuple(weight.shape), coding.trellis, folder) as store:
        for rows, tiles in grouped_bands(tiling, rows_at_a_time):
            of_rows = part_of(tiles, rows, slice(0, weight.shape[1]))
            part = code_rows(weight[rows], scale_values(row_codes)[rows], side, of_rows, step, coding)
            store.append(part.points, of_rows.tiles)
            damage, squared_error = damage + part.damage, squared_error + part.squared_error
        pack_plain(store, tiling, row_codes, side.column_codes, coding.transform, unit_of(step, coding), out)
    return torch.frombuffer(bytearray(out.getvalue()), dtype=torch.uint8), damage, squared_error


DAMPED = Coding(residual="identity", num_states=1, row_damping=0.5, residual_threshold=0.6)


@pytest.mark.parametrize("name", TILINGS)
@pytest.mark.parametrize("coding", [CODING, DAMPED], ids=["rounded", "damped"])
def test_it_is_what_the_whole_matrix_gives(name, coding):
    weight, moment, outputs = problem()
    tiling = TILINGS[name](*weight.shape, 16, 0)
    payload, damage, squared_error = coded(weight, tiling, moment, [0, 70], outputs, 0.05, coding)
    expected, expected_damage = encode_matrix(weight, tiling, moment, outputs, 0.05, coding)
    found = unpack(payload)
    assert found.tiling == tiling
    assert (decode_matrix(found) != decode_matrix(expected)).float().mean() < 0.01  # sums in another order round otherwise
    assert abs(payload.numel() - pack(expected).numel()) < 0.005 * payload.numel() + 8
    assert damage == pytest.approx(expected_damage, rel=2e-3)
    assert squared_error == pytest.approx(float((weight - decode_matrix(found)).square().sum()), rel=1e-4)


@pytest.mark.parametrize("name", ["fibonacci", "penrose", "whole"])
@pytest.mark.parametrize("edges", [[0, 70], [0, 26, 52, 70]], ids=["whole", "blocks"])
def test_with_a_trellis_it_is_as_good(name, edges):
    weight, moment, outputs = problem()
    tiling = TILINGS[name](*weight.shape, 16, 0)
    blocks, dense = in_blocks(moment, edges) if len(edges) > 2 else (moment, moment)
    payload, damage, squared_error = coded(weight, tiling, blocks, edges, outputs, 0.1, TRELLIS)
    expected, expected_damage = encode_matrix(weight, tiling, dense, outputs, 0.1, TRELLIS)
    assert damage == pytest.approx(expected_damage, rel=0.03)
    assert payload.numel() == pytest.approx(pack(expected).numel(), rel=0.02)
    assert squared_error == pytest.approx(float((weight - decode_matrix(unpack(payload))).square().sum()), rel=1e-4)


def test_blocks_are_a_moment_with_zeros_between_them():
    weight, moment, outputs = problem()
    tiling, edges = TILINGS["fibonacci"](90, 70, 16, 0), [0, 26, 52, 70]
    blocks, dense = in_blocks(moment, edges)
    payload, damage, _ = coded(weight, tiling, blocks, edges, outputs, 0.05)
    expected, expected_damage = encode_matrix(weight, tiling, dense, outputs, 0.05, CODING)
    assert (decode_matrix(unpack(payload)) != decode_matrix(expected)).float().mean() < 0.01
    assert damage == pytest.approx(expected_damage, rel=2e-3)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 40), st.floats(1e-3, 30))
def test_any_shape_and_step_survives(num_rows, num_columns, rows_at_a_time, step):
    weight, moment, outputs = problem(num_rows, num_columns)
    tiling = TILINGS["penrose"](num_rows, num_columns, 8, 0)
    payload, _, squared_error = coded(weight, tiling, moment, [0, num_columns], outputs, step, rows_at_a_time=rows_at_a_time)
    error = weight - decode_matrix(unpack(payload, (num_rows, num_columns)))
    assert_close(float(error.square().sum()), squared_error, rtol=1e-3, atol=1e-6)


def test_large_codes_and_zeros_survive():
    weight, moment, outputs = problem()
    weight[0, 0], weight[5] = 2e3, 0
    tiling = TILINGS["fibonacci"](90, 70, 16, 0)
    payload, _, squared_error = coded(weight, tiling, moment, [0, 70], outputs, 0.01)
    found = decode_matrix(unpack(payload))
    assert float((weight - found).square().sum()) == pytest.approx(squared_error, rel=1e-3)
    assert not found[5].any()
    assert abs(float(found[0, 0]) - 2e3) < 0.1


@pytest.mark.parametrize("coding", [CODING, TRELLIS], ids=["rounded", "trellis"])
def test_a_sample_of_rows_tells_the_size(coding):
    weight, moment, outputs = problem(800, 120)
    tiling = TILINGS["fibonacci"](800, 120, 32, 0)
    payload, *_ = coded(weight, tiling, moment, [0, 120], outputs, 0.06, coding)
    side, row_codes = input_side(moment, [0, 120], coding), row_scale_codes(outputs, coding)
    rows = torch.arange(4, 800, 8)
    of_rows = TILINGS["fibonacci"](100, 120, 32, 0)
    part = code_rows(weight[rows], scale_values(row_codes)[rows], side, of_rows, 0.06, coding)
    scales = row_codes, side.column_codes
    found = sampled_bytes(part.points, of_rows.tiles, coding.trellis, (800, 120), len(tiling.tiles), scales)
    assert found == pytest.approx(payload.numel(), rel=0.03)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 1500), st.integers(4, 400_000), st.integers(8, 200))
def test_blocks_cover_the_columns_and_are_small_enough(num_columns, block_bytes, short):
    cuts = column_cuts(TILINGS["fibonacci"](min(num_columns, 64), num_columns, min(short, num_columns), 0))
    edges = block_edges(num_columns, block_bytes, cuts)
    assert edges[0] == 0
    assert edges[-1] == num_columns
    widest = max(stop - start for start, stop in pairwise(edges))
    assert all(start < stop for start, stop in pairwise(edges))
    assert 4 * widest**2 <= max(block_bytes, 4)
