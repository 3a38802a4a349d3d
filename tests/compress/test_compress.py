"""Compression meets its size, prices damage rightly, and calibrates what it says."""

import json

import pytest
import torch
from tests.conftest import TOLERANCE, tiny_llama
from torch.testing import assert_close

from quasitile import InputError, compress, inspect, load_model, sample
from quasitile.checkpoint import stored_bytes
from quasitile.compress import CompressSettings, InspectSettings, SampleSettings, token_windows
from quasitile.compress.allocate import next_point, solve
from quasitile.compress.calibrate import calibrate, compressible_layers
from quasitile.compress.refit import pack_within
from quasitile.compress.size import parse_size
from quasitile.compress.text import read_texts, sample_tokens
from quasitile.runtime import tiled_matrices

CLOSE = TOLERANCE[torch.float32]
BASE = {"tiling": {"short": 16}, "calibration": {"num_windows": 6, "num_tokens": 32, "propagate": "original"}, "workers": 1}


def settings(**changes):
    return CompressSettings.model_validate({**BASE, **changes})


FORMS = {"factors": {"residual": "none"}, "residual": {}, "both, spectral": {"residual": "dct", "max_rank": 2}}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(("size", "share"), [("60%", 0.6), ("30%", 0.3)])
def test_the_size_is_met_within_one_per_cent_and_never_exceeded(model_folder, text_file, tmp_path, size, share, form):
    summary = compress(model_folder, tmp_path / "out", text=text_file, settings=settings(size=size, **form))
    stored = stored_bytes(tmp_path / "out")
    assert summary["stored_bytes"] == stored
    assert stored <= summary["target_bytes"] == int(share * summary["original_bytes"])
    assert stored > 0.95 * summary["target_bytes"]  # a tiny model's headers are a large share of it
    assert summary["original_bytes"] == 2 * summary["num_parameters"]


@pytest.mark.parametrize("truncation", ["energy", "low_pass", "budget"])
def test_a_truncated_model_meets_its_size_too(model_folder, text_file, tmp_path, truncation):
    shares = []
    for name, spectrum in (("plain", {}), ("truncated", {"truncation": truncation, "keep": 0.6})):
        changes = settings(size="60%", spectrum=spectrum, residual="none")
        summary = compress(model_folder, tmp_path / name, text=text_file, settings=changes)
        assert 0.95 * summary["target_bytes"] < summary["stored_bytes"] <= summary["target_bytes"]
        shares.append(summary["matrices"][0]["kept_share"])
    assert shares[1] < shares[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"size": "40%", "residual": "none"},
        {"size": "0.02M", "residual": "none"},
        {"size": "60%", "max_rank": 2},
        {"size": "60%"},
    ],
)
def test_the_hierarchical_tiling_is_laid_out_by_the_weights(model_folder, text_file, tmp_path, changes):
    chosen = settings(tiling={"name": "hierarchical", "short": 16}, **changes)
    summary = compress(model_folder, tmp_path / "out", text=text_file, settings=chosen)
    if summary["target_bytes"]:
        assert 0.95 * summary["target_bytes"] < summary["stored_bytes"] <= summary["target_bytes"]
    model, _ = load_model(tmp_path / "out")
    for matrix in tiled_matrices(model).values():
        assert matrix.coded().tiling.covers_exactly()
        dense = matrix.dense.clone()
        matrix.make_trainable()
        assert_close(matrix.weight(), dense, **CLOSE)


