import json

import torch

from quasitile.evaluate.cost import peak_memory, process_bytes, resident_bytes, running_cost, stored_parameters


def test_a_folder_may_say_how_many_numbers_it_stores(tmp_path, model):
    assert stored_parameters(tmp_path, model) == model.num_parameters()
    (tmp_path / "summary.json").write_text(json.dumps({"stored_parameters": 77}))
    assert stored_parameters(tmp_path, model) == 77


def test_shared_weights_are_resident_once():
    layer = torch.nn.Linear(3, 3, bias=False)
    tied = torch.nn.Sequential(layer, layer)
    tied.register_buffer("table", torch.zeros(5, dtype=torch.int8))
    assert resident_bytes(tied) == 36 + 5


def test_running_cost_is_positive(model):
    cost = running_cost(model, prefill_tokens=1000, decode_tokens=3)
    assert set(cost) == {"prefill_tokens_per_second", "decode_tokens_per_second", "peak_memory_bytes"}
    assert all(value > 0 for value in cost.values())


def test_the_peak_is_that_of_the_block():
    before = process_bytes()
    with peak_memory(torch.device("cpu")) as peak:
        held = torch.ones(20_000_000)
    assert max(peak) >= before + held.nbytes // 2
