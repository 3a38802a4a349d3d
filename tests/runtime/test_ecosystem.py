"""What Transformers does with any model it does with a stored one."""

import json

import pytest
import torch
from tests.runtime.models import TOKENS, stored_folder
from transformers import AutoModelForCausalLM, pipeline

from quasitile import load_model
from quasitile.checkpoint import verify_checksums
from quasitile.checkpoint.shards import INDEX, weight_files
from quasitile.runtime import tiled_matrices
from quasitile.runtime.plugin import GUARD, SENTENCE


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    return stored_folder("llama", tokenizer, tmp_path_factory.mktemp("stored"))


@pytest.fixture
def model(folder):
    return load_model(folder)[0]


@torch.no_grad()
def logits(model):
    return model(TOKENS).logits


def test_a_batch_generates_what_each_prompt_does(model):
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 1}
    short = torch.cat([torch.ones(3, dtype=torch.long), TOKENS[1, 3:]])
    mask = (torch.stack([torch.ones(16), torch.arange(16) >= 3])).long()
    together = model.generate(torch.stack([TOKENS[0], short]), attention_mask=mask, **options)
    assert torch.equal(together[0], model.generate(TOKENS[:1], **options)[0])
    assert torch.equal(together[1, 3:], model.generate(TOKENS[1:, 3:], **options)[0])


def test_a_pipeline_takes_the_folder(folder):
    made = pipeline("text-generation", model=str(folder), dtype=torch.float32)
    text = made("the band gap", max_new_tokens=3, do_sample=False)[0]["generated_text"]
    assert text.startswith("the band gap")


def test_a_device_map_and_a_dtype(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, device_map={"": "cpu"}, dtype=torch.bfloat16)
    assert all(matrix.weight().dtype == torch.bfloat16 for matrix in tiled_matrices(model).values())
    assert torch.equal(logits(model), logits(load_model(folder, torch.bfloat16)[0]))


def test_saved_in_shards_it_is_finished_and_the_same(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    files = weight_files(tmp_path)
    assert len(files) > 2
    sums = json.loads((tmp_path / INDEX).read_text())["metadata"]["sha256"]
    assert {file.name for file in files} | {"config.json"} <= sums.keys()
    verify_checksums(files)
    assert json.loads((tmp_path / "config.json").read_text())[GUARD] == SENTENCE
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert not hasattr(again.config, GUARD)
    assert torch.equal(logits(again), logits(model))


def test_what_is_saved_whole_has_checksums_too(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert [file.name for file in weight_files(tmp_path)] == ["model.safetensors"]
    assert "model.safetensors" in json.loads((tmp_path / INDEX).read_text())["metadata"]["sha256"]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_gradient_checkpointing_changes_no_gradient(model):
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert any(getattr(layer, "gradient_checkpointing", False) for layer in model.model.layers)
        model.train()
        for matrix in tiled_matrices(model).values():
            matrix.make_trainable()
        model(TOKENS, labels=TOKENS).loss.backward()
        block = next(tiled_matrices(model)["model.layers.0.mlp.up_proj"].rank_blocks())
        gradients.append(block.residual.grad.clone())
        for matrix in tiled_matrices(model).values():
            matrix.pack()
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-6)
    assert gradients[0].abs().sum() > 0


def test_it_compiles_without_a_break(model):
    expected = logits(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.allclose(logits(compiled), expected, rtol=1e-4, atol=1e-4)


def test_tying_again_changes_nothing(model):
    expected = logits(model)
    model.tie_weights()
    assert torch.equal(logits(model), expected)


def test_an_unknown_head_is_new_and_the_body_is_not(folder):
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    body = load_model(folder)[0].model
    with torch.no_grad():
        assert torch.equal(model.model(TOKENS).last_hidden_state, body(TOKENS).last_hidden_state)