def test_a_truncation_that_would_do_nothing_is_refused():
    with pytest.raises(ValueError, match=r"keep=0\.5 needs a truncation"):
        settings(spectrum={"keep": 0.5})
    with pytest.raises(ValueError, match="nothing to truncate"):
        settings(spectrum={"truncation": "budget", "keep": 0.5})
    for spectral in ({"max_rank": 2}, {"residual": "none"}, {"residual": "dct"}):
        assert settings(spectrum={"truncation": "budget", "keep": 0.5}, **spectral)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_size_in_parameters_limits_stored_numbers(model_folder, text_file, tmp_path, form):
    summary = compress(model_folder, tmp_path / "out", text=text_file, settings=settings(size="0.02M", **form))
    assert 0.98 * 20_000 < summary["stored_parameters"] <= 20_000


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_more_bytes_less_damage(model_folder, text_file, tmp_path, form):
    original, _ = load_model(model_folder)
    tokens = torch.arange(8, 136).view(4, 32)
    errors = []
    for size in ("20%", "40%", "80%"):
        compress(model_folder, tmp_path / "out", text=text_file, settings=settings(size=size, **form))
        model, _ = load_model(tmp_path / "out")
        with torch.no_grad():
            errors.append(float((model(tokens).logits - original(tokens).logits).square().mean()))
    assert errors == sorted(errors, reverse=True)


def test_the_same_seed_gives_the_same_bytes(model_folder, text_file, tmp_path):
    for name in ("a", "b"):
        compress(model_folder, tmp_path / name, text=text_file, settings=settings(size="40%"))
    for file in ("model-00001-of-00001.safetensors", "config.json", "picture.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_picture_covers_the_matrix(model_folder, text_file, tmp_path):
    compress(model_folder, tmp_path / "out", text=text_file, settings=settings(size="40%"))
    picture = json.loads((tmp_path / "out" / "picture.json").read_text())
    area = sum((bottom - top) * (right - left) for top, bottom, left, right, *_ in picture["tiles"])
    assert area == picture["shape"][0] * picture["shape"][1]


def test_a_size_that_cannot_be_met_is_refused_and_nothing_is_written(model_folder, text_file, tmp_path):
    with pytest.raises(InputError, match=r"cannot be met.*raise --size"):
        compress(model_folder, tmp_path / "out", text=text_file, settings=settings(size="1%"))
    assert not list(tmp_path.iterdir())


def test_weights_that_are_no_numbers_are_refused(tokenizer, text_file, tmp_path):
    model = tiny_llama(len(tokenizer))
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = float("nan")
    model.save_pretrained(tmp_path / "nan")
    tokenizer.save_pretrained(tmp_path / "nan")
    with pytest.raises(InputError, match=r"layers\.0\.mlp\.up_proj.*NaN"):
        compress(tmp_path / "nan", tmp_path / "out", text=text_file, settings=settings())
    assert not (tmp_path / "out").exists()


def test_a_compressed_model_is_not_compressed_again(model_folder, text_file, tmp_path):
    compress(model_folder, tmp_path / "out", text=text_file, settings=settings(size="60%"))
    with pytest.raises(InputError, match="already compressed"):
        compress(tmp_path / "out", tmp_path / "again", text=text_file, settings=settings())


def test_an_untied_head_is_compressed_too(tokenizer, text_file, tmp_path):
    tiny_llama(len(tokenizer), tied=False).save_pretrained(tmp_path / "untied")
    tokenizer.save_pretrained(tmp_path / "untied")
    compress(tmp_path / "untied", tmp_path / "out", text=text_file, settings=settings(size="50%"))
    model, _ = load_model(tmp_path / "out")
    assert "lm_head" in tiled_matrices(model)
    assert len(tiled_matrices(model)) == 16


def test_moments_are_those_of_a_naive_loop(tokenizer, text_file):
    model = tiny_llama(len(tokenizer))
    windows = token_windows(tokenizer, read_texts(text_file), 16, 6)
    moments = calibrate(model, windows, batch_size=4)
    layer = model.model.layers[1].mlp.down_proj
    seen = []
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().flatten(0, 1)))
    with torch.no_grad():
        for window in windows:
            model(window[None])
    handle.remove()
    x = torch.cat(seen)
    assert_close(moments["model.layers.1.mlp.down_proj"].inputs, x.T @ x / len(x), **CLOSE)


