"""Damaged folders are refused in a sentence that names the place, whatever is damaged."""

import importlib.util
import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from tests.runtime.models import stored_folder
from transformers import AutoModelForCausalLM

from quasitile import InputError, load_model
from quasitile.checkpoint import seal
from quasitile.checkpoint.shards import INDEX, tensor_headers, weight_files
from quasitile.codec.axes import Axes
from quasitile.codec.block import Block, CodedMatrix, Tile, Tiling
from quasitile.codec.packing import pack, unpack
from quasitile.codec.tiling import TILINGS

FUZZ = Path(__file__).parents[2] / "benchmarks" / "fuzz_models.py"


@pytest.fixture(scope="module")
def fuzz():
    spec = importlib.util.spec_from_file_location("fuzz_models", FUZZ)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture(scope="module")
def stored(tmp_path_factory, tokenizer):
    return stored_folder("llama", tokenizer, tmp_path_factory.mktemp("stored"))


@pytest.fixture
def folder(stored, tmp_path):
    return shutil.copytree(stored, tmp_path / "damaged")


def test_a_sample_of_damaged_folders(fuzz, tmp_path):
    folders = fuzz.originals(tmp_path / "originals")
    expected = {folder: fuzz.fingerprint(load_model(folder)[0]) for folder in folders}
    found = [fuzz.check(folders, expected, tmp_path / "work", seed) for seed in range(50)]
    assert not fuzz.summary(found)["wrong"]
    assert {result["result"] for result in found} >= {"refused", "same", "other"}


def refuse(folder, match):
    """By both ways to load."""
    for load in (load_model, AutoModelForCausalLM.from_pretrained):
        with pytest.raises(InputError, match=match):
            load(folder)


def edit_config(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config["quantization_config"])
    (folder / "config.json").write_text(json.dumps(config))
    seal(folder)


def edit_header(folder, change):
    file = weight_files(folder)[0]
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    index = json.loads((folder / INDEX).read_text())
    index["metadata"]["sha256"] = None
    (folder / INDEX).write_text(json.dumps(index))
    seal(folder)


Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda c: c.update(format_version=2), "has format 2"),
        (lambda c: c.update(format_version="1"), "format_version '1'"),
        (lambda c: c.update(modules=[]), "without modules"),
        (lambda c: c["modules"][Q].update(kind="torus"), r"q_proj a 'torus'.*update quasitile"),
        (lambda c: c["modules"][Q].update(shape=[48, 2**40]), r"q_proj the shape \[48, 1099511627776\], which does not fit"),
        (lambda c: c["modules"][Q].update(shape=[48, -48]), r"q_proj the shape"),
        (lambda c: c["modules"][Q].update(payload_bytes=2**50), r"model-00001.*q_proj.matrix.payload has the shape"),
        (lambda c: c["modules"][Q].update(payload_bytes=1.5), "q_proj 1.5 bytes"),
        (lambda c: c["modules"][Q].update(structure={"name": "knot"}), "q_proj the structure 'knot'"),
        (lambda c: c["modules"][Q].update(structure={"name": "hashed", "side": 10**9, "ratio": 4}), "side 1000000000"),
        (lambda c: c["modules"].pop(Q), r"lacks 1 tensors \(model.layers.0.self_attn.q_proj.weight"),
        (lambda c: c["modules"].update({"model.none": c["modules"][Q]}), "coded layer model.none"),
        (lambda c: c["tied"].update(lm_head=Q), "no coded embedding"),
        (lambda c: c.update(axes="nothing"), "is no coded layer"),
    ],
)  # fmt: skip
def test_what_the_configuration_declares_is_checked(folder, change, match):
    edit_config(folder, change)
    refuse(folder, match)


def test_a_number_of_layers_that_nothing_could_hold(folder):
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] = 2**40
    (folder / "config.json").write_text(json.dumps(config))
    seal(folder)
    refuse(folder, "declares 1099511627776 layers")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda h: h["model.norm.weight"].update(shape=[2**40]), r"size of model.norm.weight contradicts its header"),
        (lambda h: h["model.norm.weight"].update(dtype="F99"), r"size of model.norm.weight contradicts its header"),
        (lambda h: h["model.norm.weight"].update(data_offsets=[-8, 0]), "no valid safetensors header"),
        (lambda h: h["model.norm.weight"]["data_offsets"].reverse(), "no valid safetensors header"),
        (lambda h: h.update(x={"dtype": "U8", "shape": [2**40], "data_offsets": [0, 2**40]}), "truncated inside x"),
        (lambda h: h.pop("model.norm.weight"), "contradicts its header|belong to no tensor"),
    ],
)  # fmt: skip
def test_what_a_header_declares_is_checked(stored, folder, change, match):
    header = tensor_headers(stored)
    assert "model.norm.weight" in header
    edit_header(folder, change)
    with pytest.raises(InputError, match=match):
        load_model(folder)


