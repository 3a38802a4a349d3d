"""An exported model is an ordinary checkpoint that computes the same."""

import json
import subprocess
import sys

import pytest
import torch
from tests.conftest import refused
from tests.runtime.models import TOKENS, stored_folder
from transformers import AutoModelForCausalLM

from quasitile import InputError, export, load_model
from quasitile.checkpoint.shards import tensor_headers, weight_files
from quasitile.codec.coding import Coding
from quasitile.runtime.export import ExportSettings
from quasitile.runtime.plugin import GUARD, SENTENCE

STORED_AXES = Coding(residual="identity", axes="klt", max_rank=2)


@torch.no_grad()
def logits(model):
    return model(TOKENS).logits


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "gpt-oss", "gemma3"])
def test_transformers_loads_it_and_computes_the_same(name, tmp_path, tokenizer):
    stored = stored_folder(name, tokenizer, tmp_path / "stored", STORED_AXES if name == "llama" else None)
    summary = export(stored, tmp_path / "dense", ExportSettings(dtype="bfloat16", shard_bytes=30_000))
    assert summary["exported_bytes"] == sum(file.stat().st_size for file in weight_files(tmp_path / "dense"))
    assert len(weight_files(tmp_path / "dense")) > 1
    config = json.loads((tmp_path / "dense" / "config.json").read_text())
    assert not {"quantization_config", GUARD} & config.keys()
    assert not any("payload" in tensor for tensor in tensor_headers(tmp_path / "dense"))
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    assert dense.dtype == torch.bfloat16
    assert torch.equal(logits(dense), logits(load_model(stored, torch.bfloat16)[0]))


def test_experts_are_exported_one_by_one_as_in_the_original(tmp_path, tokenizer):
    export(stored_folder("mixtral", tokenizer, tmp_path / "stored"), tmp_path / "dense")
    assert "model.layers.0.block_sparse_moe.experts.3.w2.weight" in tensor_headers(tmp_path / "dense")


def test_what_float16_cannot_hold_is_said(tmp_path, tokenizer):
    from tests.compress.architectures import build

    from quasitile.codec.matrix import encode_matrix
    from quasitile.codec.tiling import TILINGS
    from quasitile.runtime import convert, save_model

    model = build("llama", len(tokenizer))
    weight = 1e6 * model.lm_head.weight.detach()
    tiles = TILINGS["grid"](*weight.shape, 16, 0)
    coding = Coding(residual="identity")
    coded = encode_matrix(weight, tiles, torch.eye(weight.shape[1]), torch.ones(len(weight)), 1e4, coding)[0]
    (tmp_path / "stored").mkdir()
    model = convert(model, {"model.embed_tokens": coded}, {"lm_head": "model.embed_tokens"})
    save_model(model, tokenizer, tmp_path / "stored")
    with pytest.raises(InputError, match=r"model\.embed_tokens has weights beyond the range of float16"):
        export(tmp_path / "stored", tmp_path / "dense", ExportSettings(dtype="float16"))
    assert not (tmp_path / "dense").exists()


def test_the_command_refuses_what_is_not_ours(quasitile, model_folder, tmp_path):
    refused(quasitile("export", model_folder, tmp_path / "out"), "is no folder that quasitile wrote")
    refused(quasitile("export", tmp_path / "nothing", tmp_path / "out"), "is not a folder")


PLAIN = """
import sys, torch
from transformers import AutoModelForCausalLM
stored, saved, dense = sys.argv[1:]
for folder in (stored, saved):
    try:
        AutoModelForCausalLM.from_pretrained(folder)
    except ValueError as error:
        print(error)
print(AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32)(torch.arange(8, 24)[None]).logits.sum().item())
assert "quasitile" not in sys.modules
"""


def test_without_quasitile_a_folder_is_refused_and_its_export_loads(tmp_path, tokenizer):
    stored = stored_folder("llama", tokenizer, tmp_path / "stored")
    load_model(stored)[0].save_pretrained(tmp_path / "saved")
    export(stored, tmp_path / "dense", ExportSettings(dtype="float32"))
    command = [sys.executable, "-c", PLAIN, stored, tmp_path / "saved", tmp_path / "dense"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    first, second, total = done.stdout.splitlines()
    assert first.endswith(SENTENCE)
    assert second.endswith(SENTENCE)
    with torch.no_grad():
        expected = load_model(stored)[0](torch.arange(8, 24)[None]).logits.sum().item()
    assert float(total) == pytest.approx(expected, rel=1e-5)
