"""A stored model loads with plain Transformers and is the model that was in memory."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from quasitile import InputError, compress, load_model
from quasitile.checkpoint import seal
from quasitile.checkpoint.shards import INDEX, weight_files
from quasitile.compress import CompressSettings
from quasitile.runtime import is_compressed, tiled_matrices

SETTINGS = CompressSettings.model_validate(
    {"size": "60%", "tiling": {"short": 16}, "calibration": {"num_windows": 4, "num_tokens": 32}, "workers": 1}
)
TOKENS = torch.arange(8, 72).view(2, 32)


@pytest.fixture(scope="module")
def compressed(tmp_path_factory, model_folder, text_file):
    out = tmp_path_factory.mktemp("compressed") / "model"
    compress(model_folder, out, text=text_file, settings=SETTINGS)
    return out


def test_plain_transformers_loads_it(compressed):
    model = AutoModelForCausalLM.from_pretrained(compressed, dtype=torch.float32)
    assert len(tiled_matrices(model)) == 15  # two layers of seven matrices, and the embedding, which is also the head
    expected, _ = load_model(compressed)
    with torch.no_grad():
        assert torch.equal(model(TOKENS).logits, expected(TOKENS).logits)


def test_it_generates_the_same_with_and_without_cache(compressed):
    model, _ = load_model(compressed)
    outputs = [
        model.generate(TOKENS, max_new_tokens=8, do_sample=False, use_cache=cache, pad_token_id=1) for cache in (True, False)
    ]
    assert torch.equal(*outputs)


def test_saved_again_it_is_the_same(compressed, tmp_path):
    model, _ = load_model(compressed)
    model.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(model(TOKENS).logits, again(TOKENS).logits)


def test_it_loads_in_half_precision(compressed):
    model, _ = load_model(compressed, torch.bfloat16)
    assert model(TOKENS).logits.dtype == torch.bfloat16
    full, _ = load_model(compressed)
    with torch.no_grad():
        error = (model(TOKENS).logits.float() - full(TOKENS).logits).norm() / full(TOKENS).logits.norm()
    assert error < 0.05


def test_it_is_known_as_compressed(compressed, model_folder):
    assert is_compressed(compressed)
    assert not is_compressed(model_folder)


def damaged(compressed, tmp_path, change):
    folder = tmp_path / "damaged"
    shutil.copytree(compressed, folder)
    change(folder)
    return folder


def test_a_flipped_bit_is_found_by_plain_transformers_too(compressed, tmp_path):
    def flip(folder):
        file = weight_files(folder)[0]
        content = bytearray(file.read_bytes())
        content[-5] ^= 4
        file.write_bytes(content)

    folder = damaged(compressed, tmp_path, flip)
    with pytest.raises(InputError, match="does not match its checksum"):
        AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(InputError, match="does not match its checksum"):
        load_model(folder)


def test_a_newer_format_is_refused(compressed, tmp_path):
    def raise_version(folder):
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"]["format_version"] = 99
        (folder / "config.json").write_text(json.dumps(config))

    with pytest.raises(InputError, match="format 99"):
        load_model(damaged(compressed, tmp_path, raise_version))


def one_layer_more(folder):
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] = 3
    (folder / "config.json").write_text(json.dumps(config))


def test_a_missing_tensor_is_refused(compressed, tmp_path):
    def change(folder):
        one_layer_more(folder)
        seal(folder)

    folder = damaged(compressed, tmp_path, change)
    with pytest.raises(InputError, match=r"lacks 9 tensors \(model\.layers\.2\."):
        load_model(folder)
    with pytest.raises(InputError, match="lacks 9 tensors"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_a_changed_configuration_is_refused(compressed, tmp_path):
    folder = damaged(compressed, tmp_path, one_layer_more)
    for load in (load_model, AutoModelForCausalLM.from_pretrained):
        with pytest.raises(InputError, match=r"config\.json does not match its checksum"):
            load(folder)


def test_no_config_no_weights_no_folder(compressed, tmp_path):
    with pytest.raises(InputError, match=r"has no config\.json"):
        load_model(damaged(compressed, tmp_path, lambda folder: (folder / "config.json").unlink()))
    with pytest.raises(InputError, match="no safetensors weights"):
        load_model(tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        load_model(tmp_path / "nothing")


def test_the_index_names_every_tensor(compressed):
    index = json.loads((compressed / INDEX).read_text())
    assert sum(name.endswith("payload") for name in index["weight_map"]) == 15