def test_output_gradients_do_not_depend_on_the_batch_size_in_expectation(tokenizer, text_file):
    model = tiny_llama(len(tokenizer))
    windows = token_windows(tokenizer, read_texts(text_file), 16, 64)
    first, second = (calibrate(model, windows, batch_size=8, seed=seed) for seed in (0, 1))
    for name in first:
        ratio = first[name].outputs.mean() / second[name].outputs.mean()
        assert 0.8 < ratio < 1.25, name
    assert all(parameter.grad is None for parameter in model.parameters())


def test_layers_are_found_by_structure(tokenizer):
    layers, tied = compressible_layers(tiny_llama(len(tokenizer)))
    assert len(layers) == 15
    assert tied == {"lm_head": "model.embed_tokens"}
    layers, tied = compressible_layers(tiny_llama(len(tokenizer), tied=False))
    assert len(layers) == 16
    assert not tied


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_trained_blocks_are_packed_within_the_budget(model_folder, text_file, tmp_path, form):
    compress(model_folder, tmp_path / "out", text=text_file, settings=settings(size="40%", **form))
    model, _ = load_model(tmp_path / "out")
    limit = sum(matrix.payload.numel() for matrix in tiled_matrices(model).values())
    generator = torch.Generator().manual_seed(0)
    for matrix in tiled_matrices(model).values():
        matrix.make_trainable()
        for block in matrix.rank_blocks():
            for values in block.coefficients():
                values.data += 3 * torch.randn(values.shape, generator=generator)  # training made them larger
    assert pack_within(model, limit) > 1
    assert limit * 0.9 < sum(matrix.payload.numel() for matrix in tiled_matrices(model).values()) <= limit


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_untrained_blocks_are_packed_unchanged(model_folder, text_file, tmp_path, form):
    compress(model_folder, tmp_path / "out", text=text_file, settings=settings(size="40%", **form))
    model, _ = load_model(tmp_path / "out")
    before = {name: matrix.payload.clone() for name, matrix in tiled_matrices(model).items()}
    for matrix in tiled_matrices(model).values():
        matrix.make_trainable()
    assert pack_within(model, sum(payload.numel() for payload in before.values())) == 1
    assert all(torch.equal(before[name], matrix.payload) for name, matrix in tiled_matrices(model).items())


@pytest.mark.parametrize(
    ("size", "num_bytes", "num_parameters"),
    [
        ("25%", 250, None),
        ("4GB", 4 * 10**9, None),
        ("2 GiB", 2**31, None),
        ("7B", None, 7 * 10**9),
        ("350m", None, 350 * 10**6),
    ],
)
def test_sizes(size, num_bytes, num_parameters):
    target = parse_size(size, 1000)
    assert (target.num_bytes, target.num_parameters) == (num_bytes, num_parameters)


@pytest.mark.parametrize("size", ["", "big", "-3%", "0%", "5 apples", "1e3MB"])
def test_what_is_no_size_is_refused(size):
    with pytest.raises(InputError, match="write a share"):
        parse_size(size, 1000)


def test_bisection_and_secant():
    assert solve(lambda step: 100 / step, 25) == pytest.approx(4, rel=1e-5)
    assert next_point([(0.0, 0.1)], 0.0) == pytest.approx(0.1)
    assert next_point([(0.0, 0.2), (0.1, 0.1)], 0.0) == pytest.approx(0.2)


def test_inspect_reads_headers_only(model_folder, tmp_path):
    plan = inspect(model_folder, tmp_path / "plan")
    original, _ = load_model(model_folder)
    assert plan["num_parameters"] == sum(parameter.numel() for parameter in original.parameters())
    assert plan["num_matrices"] == 15
    row = next(row for row in plan["sizes"] if row["size"] == "25%")
    assert row["bits_per_weight"] == pytest.approx(4)
    assert json.loads((tmp_path / "plan" / "plan.json").read_text()) == json.loads(json.dumps(plan))


