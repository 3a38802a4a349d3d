"""Triton's kernels give what PyTorch gives: on a GPU, or in Triton's interpreter (`TRITON_INTERPRET=1`); else skipped."""

import importlib.util
import os

import pytest
import torch
from torch.testing import assert_close

from quasitile.codec.coding import Coding
from quasitile.codec.dequantise import dequantise
from quasitile.codec.factors import scale_values
from quasitile.codec.matrix import decode_matrix, encode_matrix
from quasitile.codec.tiling import TILINGS
from quasitile.runtime import TiledMatrix, accelerate, decode, factored

CUDA = torch.cuda.is_available()
if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)
if not CUDA and os.environ.get("TRITON_INTERPRET") != "1":  # Triton reads it when it is first imported
    pytest.skip("there is no GPU; set TRITON_INTERPRET=1 for Triton's interpreter", allow_module_level=True)
DEVICE = torch.device("cuda" if CUDA else "cpu")
HALF = torch.bfloat16 if CUDA else torch.float16  # the interpreter multiplies no bfloat16, and cuts it off instead of rounding
CLOSE = {torch.float32: {"rtol": 1e-4, "atol": 1e-4}, HALF: {"rtol": 2e-2, "atol": 2e-2}}


@pytest.fixture(scope="module")
def kernels():
    from quasitile.runtime import kernels

    return kernels


@pytest.fixture
def used(kernels, monkeypatch):
    """Let layers use the kernels in the interpreter as they do on a GPU, and note which ones ran."""
    ran = set()

    class Noted:
        def __getattr__(self, name):
            ran.add(name)
            return getattr(kernels, name)

    for module in (decode, factored):
        monkeypatch.setattr(module, "kernels_for", lambda x: Noted())
    return ran


@pytest.mark.parametrize("dtype", sorted(CLOSE, key=str))
@pytest.mark.parametrize("tokens", [1, 3, 70])
@pytest.mark.parametrize("transposed", [False, True])
def test_bands_meet_their_inputs(kernels, dtype, tokens, transposed):
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(3, 70, 37, generator=generator).to(dtype).to(DEVICE)
    index = torch.randint(0, 50, (3, 37), generator=generator).to(DEVICE)
    values = torch.randn((tokens, 50) if transposed else (50, tokens), generator=generator).to(DEVICE)
    values = values.T if transposed else values
    expected = torch.bmm(weights.float(), values[index].to(dtype).float()).flatten(0, 1).to(dtype)
    assert_close(kernels.gathered_product(weights, index, values, dtype), expected, **CLOSE[dtype])


@pytest.mark.parametrize("dtype", sorted(CLOSE, key=str))
@pytest.mark.parametrize("tokens", [1, 3, 70])
def test_whole_numbers_meet_their_inputs(kernels, dtype, tokens):
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-127, 128, (75, 130), generator=generator, dtype=torch.int8).to(DEVICE)
    x, values = (
        torch.randn(tokens, 130, generator=generator).to(dtype).to(DEVICE),
        torch.rand(75, generator=generator).to(DEVICE),
    )
    expected = ((x.float() @ codes.float().T) * values / 100).to(dtype)
    assert_close(kernels.whole_number_product(codes, x, values / 100), expected, **CLOSE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize("kind", [torch.int8, torch.int32])
@pytest.mark.parametrize("ordered", [False, True])
def test_weights_have_the_same_bits_as_on_the_processor(kernels, dtype, kind, ordered):
    generator = torch.Generator().manual_seed(0)
    points = torch.randint(-127, 128, (9, 1500), generator=generator, dtype=kind)
    scales = [scale_values(torch.randint(100, 160, (size,), generator=generator).to(torch.uint8)) for size in points.shape]
    order = torch.randperm(1500, generator=generator) if ordered else None
    expected, out = torch.empty(points.shape), torch.empty(points.shape, dtype=dtype, device=DEVICE)
    assert dequantise(points.to(torch.int32).numpy(), 0.0123456789, *scales, order, expected)
    moved = [each if each is None else each.to(DEVICE) for each in (*scales, order)]
    kernels.dequantise(points.to(DEVICE), 0.0123456789, *moved, out)
    assert torch.equal(out.cpu(), expected.to(dtype))


@pytest.mark.parametrize("coding", [Coding(max_rank=5), Coding(residual="identity", max_rank=2, axes="sorted", num_states=8)])
def test_a_layer_computes_the_same_with_them(used, coding):
    weight = torch.randn(50, 36, generator=torch.Generator().manual_seed(0))
    tiles, moment = TILINGS["penrose"](50, 36, 16, 0), torch.diag(torch.linspace(1, 3, 36)) + 0.2
    coded = encode_matrix(weight, tiles, moment, torch.linspace(1, 2, 50), 0.2, coding)[0]
    if coded.blocks[0].residual is not None:
        coded.blocks[0].residual[1, 2] = 1000  # does not fit into a byte
        coded.num_states = 1
    matrix, expected = TiledMatrix.from_coded(coded).to(DEVICE), decode_matrix(coded).to(DEVICE)
    x = torch.randn(2, 3, 36, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    for execution in ("dense", "factored", "lazy"):
        matrix.execute(execution)
        assert_close(matrix.linear(x, None), x @ expected.T, **CLOSE[torch.float32])
        assert_close(matrix.weight(), expected, rtol=1e-5, atol=1e-6)
    assert "gathered_product" in used
    if coded.blocks[0].residual is not None:
        assert "whole_number_product" in used


def test_a_residual_alone_is_scaled_by_them(used):
    weight = torch.randn(50, 36, generator=torch.Generator().manual_seed(0))
    tiles, coding = TILINGS["grid"](50, 36, 16, 0), Coding(residual="identity", axes="sorted", num_states=8)
    coded = encode_matrix(weight, tiles, torch.eye(36), torch.linspace(1, 2, 50), 0.2, coding)[0]
    matrix = TiledMatrix.from_coded(coded).to(DEVICE)
    assert torch.equal(matrix.weight().cpu(), decode_matrix(coded))
    assert used == {"dequantise"}


def test_they_are_for_a_gpu_without_gradients():
    x = torch.randn(2, 3, requires_grad=True)
    assert accelerate.kernels_for(x) is None
    with torch.no_grad():
        assert accelerate.kernels_for(x.detach()) is None  # on the processor, whatever is installed
    if CUDA:
        assert accelerate.kernels_for(x.cuda()) is None
        assert accelerate.kernels_for(x.detach().cuda()) is not None
