"""Three ways to compute with a coded matrix give the same, and hold what they say."""

import multiprocessing

import pytest
import torch
from tests.runtime.models import TOKENS, stored_folder
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from quasitile import InputError, execution, load_model, set_execution
from quasitile.codec.coding import Coding
from quasitile.codec.matrix import decode_matrix, encode_matrix
from quasitile.codec.stored import StoredMatrix
from quasitile.codec.structure import Structure
from quasitile.codec.tiling import TILINGS
from quasitile.runtime import TiledLinear, TiledMatrix, resident_bytes, tiled_matrices
from quasitile.runtime import decode as decoding
from quasitile.runtime.lazy import Cache

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
CODINGS = {
    "factors": Coding(max_rank=6),
    "identity factors": Coding(max_rank=6, transform="identity"),
    "residual": Coding(residual="identity"),
    "trellis": Coding(residual="identity", num_states=8),
    "both": Coding(residual="identity", max_rank=3),
    "sorted": Coding(residual="identity", max_rank=3, axes="sorted"),
    "spectral residual": Coding(residual="dct"),
    "stored axes": Coding(residual="identity", axes="klt"),
}


def coded(coding, tiling="penrose", shape=(50, 36), step=0.2):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    moment = torch.diag(torch.linspace(1, 3, shape[1])) + 0.2
    return encode_matrix(weight, TILINGS[tiling](*shape, 16, 0), moment, torch.linspace(1, 2, shape[0]), step, coding)[0]