def test_inspect_draws_the_largest_matrix_or_the_one_that_is_named(model_folder, tmp_path):
    changes = InspectSettings.model_validate({"tiling": {"short": 16, "name": "penrose"}})
    plan = inspect(model_folder, settings=changes, picture=tmp_path / "largest.svg")
    for file, row in (
        ("largest.svg", max(plan["matrices"], key=lambda row: row["shape"][0] * row["shape"][1])),
        ("other.svg", plan["matrices"][3]),
    ):
        inspect(model_folder, settings=changes, picture=tmp_path / "other.svg", matrix=row["name"])
        assert row["name"] in (tmp_path / file).read_text()
        assert (tmp_path / file).read_text().count('class="tile"') == row["num_tiles"]
    with pytest.raises(InputError, match=r"no matrix model\.layers\.0\.mlp\.up; did you mean model\.layers\.0\.mlp\.up_proj"):
        inspect(model_folder, picture=tmp_path / "x.svg", matrix="model.layers.0.mlp.up")
    with pytest.raises(InputError, match="is a folder"):
        inspect(model_folder, picture=tmp_path)
    inspect(model_folder, picture=tmp_path / "new" / "x.svg")
    assert (tmp_path / "new" / "x.svg").is_file()
    with pytest.raises(InputError, match="give --picture"):
        inspect(model_folder, matrix="model.embed_tokens")
    assert not (tmp_path / "x.svg").exists()


def test_sampling_follows_the_models_distribution(tokenizer):
    model = tiny_llama(len(tokenizer))
    drawn = sample_tokens(model, tokenizer, 4000, SampleSettings(num_tokens=8), torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(torch.tensor([[tokenizer.bos_token_id]])).logits[0, -1].softmax(-1)
    counts = torch.bincount(drawn[:, 0], minlength=len(expected)) / 4000
    assert (counts - expected).abs().max() < 4 * (expected.max() / 4000) ** 0.5


def test_sampled_text_is_reproducible(model_folder, tmp_path):
    amount = SampleSettings(num_texts=6, num_tokens=16, batch_size=4)
    for name in ("a", "b"):
        assert sample(model_folder, tmp_path / name, amount)["num_texts"] > 0
    assert (tmp_path / "a" / "samples.jsonl").read_bytes() == (tmp_path / "b" / "samples.jsonl").read_bytes()


def test_text_that_is_missing_or_too_short(tokenizer, tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_texts(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(InputError, match="holds no text"):
        read_texts(tmp_path / "empty.jsonl")
    with pytest.raises(InputError, match="fewer than one window"):
        token_windows(tokenizer, ["a b"], 100, 1)


def test_windows_never_repeat(tokenizer):
    windows = token_windows(tokenizer, ["the band gap of silicon is 1.1 eV " * 40], 8, 10**6, seed=1)
    again = token_windows(tokenizer, ["the band gap of silicon is 1.1 eV " * 40], 8, 3, seed=1)
    assert torch.equal(windows[:3], again)
    assert torch.equal(
        token_windows(tokenizer, ["the band gap of silicon is 1.1 eV " * 40], 8, 10**6, 1, from_end=True).flip(0), windows
    )


def test_skipped_matrices_stay_as_they_are_and_count_in_full(model_folder, text_file, tmp_path):
    changes = settings(size="70%", skip=["model.embed_tokens", "*.1.mlp.*"])
    summary = compress(model_folder, tmp_path / "out", text=text_file, settings=changes)
    assert 0.95 * summary["target_bytes"] < summary["stored_bytes"] <= summary["target_bytes"]
    assert summary["stored_bytes"] == stored_bytes(tmp_path / "out")
    (original, _), (model, _) = load_model(model_folder), load_model(tmp_path / "out")
    coded = tiled_matrices(model)
    left = {name for name in compressible_layers(original)[0] if name == "model.embed_tokens" or ".1.mlp." in name}
    assert left
    assert coded.keys() == compressible_layers(original)[0].keys() - left
    for name in left:
        assert torch.equal(model.get_submodule(name).weight, original.get_submodule(name).weight)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_a_skipped_matrix_that_is_not_there_is_refused(model_folder, text_file, tmp_path):
    with pytest.raises(InputError, match=r"compress\.skip: no matrix is called \*\.nothing"):
        compress(model_folder, tmp_path / "out", text=text_file, settings=settings(skip=["*.nothing"]))
