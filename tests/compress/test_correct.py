"""Coding behind coded layers: which matrices are corrected together, by what, and what it is worth."""

import copy
import math
import sys
from types import SimpleNamespace

import pytest
import torch
from tests.compress.architectures import ARCHITECTURES, build
from tests.conftest import TOLERANCE, tiny_llama
from torch.nn.functional import kl_div
from torch.testing import assert_close

from quasitile import InputError, compress, load_model
from quasitile.codec.coding import Coding
from quasitile.codec.matrix import decode_matrix
from quasitile.codec.tiling import fibonacci
from quasitile.compress import CompressSettings, token_windows
from quasitile.compress.allocate import Job, allocate
from quasitile.compress.budget import Budget
from quasitile.compress.calibrate import calibrate
from quasitile.compress.correct import RIDGE, RIDGE_OF_FEW_TOKENS, Layer, code_in_order
from quasitile.compress.stack import NotAStack, Stack
from quasitile.compress.text import read_texts
from quasitile.runtime import compressible_layers

CODING = Coding(residual="identity", num_states=4)
SIZES = {"llama": "12%", "gpt2": "30%", "mixtral": "15%"}
TARGET = 16_000  # bytes of all matrices
ATTENTION = ("q_proj", "k_proj", "v_proj")
# What meets the same inputs, and whether it is added to the hidden states as it is.
GROUPS = {
    "llama": [(ATTENTION, False), (("o_proj",), True), (("gate_proj", "up_proj"), False), (("down_proj",), True)],
    "gpt2": [(("c_attn",), False), (("c_proj",), True), (("c_fc",), False), (("c_proj",), True)],
    "gpt-neox": [(("query_key_value",), False), (("dense",), True), (("dense_h_to_4h",), False), (("dense_4h_to_h",), True)],
    # norms follow what is added
    "gemma2": [(ATTENTION, False), (("o_proj",), False), (("gate_proj", "up_proj"), False), (("down_proj",), False)],
    "mixtral": [(ATTENTION, False), (("o_proj",), True)],  # experts meet some tokens only
    "bert": [(("query", "key", "value"), False), (("dense",), False), (("dense",), False), (("dense",), False)],
}


@pytest.mark.parametrize(("name", "expected"), GROUPS.items(), ids=GROUPS)
def test_matrices_are_grouped_by_what_they_meet(name, expected):
    torch.manual_seed(0)
    model = ARCHITECTURES[name](64).eval()
    stack, (layers, _) = Stack(model), compressible_layers(model)
    batch = torch.arange(8, 24)[None]
    prefix = f"{stack.path}.0."
    layer = Layer(stack, 0, {key: place for key, place in layers.items() if key.startswith(prefix)})
    with torch.no_grad():
        groups = layer.groups(batch, stack.given(batch))
    assert [(tuple(each.rpartition(".")[2] for each in group.names), group.adds) for group in groups] == expected


