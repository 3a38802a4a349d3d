"""What the benchmarks of quality count and remember."""

import importlib.util
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def module(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture(scope="module")
def peer_run():
    return module("peer_run")


def test_a_peer_is_counted_without_a_gap(peer_run):
    assert peer_run.stored_bytes(torch.empty(8, 128), bits=3, group=64, bits_of_zero=3) == (8 * 128 * 3 + 8 * 2 * 19) // 8
    assert peer_run.stored_bytes(torch.empty(8, 100), bits=4, group=64, bits_of_zero=0) == (8 * 100 * 4 + 8 * 2 * 16) // 8


def test_what_is_not_on_a_grid_is_not_counted_as_if_it_were(peer_run):
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    rounded = (weight * 2).round().clamp(-2, 1) / 2
    peer_run.check_grid("layer", weight, rounded, bits=2, group=64)
    with pytest.raises(RuntimeError, match="more than 4 values"):
        peer_run.check_grid("layer", weight, weight + 1, bits=2, group=64)
    with pytest.raises(RuntimeError, match="has not been quantised"):
        peer_run.check_grid("layer", weight, weight.clone(), bits=2, group=64)


def test_plain_linear_layers_leave_the_function_as_it_is(peer_run):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2, n_positions=16)).eval()
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        before = model(tokens).logits
        after = peer_run.with_plain_linear_layers(model)(tokens).logits
    torch.testing.assert_close(after, before)
    assert len(peer_run.linear_layers(model)) == 4


def test_a_measurement_is_made_once_and_survives_a_restart(tmp_path):
    measure = module("measure")
    calls = []

    def take():
        calls.append(1)
        return {"damage_nats": 0.5}

    for _ in range(2):
        results = measure.Results(tmp_path / "out" / "lines.jsonl")
        assert results.once({"variant": "best", "seed": 0}, take)["damage_nats"] == 0.5
    assert len(calls) == 1
    results.once({"variant": "best", "seed": 1}, take)
    assert len(calls) == 2
    assert len(results.find({"variant": "best"})) == 2