def check_alike(matrix, expected):
    """Products, rows and the weight itself in every execution."""
    generator = torch.Generator().manual_seed(1)
    x, ids = torch.randn(2, 3, expected.shape[1], generator=generator), torch.tensor([[0, 7, 7], [3, 0, len(expected) - 1]])
    bias = torch.randn(len(expected), generator=generator)
    for name in ("dense", "factored", "lazy", "dense"):
        matrix.execute(name, Cache(0))
        assert_close(matrix.linear(x, bias), torch.nn.functional.linear(x, expected, bias), **CLOSE)
        assert_close(matrix.linear(x[0, 0], None), expected @ x[0, 0], **CLOSE)
        assert_close(matrix.rows(ids), expected[ids], **CLOSE)
        assert_close(matrix.weight(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", sorted(CODINGS))
def test_executions_agree_whatever_is_stored(name):
    given = coded(CODINGS[name])
    check_alike(TiledMatrix.from_coded(given), decode_matrix(given))


@pytest.mark.parametrize("tiling", sorted(TILINGS))
def test_executions_agree_in_every_tiling(tiling):
    given = coded(Coding(max_rank=4, residual="identity"), tiling, (70, 53))
    check_alike(TiledMatrix.from_coded(given), decode_matrix(given))


def test_executions_agree_with_a_structure():
    structure = Structure("circulant", (50, 36), 4, 4)
    given = coded(Coding(residual="identity"), shape=structure.stored_shape)
    given.structure = structure
    check_alike(TiledMatrix.from_coded(given), decode_matrix(given))


def test_points_beyond_a_byte_are_kept_beside_the_others():
    given = coded(Coding(residual="identity"))
    block = given.blocks[0]
    block.residual[1, 2], block.residual[3, 1] = 1000, -5000
    matrix = TiledMatrix.from_coded(given)
    matrix.execute("factored")
    assert matrix.factored.residual.large_extra.tolist() == [873, -4873]
    check_alike(matrix, decode_matrix(given))


@pytest.mark.parametrize("num_threads", [1, 3])
def test_threads_and_chunks_change_nothing(num_threads, monkeypatch):
    given = coded(Coding(residual="identity", num_states=8, max_rank=2), "grid", (130, 70))
    monkeypatch.setattr(decoding, "CHUNK_NUMBERS", 1500)
    monkeypatch.setattr(torch, "get_num_threads", lambda: num_threads)
    matrix = TiledMatrix.from_coded(given)
    assert len(decoding.chunks(matrix.opened())) > 3
    check_alike(matrix, decode_matrix(given))


def test_a_forked_process_decodes_in_threads_of_its_own(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    items = range(20)
    assert list(decoding.in_threads(str, items)) == [str(item) for item in items]
    process = multiprocessing.get_context("fork").Process(target=lambda: list(decoding.in_threads(str, items)))
    process.start()
    process.join(60)
    process.kill()
    assert process.exitcode == 0


def test_tiles_decode_one_band_at_a_time_as_all_at_once():
    given = coded(CODINGS["trellis"])
    stored = StoredMatrix(TiledMatrix.from_coded(given).payload)
    parts = [stored.rows(*band) for band in stored.bands]
    assert torch.equal(torch.cat(parts), decode_matrix(given))


def test_the_cache_keeps_what_fits_and_no_more(monkeypatch):
    monkeypatch.setattr(decoding, "CHUNK_NUMBERS", 1000)
    matrix = TiledMatrix.from_coded(coded(CODINGS["residual"], "grid", (130, 70)))
    cache = Cache(4 * 70 * 60)
    matrix.execute("lazy", cache)
    x = torch.randn(2, 70)
    first = matrix.linear(x, None)
    kept = [part for part in matrix.lazy.kept if part is not None]
    assert 0 < matrix.lazy.held_bytes == cache.used_bytes <= cache.limit_bytes
    assert len(kept) < len(matrix.lazy.kept)
    assert torch.equal(matrix.linear(x, None), first)
    assert [id(part) for part in matrix.lazy.kept if part is not None] == [id(part) for part in kept]
    matrix.execute("dense")
    assert cache.used_bytes == 0


def test_a_lazy_layer_lets_gradients_through():
    given = coded(CODINGS["both"])
    for name in ("factored", "lazy"):
        matrix = TiledMatrix.from_coded(given)
        matrix.execute(name)
        x = torch.randn(2, 36, requires_grad=True)
        TiledLinear(matrix)(x).sum().backward()
        assert_close(x.grad, decode_matrix(given).sum(0).expand(2, -1), **CLOSE)


@pytest.fixture(scope="module", params=["llama", "gpt2", "mixtral", "gemma3"])
def folder(request, tmp_path_factory, tokenizer):
    """A stored model: every matrix coded with factors and a residual."""
    return stored_folder(request.param, tokenizer, tmp_path_factory.mktemp(request.param))


def test_a_model_computes_the_same_in_every_execution(folder):
    model, _ = load_model(folder)
    with torch.no_grad():
        expected = model(TOKENS).logits
        for name in ("factored", "lazy", "dense"):
            assert set_execution(model, name) == name
            assert_close(model(TOKENS).logits, expected, rtol=1e-3, atol=1e-3)
            assert {matrix.execution for matrix in tiled_matrices(model).values()} == {name}
        with execution("lazy", cache_bytes=10_000):
            lazy = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        assert_close(lazy(TOKENS).logits, expected, rtol=1e-3, atol=1e-3)
    stored = sum(matrix.payload.numel() for matrix in tiled_matrices(lazy).values())
    others = sum(p.numel() * 4 for p in lazy.parameters()) + sum(b.numel() * b.element_size() for b in lazy.buffers()) - stored
    assert resident_bytes(lazy) <= 1.1 * (stored + others) + 10_000
    assert 0 < sum(matrix.lazy.held_bytes for matrix in tiled_matrices(lazy).values()) <= 10_000


def test_auto_takes_what_fits(folder):
    model, _ = load_model(folder, execution="auto")
    assert {matrix.execution for matrix in tiled_matrices(model).values()} == {"dense"}
    assert set_execution(model, "auto", memory_bytes=100) == "lazy"


def test_few_factors_are_factored():
    weight = torch.randn(64, 64)
    given = encode_matrix(weight, TILINGS["whole"](64, 64, 16, 0), torch.eye(64), torch.ones(64), 0.1, Coding(max_rank=4))[0]
    layer = TiledLinear(TiledMatrix.from_coded(given))
    assert set_execution(layer, "auto") == "factored"
    numbers = sum(buffer.numel() for buffer in layer.matrix.factored.buffers() if buffer.is_floating_point())
    assert numbers == 2 * 4 * 64


def test_an_unknown_execution_is_refused():
    with pytest.raises(InputError, match="execution='sparse' is not one of"):
        set_execution(torch.nn.Linear(1, 1), "sparse")
