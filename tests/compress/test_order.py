"""Orders change where numbers stand, never what a model computes; and they do put related channels together."""

from types import SimpleNamespace

import pytest
import torch
from tests.compress.architectures import build
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM

from quasitile import InputError, compress, load_model
from quasitile.compress import CompressSettings
from quasitile.compress.calibrate import calibrate
from quasitile.compress.order import ORDERS, fiedler_order, logits_of, principal_axes, read_stream, reorder, turned
from quasitile.runtime import compressible_layers

VOCABULARY = 48
ROTATED = ["llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen3-moe", "phi3", "deepseek-v3"]


def biased_llama():
    """Biases everywhere, grouped queries, norms that are no constants."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, attention_bias=True, mlp_bias=True, initializer_range=0.2,
        bos_token_id=0, eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape)
    return model


def made(name):
    model = biased_llama() if name == "biased" else build(name, VOCABULARY).float()
    probe = torch.randint(0, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(1))
    return SimpleNamespace(model=model, probe=probe, moments=calibrate(model, probe.repeat(4, 1)))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", [*ROTATED, "biased"])
def test_the_logits_stay_what_they_were(name, order):
    case = made(name)
    before = logits_of(case.model, case.probe)
    old = {key: place.weight.detach().clone() for key, place in compressible_layers(case.model)[0].items()}
    reorder(case.model, case.moments, order, case.probe)
    assert_close(logits_of(case.model, case.probe), before, rtol=1e-3, atol=1e-3 * float(before.std()))
    new = compressible_layers(case.model)[0]
    changed = [key for key in old if not torch.equal(old[key], new[key].weight)]
    assert changed if order == "rotate" else len(changed) < len(old)


@pytest.mark.parametrize("name", ["gpt2", "bert", "opt", "gpt-neox"])
def test_the_channels_of_any_architecture_may_be_permuted(name):
    case = made(name)
    before = logits_of(case.model, case.probe)
    reorder(case.model, case.moments, "energy", case.probe)
    assert_close(logits_of(case.model, case.probe), before, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "why"), [("gpt2", "LayerNorm"), ("gemma2", "residual stream"), ("bert", "LayerNorm")])
def test_a_rotation_that_is_impossible_is_refused_in_one_line(name, why):
    case = made(name)
    with pytest.raises(InputError, match=f"order=rotate is impossible.*{why}"):
        reorder(case.model, case.moments, "rotate", case.probe)


def test_a_rotated_stream_is_read_along_its_principal_axes():
    case = made("biased")
    reorder(case.model, case.moments, "rotate", case.probe)
    after = calibrate(case.model, case.probe.repeat(4, 1))
    readers = [f"model.layers.{layer}.{reader}" for layer in range(2) for reader in ("self_attn.q_proj", "mlp.gate_proj")] + [
        "lm_head"
    ]
    total = sum((m := after[name].inputs) / m.trace() for name in readers)
    assert isinstance(total, torch.Tensor)
    power = total.diagonal()
    assert (total - torch.diag(power)).abs().max() < 1e-3 * power.max()
    assert (power.diff() <= 1e-6).all()
    inner = after["model.layers.0.self_attn.o_proj"].inputs
    inner = inner[:8, :8] + inner[8:16, 8:16]  # the first two heads share keys and values
    assert (inner - torch.diag(inner.diagonal())).abs().max() < 1e-3 * inner.diagonal().max()
    for norm, scale, _ in read_stream(case.model, case.probe).norms:
        assert_close(scale, torch.ones(32), msg=str(norm))


@pytest.mark.parametrize("order", ["energy", "rotate"])
def test_feed_forward_channels_are_sorted_by_energy(order):
    case = made("biased")
    reorder(case.model, case.moments, order, case.probe)
    power = calibrate(case.model, case.probe.repeat(4, 1))["model.layers.1.mlp.down_proj"].inputs.diagonal()
    assert (power.diff() <= 1e-4 * power.max()).all()


def test_the_fiedler_order_finds_a_chain_again():
    size = 40
    place = torch.arange(size)
    chain = torch.exp(-(place - place[:, None]).abs().double() / 3)
    shuffle = torch.randperm(size, generator=torch.Generator().manual_seed(0))
    found = shuffle[fiedler_order(chain[shuffle][:, shuffle])]
    assert torch.equal(found, place) or torch.equal(found, place.flip(0))


def test_turning_there_and_back_changes_nothing():
    tensor = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0))
    axes = principal_axes(torch.cov(tensor.movedim(1, 0).flatten(1)))
    assert_close(turned(turned(tensor, 1, axes), 1, axes.T), tensor)
    order = torch.tensor([2, 0, 5, 1, 4, 3])
    assert torch.equal(turned(turned(tensor, 1, order), 1, order.argsort()), tensor)
    assert_close(turned(tensor, 1, torch.eye(6)[:, order]), turned(tensor, 1, order))


@pytest.mark.parametrize("order", ORDERS)
def test_a_model_in_another_order_is_stored_and_loaded(model_folder, text_file, tmp_path, order):
    few = {"num_windows": 4, "num_tokens": 32}
    chosen = CompressSettings.model_validate(
        {"size": "60%", "order": order, "tiling": {"short": 16}, "calibration": few, "workers": 1}
    )
    summary = compress(model_folder, tmp_path / "out", text=text_file, settings=chosen)
    assert 0.95 * summary["target_bytes"] < summary["stored_bytes"] <= summary["target_bytes"]
    original, loaded = load_model(model_folder)[0], load_model(tmp_path / "out")[0]
    probe = torch.arange(10, 30)[None]
    exact, found = logits_of(original, probe), logits_of(loaded, probe)
    assert (exact - found).square().mean() < 0.05 * exact.var()
    assert loaded.config.tie_word_embeddings == (order != "rotate")  # only a rotation needs a head of its own
