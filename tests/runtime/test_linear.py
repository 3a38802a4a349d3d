"""Coded layers compute what their dense weight computes, trained or not."""

import pytest
import torch
from tests.conftest import TOLERANCE
from torch.testing import assert_close

from quasitile.align.cutoffs import CutOffs
from quasitile.codec.matrix import decode_matrix, encode_matrix
from quasitile.codec.tiling import TILINGS
from quasitile.runtime import TiledEmbedding, TiledHead, TiledLinear, TiledMatrix, gathered_gradients, held_weights

CLOSE = TOLERANCE[torch.float32]


@pytest.fixture(params=sorted(TILINGS))
def coded(request):
    weight = torch.randn(50, 36, generator=torch.Generator().manual_seed(0))
    tiling = TILINGS[request.param](50, 36, 16, 0)
    return encode_matrix(weight, tiling, torch.eye(36), torch.ones(50), 0.3)[0]


@pytest.fixture
def matrix(coded):
    return TiledMatrix.from_coded(coded)


def test_a_layer_is_its_dense_weight(matrix, coded):
    x = torch.randn(5, 36)
    bias = torch.nn.Parameter(torch.randn(50))
    expected = torch.nn.functional.linear(x, decode_matrix(coded), bias)
    assert torch.equal(TiledLinear(matrix, bias)(x), expected)


def test_making_it_trainable_changes_nothing(matrix):
    before = matrix.weight().clone()
    matrix.make_trainable(torch.Generator().manual_seed(0), jitter=0.45)
    assert_close(matrix.weight(), before, **CLOSE)
    matrix.pack()
    assert torch.equal(matrix.weight(), before)


def test_it_starts_from_what_rounding_took_away(matrix, coded):
    matrix.remainders = torch.full_like(matrix.remainders, 127)  # all but a whole half
    before = matrix.weight().clone()
    matrix.make_trainable()
    assert torch.equal(matrix.coded().blocks[0].left, coded.blocks[0].left)
    assert_close(matrix.weight(), before, **CLOSE)
    block = next(block for block in matrix.rank_blocks() if block.left.numel())
    assert (block.left - block.left.round()).min() > 0.49


def test_what_is_trained_is_what_is_stored(matrix):
    matrix.make_trainable()
    optimizer = torch.optim.Adam(matrix.blocks.parameters(), lr=0.3)
    target = torch.randn(50, 36, generator=torch.Generator().manual_seed(1))
    losses = []
    for _ in range(30):
        loss = (matrix.weight() - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    trained = matrix.weight().detach()
    matrix.pack()
    assert_close(matrix.weight(), trained, **CLOSE)


def test_gradients_pass_the_rounding_as_if_it_were_not_there(matrix):
    matrix.make_trainable()
    block = next(block for block in matrix.rank_blocks() if block.left.numel())
    matrix.weight().sum().backward()
    tile = torch.zeros(50, 36)
    tile[block.tile.rows, block.tile.columns] = 1
    assert block.left.grad is not None
    assert block.left.grad.abs().sum() > 0


def test_without_gradients_the_weight_is_kept_until_a_block_changes(matrix):
    matrix.make_trainable()
    with torch.no_grad():
        first = matrix.weight()
        assert matrix.weight() is first
        block = next(block for block in matrix.rank_blocks() if block.left.numel())
        block.left += 2
        assert not torch.equal(matrix.weight(), first)


def test_a_fused_optimiser_changes_the_weight_although_it_does_not_say_so(matrix):
    matrix.make_trainable()
    coefficients = [values for block in matrix.rank_blocks() for values in block.coefficients()]
    optimizer = torch.optim.AdamW(coefficients, lr=2.0, fused=True)
    with torch.no_grad():
        before = matrix.weight().clone()
    versions = [values._version for values in coefficients]
    matrix.weight().square().sum().backward()
    optimizer.step()
    assert versions == [values._version for values in coefficients]
    with torch.no_grad():
        assert not torch.equal(matrix.weight(), before)


def test_learned_cut_offs_change_the_weight(matrix):
    matrix.make_trainable()
    block = next(block for block in matrix.rank_blocks() if block.left.numel())
    block.cut_offs.extend([CutOffs(*side.shape) for side in (block.left, block.right)])
    with torch.no_grad():
        before = matrix.weight()
        for parameter in block.cut_offs.parameters():
            parameter.zero_()
        assert not torch.equal(matrix.weight(), before)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_a_held_weight_is_computed_once(matrix, mode):
    matrix.make_trainable()
    layer = TiledLinear(matrix)
    block = next(block for block in matrix.rank_blocks() if block.left.numel())
    with mode():
        before = matrix.weight()
        with held_weights(layer):
            held = matrix.weight()
            assert matrix.weight() is held
        block.left.data += 2  # as fused optimisers do, without a word
        after = matrix.weight()
        assert torch.equal(held, before)
        assert not torch.equal(after, before)


def test_passes_with_a_backward_each_give_the_gradient_of_all(matrix):
    matrix.make_trainable()
    layer, inputs = TiledLinear(matrix), torch.randn(3, 5, matrix.shape[1])
    values = [values for block in matrix.rank_blocks() for values in block.coefficients()]
    wanted = torch.autograd.grad(sum(layer(x).square().sum() for x in inputs), values)
    with gathered_gradients(layer) as hand_on:
        for number, x in enumerate(inputs):
            layer(x).square().sum().backward()
            assert all(each.grad is None for each in values) is (number < 2)
            if number == 1:
                hand_on()
        hand_on()
    for each, grad in zip(values, wanted, strict=True):
        assert_close(each.grad, grad, **CLOSE)


def test_a_tile_of_the_weight_is_a_block(matrix):
    matrix.make_trainable()
    weight = matrix.weight()
    for block in matrix.rank_blocks():
        assert_close(matrix.weight_of(block), weight[block.tile.rows, block.tile.columns], **CLOSE)


def test_a_head_shares_its_embedding(matrix):
    embedding = TiledEmbedding(matrix)
    head = TiledHead(embedding)
    assert not list(head.parameters())
    assert not list(head.buffers())
    hidden = torch.randn(2, 36)
    assert torch.equal(head(hidden), hidden @ embedding.weight.T)
    assert torch.equal(embedding(torch.tensor([3, 7])), embedding.weight[[3, 7]])


def test_bytes_of_another_shape_are_refused(coded):
    matrix = TiledMatrix.from_coded(coded)
    other = TiledMatrix((3, 3), 0)
    other.payload = matrix.payload
    with pytest.raises(ValueError, match="expected"):
        other.decode()
