"""Prices midway: errors are priced by the mean of the original's gradients and the coded model's."""

import pytest
import torch
from tests.conftest import TOLERANCE
from torch.testing import assert_close

from quasitile import compress, load_model
from quasitile.codec.matrix import decode_matrix
from quasitile.compress import CompressSettings, token_windows
from quasitile.compress.allocate import allocate
from quasitile.compress.calibrate import Moments, calibrate, price_midway
from quasitile.compress.pipeline import bytes_beside, coding_for, job_for
from quasitile.compress.settings import MIDWAY_BITS, CalibrationSettings
from quasitile.compress.text import read_texts
from quasitile.runtime import compressible_layers
from quasitile.runtime.export import ExportSettings, export

TABLE = "model.embed_tokens"
AMOUNT = {"num_windows": 6, "num_tokens": 32, "batch_size": 4, "propagate": "original"}


SETTINGS = CompressSettings.model_validate({"size": "20%", "tiling": {"short": 16}, "workers": 1, "calibration": AMOUNT})


def compressed(gradients, model_folder, text_file, out):
    calibration = SETTINGS.calibration.model_copy(update={"gradients": gradients})
    return compress(model_folder, out, text=text_file, settings=SETTINGS.model_copy(update={"calibration": calibration}))


def weights_of(model):
    return {name: place.weight.detach().clone() for name, place in compressible_layers(model)[0].items()}


@pytest.fixture(scope="module")
def models(model_folder, text_file, tmp_path_factory):
    """Summaries and dense weights of the model coded once and coded again midway, and the calibration windows."""
    place = tmp_path_factory.mktemp("midway")
    original, tokenizer = load_model(model_folder)
    summaries, dense = {}, {"uncoded": original}
    for gradients in ("original", "midway"):
        summaries[gradients] = compressed(gradients, model_folder, text_file, place / gradients)
        export(place / gradients, place / f"{gradients}-dense", ExportSettings(dtype="float32"))
        dense[gradients] = load_model(place / f"{gradients}-dense")[0]
    windows = token_windows(tokenizer, read_texts(text_file), AMOUNT["num_tokens"], AMOUNT["num_windows"], 0)
    return summaries, dense, windows


def test_it_is_what_coding_with_the_mean_of_both_gradients_gives(models):
    summaries, dense, windows = models
    here, there = (calibrate(dense[name], windows, AMOUNT["batch_size"], 0) for name in ("uncoded", "original"))
    layers, _ = compressible_layers(dense["uncoded"])
    coded = {}
    for who, share in (("original", 0.0), ("midway", 0.5)):
        moments = {
            name: Moments(each.inputs, torch.lerp(each.outputs, there[name].outputs, share)) for name, each in here.items()
        }
        table = torch.lerp(here[TABLE].inputs, there[TABLE].inputs, share)  # its columns meet gradients, not inputs
        moments[TABLE] = Moments(table, moments[TABLE].outputs)
        jobs = [job_for(name, place, moments[name], SETTINGS, 1.0) for name, place in layers.items()]
        limit = summaries[who]["target_bytes"]
        beside = bytes_beside(dense["uncoded"], layers, limit)
        found = allocate(
            jobs, coding_for(SETTINGS, 1.0), lambda each, b=beside: b + sum(c.payload.numel() for c in each.values()), limit, 1
        )
        coded[who] = {name: decode_matrix(each.matrix) for name, each in found.coded.items()}
        for name, weight in weights_of(dense[who]).items():
            assert_close(coded[who][name], weight, **TOLERANCE[torch.float32])
    assert any(not torch.equal(coded["midway"][name], coded["original"][name]) for name in layers)


def test_a_model_that_is_destroyed_does_not_set_the_prices():
    here, there = torch.tensor([1.0, 1.0, 2.0]), torch.tensor([3.0, 1e6, 0.5])
    assert_close(price_midway(here, there), torch.tensor([2.0, 5.5, 1.25]), **TOLERANCE[torch.float32])


@pytest.mark.parametrize(
    ("gradients", "propagate", "bits", "expected"),
    [
        ("auto", "auto", MIDWAY_BITS, True),
        ("auto", "auto", MIDWAY_BITS + 0.1, False),
        ("auto", "original", MIDWAY_BITS, False),
        ("midway", "original", 8.0, True),
        ("original", "corrected", 0.5, False),
    ],
)
def test_when_prices_are_midway(gradients, propagate, bits, expected):
    assert CalibrationSettings(gradients=gradients, propagate=propagate).prices_midway(bits) == expected
