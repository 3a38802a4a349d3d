"""A damaged or unfitting model, text or tokenizer: one line that says what and where, exit status 2, nothing half-written."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import refused, tiny_llama
from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

from quasitile import compress, load_model
from quasitile.checkpoint.shards import INDEX
from quasitile.compress import CompressSettings

NAME = "model.layers.1.mlp.up_proj.weight"
QUICK = {"tiling": {"short": 16}, "calibration": {"num_tokens": 32, "num_windows": 4}, "workers": 1}


@pytest.fixture
def broken(model_folder, tmp_path):
    """A copy of the model, to be damaged."""
    shutil.copytree(model_folder, tmp_path / "broken")
    return tmp_path / "broken"


@pytest.fixture
def sharded(tokenizer, tmp_path):
    """A model in several files."""
    tiny_llama(len(tokenizer)).save_pretrained(tmp_path / "sharded", max_shard_size="50KB")
    tokenizer.save_pretrained(tmp_path / "sharded")
    return tmp_path / "sharded"


@pytest.fixture
def refuses(quasitile, text_file, tmp_path):
    """`compress` says these words, and an earlier result stays as it was."""

    def check(model, *parts, text=text_file, fresh=True, more=()):
        out = tmp_path / "out"
        if not fresh:
            out.mkdir()
            (out / "provenance.json").write_text('{"stage": "compress"}')
        command = ("compress", model, out, "--text", text, "--set", "calibration.num_tokens=32", *more)
        refused(quasitile(*command), *map(str, parts))
        assert out.exists() is not fresh
        assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []
        if not fresh:
            assert [path.name for path in out.iterdir()] == ["provenance.json"]

    return check


def change(folder, edit):
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", [NAME, "model.norm.weight"])
def test_weights_that_are_no_numbers(broken, refuses, name, value):
    change(broken, lambda tensors: tensors[name].view(-1)[3:4].fill_(value))
    refuses(broken, "model.safetensors", name, "NaN or infinite", "copy it again", fresh=False)


def test_a_missing_shard(sharded, refuses, quasitile, tmp_path):
    file = sorted(sharded.glob("model-*.safetensors"))[1]
    file.unlink()
    refuses(sharded, file.name, "is missing", "copy")
    refused(quasitile("inspect", sharded), file.name, "is missing")
    refused(quasitile("evaluate", tmp_path / "out", "--original", sharded), file.name, "is missing")


@pytest.mark.parametrize("keep", [5, 200, -100])
def test_a_truncated_shard(sharded, refuses, quasitile, tmp_path, keep):
    file = sorted(sharded.glob("model-*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:keep])
    refuses(sharded, file.name, "truncated", "copy it again")
    refused(quasitile("inspect", sharded), file.name, "truncated")
    refused(quasitile("evaluate", tmp_path / "out", "--original", sharded), file.name, "truncated")


def test_a_shard_that_is_something_else(broken, refuses):
    (broken / "model.safetensors").write_bytes(b"\x10" + bytes(7) + b"<!DOCTYPE html>...")
    refuses(broken, "model.safetensors", "no valid safetensors header")


def test_an_index_that_names_what_no_shard_holds(sharded, refuses):
    index = json.loads((sharded / INDEX).read_text())
    file = index["weight_map"][NAME]
    index["weight_map"]["model.layers.9.mlp.up_proj.weight"] = file
    (sharded / INDEX).write_text(json.dumps(index))
    refuses(sharded, file, "model.layers.9.mlp.up_proj.weight", INDEX, "copy the whole folder again")


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64], ids=str)
def test_a_dtype_that_cannot_be_compressed(broken, refuses, dtype):
    change(broken, lambda tensors: tensors.update({NAME: tensors[NAME].float().to(dtype)}))
    refuses(broken, "model.safetensors", NAME, "which cannot be compressed", "bfloat16")


def test_a_missing_tensor(broken, refuses):
    change(broken, lambda tensors: tensors.pop(NAME))
    refuses(broken, NAME, "lacks 1 tensors", "copy it again")


def test_a_missing_configuration(broken, refuses, quasitile, tmp_path):
    (broken / "config.json").unlink()
    refuses(broken, "has no config.json")
    refused(quasitile("inspect", broken), "has no config.json")
    refused(quasitile("evaluate", tmp_path / "out", "--original", broken), "has no config.json")


def test_an_unknown_type_of_model(broken, refuses, quasitile):
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"model_type": "cuneiform"}))
    refuses(broken, "cuneiform", "broken")
    refused(quasitile("inspect", broken), "cuneiform", "broken")


def test_no_tokenizer(broken, refuses, quasitile, tmp_path):
    for file in broken.glob("*token*"):
        file.unlink()
    refuses(broken, "broken", "no tokenizer")
    refused(quasitile("evaluate", tmp_path / "out", "--original", broken), "broken", "no tokenizer")


def test_a_tokenizer_of_another_model(tokenizer, refuses, quasitile, tmp_path):
    tiny_llama(len(tokenizer) - 20).save_pretrained(tmp_path / "small")
    tokenizer.save_pretrained(tmp_path / "small")
    words = ("small", f"the embedding has {len(tokenizer) - 20} rows", "copy the tokenizer")
    refuses(tmp_path / "small", *words)
    refused(quasitile("evaluate", tmp_path / "out", "--original", tmp_path / "small"), *words)


def test_a_text_with_nothing_in_it(model_folder, refuses, tmp_path):
    (tmp_path / "empty.txt").write_text(" \n")
    refuses(model_folder, "empty.txt", "holds no text", text=tmp_path / "empty.txt")
    (tmp_path / "empty.jsonl").write_text('{"text": ""}\n{"title": "none"}\n')
    refuses(model_folder, "empty.jsonl", "holds no text", text=tmp_path / "empty.jsonl")
    (tmp_path / "short.txt").write_text("the band gap")
    refuses(model_folder, "fewer than one window", "give more text", text=tmp_path / "short.txt")
    refuses(model_folder, "none.txt does not exist", text=tmp_path / "none.txt")


def test_a_matrix_of_zeros_costs_almost_nothing(model_folder, text_file, tmp_path):
    model, tokenizer = load_model(model_folder)
    for name in ("gate_proj", "down_proj"):
        getattr(model.model.layers[0].mlp, name).weight.data.zero_()
    model.to(torch.bfloat16).save_pretrained(tmp_path / "zeros")
    tokenizer.save_pretrained(tmp_path / "zeros")
    settings = CompressSettings.model_validate({**QUICK, "size": "50%"})
    summary = compress(tmp_path / "zeros", tmp_path / "out", text=text_file, settings=settings)
    rows = {row["name"].removeprefix("model.layers."): row for row in summary["matrices"]}
    zeros, other = rows["0.mlp.down_proj"], rows["1.mlp.down_proj"]
    overhead = sum(zeros["shape"]) + 12 * zeros["num_tiles"] + 100  # scales of rows and columns, and where the tiles lie
    assert zeros["stored_bytes"] < overhead < other["stored_bytes"]
    again, _ = load_model(tmp_path / "out")
    assert not again.model.layers[0].mlp.down_proj.weight.any()
    assert summary["stored_bytes"] <= summary["target_bytes"]


def test_a_matrix_of_one_row_stays_as_it_is(tokenizer, text_file, tmp_path):
    config = Qwen2MoeConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
        shared_expert_intermediate_size=16, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2MoeForCausalLM(config)
    model.save_pretrained(tmp_path / "one-row")
    tokenizer.save_pretrained(tmp_path / "one-row")
    settings = CompressSettings.model_validate({**QUICK, "size": "70%"})
    compress(tmp_path / "one-row", tmp_path / "out", text=text_file, settings=settings)
    again, _ = load_model(tmp_path / "out")
    gate = again.model.layers[0].mlp.shared_expert_gate.weight
    assert gate.shape == (1, 32)
    assert torch.equal(gate, model.model.layers[0].mlp.shared_expert_gate.weight.to(gate.dtype))
    assert again(torch.arange(8)[None]).logits.isfinite().all()


def test_a_streamed_model_is_looked_at_as_well(broken, tokenizer, refuses, tmp_path):
    streamed = {"more": ("--set", "calibration.stream=yes", "--set", "workers=1")}
    tiny_llama(len(tokenizer) - 20).save_pretrained(tmp_path / "small")
    tokenizer.save_pretrained(tmp_path / "small")
    refuses(tmp_path / "small", f"the embedding has {len(tokenizer) - 20} rows", **streamed)
    whole = load_file(broken / "model.safetensors")
    change(broken, lambda tensors: tensors["model.norm.weight"][3:4].fill_(float("nan")))
    refuses(broken, "model.safetensors", "model.norm.weight", "NaN or infinite", **streamed)
    save_file(whole, broken / "model.safetensors", metadata={"format": "pt"})
    change(broken, lambda tensors: tensors[NAME].view(-1)[3:4].fill_(float("inf")))
    refuses(broken, NAME.removesuffix(".weight"), "NaN or infinite", **streamed)
    change(broken, lambda tensors: tensors.update({NAME: whole[NAME].float().to(torch.int8)}))
    refuses(broken, NAME, "I8", "which cannot be compressed", **streamed)


@pytest.mark.parametrize("stream", ["no", "yes"])
def test_tiles_too_large_for_their_transform(refuses, tokenizer, tmp_path, stream):
    """A whole embedding as one tile would need a basis of its height squared."""
    tiny_llama(5000).save_pretrained(tmp_path / "wide")
    tokenizer.save_pretrained(tmp_path / "wide")
    more = [f"calibration.stream={stream}", "residual=none", "tiling.name=whole", "trellis=1"]
    parts = ("model.embed_tokens", "tiling.name=whole", "too large for the transform dct: a side of 5000", "identity")
    refuses(tmp_path / "wide", *parts, more=[part for change in more for part in ("--set", change)])


def test_no_text_at_all_is_a_usage_error(model_folder, quasitile, tmp_path):
    status, _ = quasitile("compress", model_folder, tmp_path / "out")
    assert status == 2
    assert not (tmp_path / "out").exists()