def test_a_path_out_of_the_folder_is_no_file_of_it(folder):
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], "../other.safetensors")
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"names '\.\./other\.safetensors'"):
        load_model(folder)


def test_json_of_any_depth_is_refused(folder):
    (folder / INDEX).write_text("[" * 100_000)
    with pytest.raises(InputError, match="is not valid JSON"):
        load_model(folder)


def matrix(tiles, transform="identity", shape=(8, 8)):
    blocks = [Block(torch.zeros(tile.shape[0], 0), torch.zeros(tile.shape[1], 0), torch.zeros(0)) for tile in tiles]
    scales = [torch.full((n,), 128, dtype=torch.uint8) for n in shape]
    return CodedMatrix(Tiling(shape, tuple(tiles)), blocks, transform, *scales)


@pytest.mark.parametrize(
    "corners",
    [
        [(0, 8, 0, 4), (0, 8, 0, 4)],  # twice the same, as many entries as the matrix has
        [(0, 4, 0, 8), (0, 4, 0, 8)],
        [(0, 4, 0, 8), (4, 8, 4, 8), (4, 8, 0, 4)],  # not from left to right
        [(4, 8, 0, 8), (0, 4, 0, 8)],
        [(0, 8, 0, 4), (0, 6, 4, 8), (6, 8, 4, 8)],  # no row band
        [(0, 8, 0, 9)],
        [],
    ],
)  # fmt: skip
def test_tiles_that_do_not_cover_the_matrix_in_bands(corners):
    with pytest.raises((ValueError, RuntimeError), match=r"do not cover|non-empty"):
        unpack(pack(matrix([Tile(*corner) for corner in corners])))


def test_bases_much_larger_than_the_matrix_are_refused():
    wide = matrix([Tile(0, 2, 0, 5000)], "dct", (2, 5000))
    wide.blocks[0] = Block(torch.ones(2, 1), torch.ones(5000, 1), torch.ones(1))
    with pytest.raises(ValueError, match="too large for the transform dct: a side of 5000"):
        pack(wide)


def test_infinite_weights_are_refused(folder):
    from quasitile.runtime import TiledMatrix

    coded = matrix([Tile(0, 8, 0, 8)])
    coded.blocks[0] = Block(torch.ones(8, 1), torch.ones(8, 1), torch.full((1,), 1e38))
    coded.row_scales[:] = 0
    with pytest.raises(ValueError, match="not finite"):
        TiledMatrix.from_coded(coded)


def test_shared_axes_without_any_are_refused():
    coded = matrix([Tile(0, 8, 0, 8)])
    coded.axes = Axes("klt", (8,), (torch.eye(8),), shared=True)
    with pytest.raises(ValueError, match="refers to stored axes"):
        unpack(pack(coded))


def test_decoders_stay_inside_their_arrays_whatever_the_stream(fuzz):
    """Random words for random tiles: values in range, or an error."""
    from quasitile.codec.entropy import Statistics, decode_tiles

    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        rows, columns, words, escapes, states = torch.randint(1, 30, (5,), generator=generator).tolist()
        states = [1, 4, 8, 16, 32, 64][states % 6]
        tiling = TILINGS["grid"](rows, columns, 8, 0)
        levels = [torch.randint(256, (n,), dtype=torch.uint8, generator=generator).numpy() for n in (rows, columns)]
        lengths = torch.full((len(tiling.tiles),), words).numpy()
        counts = torch.full((len(tiling.tiles),), escapes).numpy()
        size = int(lengths.sum() + counts.sum())
        stream = torch.randint(-(2**31), 2**31, (size,), generator=generator).to(torch.int32).view(torch.uint32).numpy()
        corners = torch.tensor([[t.row_start, t.row_stop, t.column_start, t.column_stop] for t in tiling.tiles]).numpy()
        with pytest.raises(ValueError, match="its residual"):
            decode_tiles(stream, lengths, counts, corners, Statistics(*levels, 2, states))