@pytest.fixture(scope="module")
def coded():
    """A model, its windows, and what became of it without correction and with it."""
    model = tiny_llama(64, seed=3).eval()
    windows = torch.randint(0, 64, (8, 32), generator=torch.Generator().manual_seed(0))
    layers, _ = compressible_layers(model)
    moments = calibrate(model, windows)
    jobs = [
        Job(name, place.weight.detach().clone(), fibonacci(*place.weight.shape, 16, 0), moments[name])
        for name, place in layers.items()
    ]

    def measure(found):
        return sum(each.payload.numel() for each in found.values()) + 100

    plan = allocate(jobs, CODING, measure, TARGET, 1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = code_in_order(Stack(model), jobs, layers, plan, CODING, measure, TARGET, windows, 4, 1)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    return model, windows, {job.name: job for job in jobs}, plan.coded, found, measure


def with_matrices(model, coded):
    model = copy.deepcopy(model)
    layers, _ = compressible_layers(model)
    for name, each in coded.items():
        layers[name].tensor.data.copy_(decode_matrix(each.matrix))
    return model


def divergence(model, other, windows):
    with torch.no_grad():
        theirs, ours = (each(windows).logits.log_softmax(-1).flatten(0, 1) for each in (model, other))
    return float(kl_div(ours, theirs, log_target=True, reduction="batchmean"))


def test_it_diverges_less_at_no_more_bytes(coded):
    model, windows, _, plain, corrected, measure = coded
    assert measure(corrected) <= TARGET
    assert measure(corrected) >= 0.99 * TARGET
    before, after = (divergence(model, with_matrices(model, each), windows) for each in (plain, corrected))
    assert after < 0.85 * before


def test_what_is_outside_of_the_layers_stays_as_it_was_planned(coded):
    _, _, _, plain, corrected, _ = coded
    assert plain.keys() == corrected.keys()
    assert torch.equal(plain["model.embed_tokens"].payload, corrected["model.embed_tokens"].payload)
    assert not torch.equal(plain["model.layers.1.mlp.down_proj"].payload, corrected["model.layers.1.mlp.down_proj"].payload)


def slow_correction(model, other, name, inputs, states, windows):
    """W + argmin of |d - X' D|^2 + ridge, by least squares on every token, hooks on whole models."""

    def seen(which, path):
        found = []
        handle = which.get_submodule(path).register_forward_pre_hook(lambda _module, args: found.append(args[0].flatten(0, 1)))
        with torch.no_grad():
            which(windows)
        handle.remove()
        return found[0].double()

    met, weight = seen(other, inputs), model.get_submodule(name).weight.detach().double()
    missed = (seen(model, inputs) - met) @ weight.T if states is None else seen(model, states) - seen(other, states)
    power = met.square().mean(0)
    share = RIDGE + RIDGE_OF_FEW_TOKENS * met.shape[1] / len(met)
    ridge = torch.diag((len(met) * share * (power + 0.01 * power.mean())).sqrt())
    change = torch.linalg.lstsq(torch.cat([met, ridge]), torch.cat([missed, torch.zeros(len(ridge), missed.shape[1])])).solution
    return weight + change.T


@pytest.mark.parametrize(
    ("matrix", "states"),
    [
        ("mlp.gate_proj", None),
        ("mlp.up_proj", None),
        ("self_attn.o_proj", "post_attention_layernorm"),
        ("self_attn.q_proj", None),
    ],
)
def test_the_corrected_matrix_is_the_solution_of_least_squares(coded, matrix, states):
    model, windows, jobs, plain, _, _ = coded
    path = "model.layers.1"
    done = {name: each for name, each in plain.items() if not name.startswith(path)}
    other = with_matrices(model, done)  # everything before layer 1 coded, layer 1 as it was
    stack, (layers, _) = Stack(model), compressible_layers(model)
    layer = Layer(stack, 1, {name: place for name, place in layers.items() if name.startswith(f"{path}.")})
    own, coded_states = [], []
    for which, into in ((model, own), (other, coded_states)):
        with torch.no_grad():
            into.append(Stack(which).layer(0, windows, Stack(which).given(windows)))
    with torch.no_grad():
        groups = layer.groups(windows, own[0])
        layer.open(plain, groups)
        group = next(group for group in groups if f"{path}.{matrix}" in group.names)
        job = layer.compare(group, [windows], own, coded_states).corrected([jobs[f"{path}.{matrix}"]])[0]
    first = f"{path}.{'mlp.gate_proj' if matrix.startswith('mlp') else matrix}"
    expected = slow_correction(model, other, f"{path}.{matrix}", first, states and f"{path}.{states}", windows)
    assert_close(job.weight.double(), expected, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(job.weight, jobs[f"{path}.{matrix}"].weight, **TOLERANCE[torch.float32])


def test_nothing_is_corrected_behind_layers_that_are_exact(coded):
    model, windows, jobs, plain, _, _ = coded
    stack, (layers, _) = Stack(model), compressible_layers(model)
    layer = Layer(stack, 0, {name: place for name, place in layers.items() if name.startswith("model.layers.0.")})
    with torch.no_grad():
        states = [stack.given(windows)]
        groups = layer.groups(windows, states[0])
        layer.open(plain, groups)
        for group in groups:
            found = layer.compare(group, [windows], states, states)
            for name in group.names:
                assert_close(found.corrected([jobs[name]])[0].weight, jobs[name].weight, **TOLERANCE[torch.float32])


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_compress_corrects_by_default_in_memory_and_from_shards(name, model_folder, tokenizer, text_file, tmp_path):
    folder = model_folder
    if name != "llama":
        folder = tmp_path / "model"
        build(name, len(tokenizer)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    model, _ = load_model(folder)
    windows = token_windows(tokenizer, read_texts(text_file), 32, 8, 0)
    found = {}
    for stream, propagate in (("no", "original"), ("no", "auto"), ("yes", "auto")):
        calibration = {"num_windows": 32, "num_tokens": 32, "propagate": propagate, "stream": stream}
        settings = {"size": SIZES[name], "tiling": {"short": 16}, "calibration": calibration, "workers": 1}
        out = tmp_path / f"{propagate}-{stream}"
        summary = compress(folder, out, text=text_file, settings=CompressSettings.model_validate(settings))
        assert summary["stored_bytes"] <= summary["target_bytes"]
        found[propagate, stream] = divergence(model, load_model(out)[0], windows)
    assert found["auto", "no"] < found["original", "no"]
    assert found["auto", "yes"] == pytest.approx(found["auto", "no"], rel=0.1)


def test_layers_that_are_too_large_for_memory_are_not_corrected_from_shards(model_folder, text_file, tmp_path, monkeypatch):
    from_shards = sys.modules["quasitile.compress.from_shards"]
    monkeypatch.setattr(sys.modules["quasitile.compress.correct_streamed"], "RESIDENT_NUMBERS", 1000)
    small = {"size": "15%", "tiling": {"short": 16}, "workers": 1}
    calibration = {"num_windows": 4, "num_tokens": 16, "stream": "yes", "propagate": "corrected"}
    chosen = CompressSettings.model_validate({**small, "calibration": calibration})
    with pytest.raises(InputError, match="propagate=corrected is not possible: a layer of"):
        compress(model_folder, tmp_path / "no", text=text_file, settings=chosen)
    assert not list(tmp_path.iterdir())
    for fits, propagate, bits, expected in (
        (True, "auto", 2.0, True),
        (True, "auto", 4.0, False),
        (True, "corrected", 4.0, True),
        (True, "original", 2.0, False),
        (False, "auto", 2.0, False),
    ):
        monkeypatch.setattr(from_shards, "layers_fit", lambda _walk, fits=fits: fits)
        assert from_shards.corrects(None, "model", propagate, bits) == expected


def test_a_model_that_is_no_stack_is_not_corrected(model_folder, text_file, tmp_path, monkeypatch):
    class Odd(Stack):
        def __init__(self, _model):
            raise NotAStack("the model has no list of layers")

    monkeypatch.setattr(sys.modules["quasitile.compress.pipeline"], "Stack", Odd)
    small = {"size": "40%", "tiling": {"short": 16}, "calibration": {"num_windows": 4, "num_tokens": 16}}
    assert math.isfinite(
        compress(model_folder, tmp_path / "out", text=text_file, settings=CompressSettings.model_validate(small))[
            "stored_bytes"
        ]
    )
    small["calibration"]["propagate"] = "corrected"
    with pytest.raises(InputError, match="propagate=corrected is not possible"):
        compress(model_folder, tmp_path / "no", text=text_file, settings=CompressSettings.model_validate(small))


@pytest.mark.parametrize("true_slope", [-0.4, -1.0, -2.5])
def test_the_size_is_met_whatever_the_last_matrices_do(true_slope):
    names = [f"m{index}" for index in range(40)]
    jobs = {name: SimpleNamespace(name=name) for name in names}

    def coded(some, step):
        return {job.name: 1000 * step**true_slope for job in some}

    budget = Budget(lambda sizes: 500 + round(sum(sizes.values())), 39_000, -1.0, 1.0, coded(jobs.values(), 1.0))
    for name in names:
        budget.take(coded([jobs[name]], 1.0), [jobs[name]], 1.0)
    size = budget.measure(budget.settle(coded))
    assert 0.996 * 39_000 <= size <= 39_000
