"""One stored basis for all readers of the residual stream: stored once, found by structure, harmless to the function."""

import json
import re

import pytest
import torch
from tests.compress.architectures import build
from torch.testing import assert_close

from quasitile import InputError, compress, load_model
from quasitile.checkpoint import seal
from quasitile.compress import CompressSettings
from quasitile.compress.calibrate import calibrate
from quasitile.compress.order import logits_of
from quasitile.compress.stream import stream_axes
from quasitile.runtime import compressible_layers, load_trainable, save_model, tiled_matrices

PROBE = torch.arange(10, 34)[None]


def settings(**changes):
    few = {"num_windows": 4, "num_tokens": 32}
    base = {"size": "60%", "axes": {"kind": "stream"}, "tiling": {"short": 16}, "calibration": few, "workers": 1}
    return CompressSettings.model_validate({**base, **changes})


@pytest.fixture(scope="module")
def compressed(model_folder, text_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("stream") / "out"
    summary = compress(model_folder, out, text=text_file, settings=settings())
    assert 0.95 * summary["target_bytes"] < summary["stored_bytes"] <= summary["target_bytes"]
    return out


def test_the_basis_is_stored_once_and_the_model_loads(compressed, model_folder):
    loaded, _ = load_model(compressed)
    kinds = {name: int(matrix.payload[27]) for name, matrix in tiled_matrices(loaded).items()}
    assert [name for name, kind in kinds.items() if kind == 255] == ["model.embed_tokens"]
    assert sum(kind == 254 for kind in kinds.values()) >= 2
    assert {kind for name, kind in kinds.items() if re.search("o_proj|down_proj", name)} == {253}
    exact, found = logits_of(load_model(model_folder)[0], PROBE), logits_of(loaded, PROBE)
    assert (exact - found).square().mean() < 0.05 * exact.var()


def test_a_trainable_model_computes_the_same_and_is_stored_again(compressed, tmp_path):
    loaded, tokenizer = load_trainable(compressed)
    before = logits_of(loaded, PROBE)
    for matrix in tiled_matrices(loaded).values():
        matrix.remainders = None
        matrix.make_trainable()
    assert_close(logits_of(loaded, PROBE), before, rtol=1e-4, atol=1e-4)
    for matrix in tiled_matrices(loaded).values():
        matrix.pack()
    save_model(loaded, tokenizer, tmp_path)
    assert_close(logits_of(load_model(tmp_path)[0], PROBE), before, rtol=1e-2, atol=1e-2)  # norms are stored in bf16


def test_a_folder_that_does_not_say_who_stores_the_axes_is_refused(compressed, tmp_path):
    for file in compressed.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["axes"] = ""
    (tmp_path / "config.json").write_text(json.dumps(config))
    seal(tmp_path)
    with pytest.raises(InputError, match="refers to stored axes of 48 columns"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["qwen3", "gpt2", "bert", "gemma2", "mixtral", "gpt-neox"])
def test_readers_are_found_in_any_architecture(name):
    model = build(name, 320).float()
    axes = stream_axes(model, compressible_layers(model)[0], calibrate(model, PROBE.repeat(2, 1)), PROBE)
    assert axes.of(axes.source) == axes.axes
    assert len(axes.readers) > 1
    shared = axes.of(next(iter(axes.readers - {axes.source})))
    assert shared is not None
    assert shared.shared
    assert axes.of("nothing of that name") is None
    basis = axes.axes.matrices()[0]
    assert_close(basis @ basis.T, torch.eye(32, dtype=torch.float64))
