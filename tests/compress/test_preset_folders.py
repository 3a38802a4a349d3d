"""Every preset makes a folder that loads, at the size asked; baselines count the bytes of their own format."""

import json

import pytest
import torch
from tests.conftest import TOLERANCE, refused
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from quasitile import BaselineSettings, InputError, baseline, compress, load_model, load_recipe, run
from quasitile.checkpoint import stored_bytes
from quasitile.codec.coding import Coding
from quasitile.compress import CompressSettings
from quasitile.compress.numbers import number_share, structure_for, with_share
from quasitile.recipe import presets
from quasitile.runtime import tiled_matrices

CLOSE = TOLERANCE[torch.float32]
SMALL = ("calibration.num_windows=4", "calibration.num_tokens=32")
CODED = [name for name in presets() if load_recipe(name).baseline.name == "none"]


def test_the_presets_are_those_of_the_documentation():
    expected = "svd-llm svd-llm-mixed svd-llm-16bit block-circulant freshnets losparse caldera modegpt gptq"
    assert sorted(presets()) == sorted(expected.split())
    for name in presets():
        assert load_recipe(name).name == name


@pytest.mark.parametrize("preset", CODED)
def test_a_preset_meets_its_size_loads_and_trains(preset, model_folder, text_file, tmp_path):
    changes = [f"compress.{change}" for change in (*SMALL, "size=40%", "workers=1", "tiling.short=16")]
    changes += ["compress.alternations=2"] if preset == "caldera" else []
    summary = compress(model_folder, tmp_path / "out", text=text_file, settings=load_recipe(preset, changes).compress)
    assert 0.95 * summary["target_bytes"] < stored_bytes(tmp_path / "out") <= summary["target_bytes"]  # headers weigh much here
    model, _ = load_model(tmp_path / "out")
    tokens = torch.arange(8, 40).view(2, 16)
    with torch.no_grad():
        expected = model(tokens).logits
        assert torch.isfinite(expected).all()
    for matrix in tiled_matrices(model).values():
        matrix.make_trainable()
    assert_close(model(tokens).logits, expected, rtol=1e-3, atol=1e-3)
    model(tokens).logits.square().mean().backward()
    assert all(
        block.residual is None or block.residual.grad is not None
        for m in tiled_matrices(model).values()
        for block in m.rank_blocks()
    )
    for matrix in tiled_matrices(model).values():
        matrix.pack()
    with torch.no_grad():
        assert_close(model(tokens).logits, expected, rtol=1e-3, atol=1e-3)


def test_weights_that_share_a_number_stay_alike(model_folder, text_file, tmp_path):
    changes = [f"compress.{change}" for change in (*SMALL, "size=40%", "tiling.short=16", "number_bits=12")]
    compress(model_folder, tmp_path / "out", text=text_file, settings=load_recipe("block-circulant", changes).compress)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    entry = config["quantization_config"]["modules"]["model.layers.0.mlp.up_proj"]
    assert entry["structure"] == {"name": "circulant", "side": 2, "ratio": 2}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    weight = model.model.layers[0].mlp.up_proj.weight
    assert torch.equal(weight[0::2, 0::2], weight[1::2, 1::2])
    assert torch.equal(weight[0::2, 1::2], weight[1::2, 0::2])
    for wrong in ({"name": "toeplitz", "side": 2, "ratio": 2}, {"name": "circulant", "side": 0, "ratio": 2}):
        entry["structure"] = wrong
        (tmp_path / "out" / "config.json").write_text(json.dumps(config))
        with pytest.raises(InputError, match="structure"):
            load_model(tmp_path / "out")


@pytest.mark.parametrize("name", ["gptq", "svd-llm-16bit"])
def test_a_baseline_counts_its_own_bytes_and_writes_a_dense_model(name, model_folder, text_file, tmp_path):
    settings = load_recipe(name, [f"baseline.{change}" for change in (*SMALL, "size=60%")]).baseline
    summary = baseline(model_folder, tmp_path / "out", text=text_file, settings=settings)
    assert 0.9 * summary["target_bytes"] < summary["counted_bytes"] <= summary["target_bytes"]
    original, _ = load_model(model_folder)
    model, _ = load_model(tmp_path / "out")
    assert not tiled_matrices(model)
    weight, other = (m.model.layers[0].mlp.up_proj.weight.detach() for m in (original, model))
    if name == "gptq":
        assert all(len(row.unique()) <= 2**8 for row in other)
    else:
        rank = int(torch.linalg.matrix_rank(other.double(), rtol=1e-4))
        assert 0 < rank < 30
    assert 0 < float((weight - other).norm() / weight.norm()) < 0.9


def test_a_size_that_a_baseline_cannot_meet_is_refused(model_folder, text_file, tmp_path):
    for name, size, message in (
        ("gptq", "8%", "gptq takes at least"),
        ("gptq", "7B", "counts bytes"),
        ("none", "25%", "does nothing"),
    ):
        settings = BaselineSettings.model_validate(
            {"name": name, "size": size, "calibration": {"num_windows": 2, "num_tokens": 32}}
        )
        with pytest.raises(InputError, match=message):
            baseline(model_folder, tmp_path / "out", text=text_file, settings=settings)
    assert not list(tmp_path.iterdir())


def test_a_preset_by_name_on_the_command_line(quasitile, model_folder, text_file, tmp_path):
    words = ("--text", text_file, "--size", "50%", "--set", SMALL[0], "--set", SMALL[1])
    status, _ = quasitile("compress", model_folder, tmp_path / "coded", "--recipe", "svd-llm", *words)
    assert status == 0
    assert json.loads((tmp_path / "coded" / "summary.json").read_text())["matrices"][0]["tiling"] == "whole"
    status, _ = quasitile("compress", model_folder, tmp_path / "dense", "--recipe", "gptq", *words)
    assert status == 0
    assert json.loads((tmp_path / "dense" / "summary.json").read_text())["method"] == "gptq"
    refused(
        quasitile("compress", model_folder, tmp_path / "x", "--recipe", "calderra", *words), "calderra", "caldera", "presets"
    )
    refused(
        quasitile("compress", model_folder, tmp_path / "x", "--recipe", "gptq", *words, "--set", "gruop=3"),
        "did you mean group?",
    )


def test_a_run_needs_a_coded_model(tmp_path):
    with pytest.raises(InputError, match="cannot be aligned"):
        run("gptq", tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ranks": "fixed"}, "needs a max_rank"),
        ({"residual": "none", "residual_part": "rows"}, "needs a residual of identity"),
        ({"alternations": 2}, "give a max_rank"),
        ({"alternations": 2, "max_rank": 2, "residual_part": "rows"}, "whole residual"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        CompressSettings.model_validate(changes)


def test_the_share_of_numbers_follows_from_the_size_and_their_width():
    assert number_share(4000, 8, 1000) == 0.5
    assert number_share(1e9, 8, 1000) == 1
    assert number_share(-5, 8, 1000) > 0
    halved = with_share(Coding(residual_part="rows", ranks="share", residual="identity"), 0.4, 0.25)
    assert (halved.factor_share, halved.residual_share) == (0.1, pytest.approx(0.3))
    assert with_share(Coding(residual_part="rows", residual="identity"), 0.4, 0.25).residual_share == 0.4
    for share, side in ((0.5, 2), (0.49, 2), (0.26, 4), (0.03, 32), (1e-6, 64)):
        assert structure_for("circulant", (64, 200), share).side == side
    assert structure_for("hashed", (64, 200), 0.2).ratio == 5
    assert structure_for("none", (64, 200), 0.2) is None
