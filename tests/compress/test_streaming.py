"""A model that is read piece by piece computes, and is calibrated, as if it were in memory."""

import sys
from itertools import pairwise

import pytest
import torch
from tests.compress.architectures import ARCHITECTURES, build
from tests.conftest import TOLERANCE
from torch import nn
from torch.testing import assert_close
from transformers import AutoConfig

from quasitile import InputError
from quasitile.compress.calibrate import calibrate
from quasitile.compress.journal import Journal
from quasitile.compress.pieces import Pieces
from quasitile.compress.stack import NotAStack, find_stack
from quasitile.compress.stored import stored_moments
from quasitile.compress.streaming import Walk, calibrate_streamed
from quasitile.runtime.load import model_class
from quasitile.runtime.skeleton import Skeleton

CLOSE = TOLERANCE[torch.float32]
WINDOWS = torch.randint(0, 64, (5, 12), generator=torch.Generator().manual_seed(0))
CALIBRATED = ["llama", "gpt2", "mixtral", "gpt-oss", "opt", "convbert"]


def saved(folder, name):
    build(name, 64).to(torch.bfloat16).save_pretrained(folder)
    return folder


def whole(folder):
    return model_class(AutoConfig.from_pretrained(folder)).from_pretrained(folder, dtype=torch.float32).eval()


def streamed(folder, work, edges=None, batch_size=2):
    skeleton = Skeleton(folder)
    edges = edges or {name: [0, place.weight.shape[1]] for name, place in skeleton.layers.items()}
    journal = Journal(work, 1)
    calibrate_streamed(Walk(Pieces(skeleton), journal, WINDOWS, batch_size, 0, edges.__getitem__))
    return stored_moments(journal, edges)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_a_skeleton_reads_what_transformers_loads(name, tmp_path):
    skeleton = Skeleton(saved(tmp_path, name))
    expected = whole(tmp_path)
    tied = getattr(expected, "all_tied_weights_keys", None) or {}
    buffers = dict(skeleton.model.named_buffers())
    assert all(torch.equal(buffers[key], buffer) for key, buffer in expected.named_buffers())
    skeleton.load(list(skeleton.sources))
    found = skeleton.model.state_dict()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.state_dict().items() if key not in tied)
    skeleton.drop()
    assert all(place.tensor.is_meta for place in skeleton.layers.values())


@pytest.mark.parametrize("name", CALIBRATED)
def test_streamed_moments_are_those_of_the_model_in_memory(name, tmp_path):
    saved(tmp_path / "model", name)
    found, expected = streamed(tmp_path / "model", tmp_path / "work"), calibrate(whole(tmp_path / "model"), WINDOWS, 2, 0)
    assert found.keys() == expected.keys()
    for key, moments in expected.items():
        assert_close(found[key].moments().inputs, moments.inputs, **CLOSE)
        assert_close(found[key].moments().outputs, moments.outputs, rtol=1e-4, atol=1e-9)
    assert len({(each.inputs_file, each.leader) for each in found.values()}) < len(found) or name == "gpt2"
    assert not list((tmp_path / "work" / "states").iterdir())


def test_very_large_layers_are_read_row_by_row(tmp_path, monkeypatch):
    saved(tmp_path / "model", "llama")
    expected = streamed(tmp_path / "model", tmp_path / "plain")
    pieces = sys.modules["quasitile.compress.pieces"]
    monkeypatch.setattr(pieces, "RESIDENT_NUMBERS", 10)
    monkeypatch.setattr(pieces, "CHUNK_NUMBERS", 500)
    found = streamed(tmp_path / "model", tmp_path / "rows")
    for key, moments in expected.items():
        assert_close(found[key].moments().inputs, moments.moments().inputs, **CLOSE)
        assert_close(found[key].moments().outputs, moments.moments().outputs, rtol=1e-4, atol=1e-9)


def test_a_large_second_moment_is_kept_in_blocks(tmp_path):
    saved(tmp_path / "model", "llama")
    full = streamed(tmp_path / "model", tmp_path / "full")
    edges = {name: [0, *range(20, each.edges[-1], 20), each.edges[-1]] for name, each in full.items()}
    blocks = streamed(tmp_path / "model", tmp_path / "blocks", edges)
    for name, each in full.items():
        expected = each.moments().inputs
        parts = torch.block_diag(*(expected[start:stop, start:stop] for start, stop in pairwise(edges[name])))
        assert_close(blocks[name].moments().inputs, parts, **CLOSE)


def test_equal_inputs_are_kept_once(tmp_path):
    found = streamed(saved(tmp_path / "model", "llama"), tmp_path / "work")
    layer = "model.layers.1"
    assert {found[f"{layer}.self_attn.{name}_proj"].leader for name in "qkv"} == {f"{layer}.self_attn.q_proj"}
    assert found[f"{layer}.mlp.up_proj"].leader == f"{layer}.mlp.gate_proj"
    assert found[f"{layer}.mlp.down_proj"].leader == f"{layer}.mlp.down_proj"


def test_models_without_a_stack_are_told_apart():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(3, 3), nn.ModuleList([nn.Linear(1, 1)])

        def get_input_embeddings(self):
            return None

        get_output_embeddings = get_input_embeddings

    with pytest.raises(NotAStack, match="less than half"):
        find_stack(Plain())


def test_a_missing_tensor_and_one_that_is_no_number(tmp_path):
    model = build("llama", 64)
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("inf")
    model.save_pretrained(tmp_path / "inf")
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.up_proj.*NaN or infinite"):
        streamed(tmp_path / "inf", tmp_path / "work")
    state = {name: tensor for name, tensor in model.state_dict().items() if "layers.0.mlp.up_proj" not in name}
    model.save_pretrained(tmp_path / "missing", state_dict=state)
    with pytest.raises(InputError, match=r"lacks 1 tensors \(model\.layers\.0\.mlp\.up_proj\.weight"):
        Skeleton(tmp_path / "missing")
