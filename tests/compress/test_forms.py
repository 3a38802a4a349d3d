"""Entries or products: both are made at very few bits, and what predicts text that was not calibrated on better is kept."""

import sys

import pytest
import torch
from torch.testing import assert_close

from quasitile import compress, load_model
from quasitile.compress import CompressSettings, token_windows
from quasitile.compress.forms import PRODUCT_BITS, text_nats, tries_products
from quasitile.compress.pipeline import coding_for
from quasitile.compress.text import read_texts
from quasitile.compress.windows import HELD_OUT_WINDOWS, held_out_windows
from quasitile.folders import read_json

AMOUNT = {"num_windows": 6, "num_tokens": 32, "batch_size": 4}
SETTINGS = {"size": "20%", "tiling": {"short": 16}, "workers": 1, "calibration": AMOUNT}
FORMS = {
    "entries": {"products": False},
    "products": {"residual": "none", "tiling": {"name": "whole"}, "spectrum": {"transform": "identity", "threshold": 0.55}},
}


def compressed(model_folder, text_file, out, changes):
    compress(model_folder, out, text=text_file, settings=CompressSettings.model_validate({**SETTINGS, **changes}))
    return (out / "model-00001-of-00001.safetensors").read_bytes()


@pytest.fixture
def at_any_size(monkeypatch):
    monkeypatch.setattr(sys.modules["quasitile.compress.forms"], "PRODUCT_BITS", 16.0)


@pytest.fixture(scope="module")
def forms(model_folder, text_file, tmp_path_factory):
    """The bytes of each form, and what it loses on the held-out windows."""
    place = tmp_path_factory.mktemp("forms")
    files = {name: compressed(model_folder, text_file, place / name, changes) for name, changes in FORMS.items()}
    _, tokenizer = load_model(model_folder)
    windows = held_out_windows(tokenizer, text_file, CompressSettings.model_validate(SETTINGS).calibration, 0)
    return files, {name: text_nats(load_model(place / name)[0], windows, 4) for name in FORMS}


def test_the_form_that_predicts_better_is_kept(at_any_size, forms, model_folder, text_file, tmp_path):
    files, nats = forms
    assert files["entries"] != files["products"]
    better = min(nats, key=nats.__getitem__)
    assert compressed(model_folder, text_file, tmp_path / "out", {}) == files[better]
    tilings = {matrix["tiling"] for matrix in read_json(tmp_path / "out" / "summary.json")["matrices"]}
    assert tilings == {{"entries": "fibonacci", "products": "whole"}[better]}


def test_what_text_says_decides(at_any_size, forms, model_folder, text_file, tmp_path, monkeypatch):
    files, nats = forms
    monkeypatch.setattr(sys.modules["quasitile.compress.pipeline"], "text_nats", lambda *args: -text_nats(*args))
    assert compressed(model_folder, text_file, tmp_path / "out", {}) == files[max(nats, key=nats.__getitem__)]


def test_held_out_windows_are_not_calibrated_on(model_folder, text_file):
    _, tokenizer = load_model(model_folder)
    amount = CompressSettings.model_validate(SETTINGS).calibration
    everything = token_windows(tokenizer, read_texts(text_file), 32, 10**6, 0)
    held_out = held_out_windows(tokenizer, text_file, amount, 0)
    assert_close(held_out, everything[6 : 6 + HELD_OUT_WINDOWS])
    assert not len(held_out_windows(tokenizer, text_file, amount.model_copy(update={"num_windows": len(everything)}), 0))


def test_text_nats_are_the_mean_of_every_prediction(model_folder):
    model, _ = load_model(model_folder)
    windows = torch.randint(0, 50, (3, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        rows = model(windows).logits.float().log_softmax(-1)[:, :-1]
    expected = -rows.gather(2, windows[:, 1:, None]).mean()
    assert_close(text_nats(model, windows, 2), float(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "bits", "tried"),
    [
        ({}, PRODUCT_BITS, True),
        ({}, 1.01 * PRODUCT_BITS, False),
        ({"products": False}, PRODUCT_BITS, False),
        ({"calibration": {"propagate": "original"}}, PRODUCT_BITS, False),
        ({"residual": "none"}, PRODUCT_BITS, False),
        ({"axes": {"kind": "klt"}}, PRODUCT_BITS, False),
        ({"structure": "circulant"}, PRODUCT_BITS, False),
    ],
)
def test_when_products_are_tried(changes, bits, tried):
    settings = CompressSettings.model_validate(changes)
    assert tries_products(settings, coding_for(settings, 0.1), bits) == tried
