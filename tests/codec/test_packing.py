"""Bytes decode to what was encoded, come near the entropy, and damaged ones are refused."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quasitile.codec.block import Block, CodedMatrix
from quasitile.codec.matrix import decode_matrix
from quasitile.codec.packing import pack, unpack
from quasitile.codec.tiling import TILINGS


def coded_matrix(num_rows=50, num_columns=40, short=16, spread=3.0, seed=0, transform="dct"):
    """Random whole codes of every rank from none to full."""
    generator = torch.Generator().manual_seed(seed)
    tiling = TILINGS["penrose"](num_rows, num_columns, short, seed)
    blocks = []
    for tile in tiling.tiles:
        rows, columns = tile.shape
        rank = int(torch.randint(min(rows, columns) + 1, (), generator=generator))
        left = (torch.randn(rows, rank, generator=generator) * spread).round()
        right = (torch.randn(columns, rank, generator=generator) * spread).round()
        blocks.append(Block(left, right, torch.rand(rank, generator=generator).to(torch.bfloat16).float()))
    scales = [torch.randint(256, (n,), dtype=torch.uint8, generator=generator) for n in (num_rows, num_columns)]
    return CodedMatrix(tiling, blocks, transform, *scales)


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 30), st.sampled_from([0.05, 1.0, 300.0]), st.integers(0, 9))
def test_what_is_decoded_is_what_was_encoded(rows, columns, short, spread, seed):
    coded = coded_matrix(rows, columns, short, spread, seed)
    back = unpack(pack(coded))
    assert back.tiling == coded.tiling
    assert back.transform == coded.transform
    assert torch.equal(back.row_scales, coded.row_scales)
    assert torch.equal(back.column_scales, coded.column_scales)
    for before, after in zip(coded.blocks, back.blocks, strict=True):
        assert torch.equal(before.left, after.left)
        assert torch.equal(before.right, after.right)
        assert torch.equal(before.scale, after.scale)
    assert torch.equal(decode_matrix(back), decode_matrix(coded))


def test_the_same_matrix_gives_the_same_bytes():
    assert torch.equal(pack(coded_matrix()), pack(coded_matrix()))


@pytest.mark.parametrize("spread", [0.5, 3.0, 30.0])
def test_the_bytes_are_within_three_per_cent_of_the_entropy(spread):
    coded = coded_matrix(400, 400, 96, spread)
    whole = torch.arange(-300, 301)
    edges = torch.special.ndtr(torch.stack([whole - 0.5, whole + 0.5]).double() / spread)
    bits = float(torch.special.entr(edges[1] - edges[0]).sum()) / math.log(2)  # of a code
    codes = sum(block.left.numel() + block.right.numel() for block in coded.blocks)
    scales_and_spreads = 400 + 400 + 4 * sum(block.rank for block in coded.blocks)
    assert pack(coded).numel() == pytest.approx(codes * bits / 8 + scales_and_spreads, rel=0.03)


def test_fractions_are_refused():
    coded = coded_matrix()
    block = next(block for block in coded.blocks if block.rank)
    block.left[0, 0] = 0.5
    with pytest.raises(ValueError, match="whole numbers"):
        pack(coded)


@pytest.mark.parametrize("cut", [0, 3, 20, 60, 200, -1])
def test_a_truncated_matrix_is_refused(cut):
    payload = pack(coded_matrix())
    with pytest.raises(ValueError, match=r"ends at byte|covers?|ranks"):
        unpack(payload[:cut].clone())


def test_other_bytes_and_trailing_ones_are_refused():
    payload = pack(coded_matrix())
    wrong = payload.clone()
    wrong[0] = 0
    with pytest.raises(ValueError, match="starts with"):
        unpack(wrong)
    with pytest.raises(ValueError, match="follow its end"):
        unpack(torch.cat([payload, payload[:3]]))


def test_declared_sizes_are_not_believed():
    payload = pack(coded_matrix()).clone()
    payload[12:16] = 255  # four thousand million tiles
    with pytest.raises(ValueError, match="does not hold the 4294967295 tiles"):
        unpack(payload)
