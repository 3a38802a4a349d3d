"""Narrower modules: each decomposition is the best of its kind, against slow references on data."""

import math

import numpy as np
import pytest
import torch
from tests.compress.architectures import ARCHITECTURES
from tests.conftest import TOLERANCE, tiny_llama
from torch.testing import assert_close

from quasitile import InputError
from quasitile.compress import token_windows
from quasitile.compress.calibrate import calibrate
from quasitile.compress.modular import SMOOTHNESS, kept_planes, layer_shares, modegpt, nystrom, values_and_outputs
from quasitile.compress.text import read_texts

CLOSE = TOLERANCE[torch.float32]


def data(num_columns, seed=0, count=400):
    """Correlated inputs (T, N), and their second moment."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(num_columns, num_columns, generator=generator, dtype=torch.float64)
    mixing = mixing * torch.logspace(0, -1.2, num_columns)
    x = torch.randn(count, num_columns, generator=generator, dtype=torch.float64) @ mixing.T
    return x, x.T @ x / count


def test_nystrom_keeps_the_channels_of_high_leverage_and_regresses_on_them():
    channels, moment = data(20)
    reader = torch.randn(6, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    kept, thin = nystrom(reader, moment, 8)
    ridge = float(moment.diagonal().mean())
    inverse = np.linalg.inv(moment.numpy() + ridge * np.eye(20))
    leverage = [sum(moment[i, j].item() * inverse[j, i] for j in range(20)) for i in range(20)]
    assert kept.tolist() == sorted(sorted(range(20), key=lambda i: -leverage[i])[:8])
    expected = np.linalg.lstsq(channels[:, kept].numpy(), (channels @ reader.T).numpy(), rcond=None)[0].T
    assert_close(thin[:, kept], torch.from_numpy(expected), rtol=1e-3, atol=1e-4)
    assert thin.count_nonzero(dim=0).count_nonzero() == 8


def rotated(states, position):
    """Rotary embedding of one position, pair by pair (T, d)."""
    half = states.shape[1] // 2
    turned = states.clone()
    for i in range(half):
        angle = position * 10000 ** (-i / half)
        turned[:, i] = math.cos(angle) * states[:, i] - math.sin(angle) * states[:, half + i]
        turned[:, half + i] = math.sin(angle) * states[:, i] + math.cos(angle) * states[:, half + i]
    return turned


@pytest.mark.parametrize("position", [0, 5])
def test_planes_are_chosen_by_the_norms_of_rotated_queries_and_keys(position):
    x, moment = data(10)
    generator = torch.Generator().manual_seed(2)
    queries, keys = (torch.randn(shape, dtype=torch.float64, generator=generator) for shape in ((2, 8, 10), (8, 10)))
    scores = []
    for plane in range(4):
        pair = [plane, plane + 4]
        power = sum(float(rotated(x @ head.T, position)[:, pair].square().sum()) for head in queries)
        scores.append(power * float(rotated(x @ keys.T, position)[:, pair].square().sum()))
    best = sorted(sorted(range(4), key=lambda i: -scores[i])[:2])
    assert kept_planes(queries, keys, moment, 2).tolist() == [*best, *(i + 4 for i in best)]


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_values_and_outputs_are_the_best_product_of_their_rank(rank):
    x, moment = data(10)
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(6, 10, dtype=torch.float64, generator=generator)
    outputs = torch.randn(2, 10, 6, dtype=torch.float64, generator=generator)
    thin_values, thin_outputs = values_and_outputs(values, outputs, moment, rank)
    stacked = np.concatenate([head @ values.numpy() for head in outputs.numpy()])
    wanted, found = x.numpy() @ stacked.T, x.numpy() @ np.concatenate([h @ thin_values.numpy() for h in thin_outputs.numpy()]).T
    tail = np.linalg.svd(wanted, compute_uv=False)[rank:]
    assert np.square(wanted - found).sum() == pytest.approx(np.square(tail).sum(), rel=1e-3, abs=1e-3)
    assert not thin_values[rank:].any()
    assert not thin_outputs[..., rank:].any()


def test_layers_that_change_little_keep_less():
    influence = torch.tensor([0.3, 0.02, 0.1, 0.05], dtype=torch.float64)
    kept = layer_shares(influence, 0.8)
    softmax = np.exp(-influence.numpy() / SMOOTHNESS)
    assert_close(1 - kept, torch.from_numpy(4 * 0.2 * softmax / softmax.sum()))
    few = layer_shares(influence, 0.1)
    assert float(few.mean()) == pytest.approx(0.1)
    assert float(few.min()) >= 0.02 - 1e-12
    assert_close(layer_shares(influence, 1.0), torch.ones(4, dtype=torch.float64))


def narrowed(tokenizer, text_file, share):
    model = tiny_llama(len(tokenizer))
    windows = token_windows(tokenizer, read_texts(text_file), 16, 8)
    modegpt(model, calibrate(model, windows), windows, 4, share)
    return model


def test_a_whole_share_changes_nothing(tokenizer, text_file):
    tokens = torch.arange(8, 40).view(2, 16)
    with torch.no_grad():
        expected = tiny_llama(len(tokenizer))(tokens).logits
        assert_close(narrowed(tokenizer, text_file, 1.0)(tokens).logits, expected, rtol=1e-3, atol=1e-3)


def test_what_falls_away_is_zero_on_both_sides(tokenizer, text_file):
    model = narrowed(tokenizer, text_file, 0.5)
    shares = []
    for layer in model.model.layers:
        mlp, attention = layer.mlp, layer.self_attn
        channels = mlp.down_proj.weight.any(0)
        shares.append(float(channels.float().mean()))
        for reader in (mlp.gate_proj, mlp.up_proj):
            assert torch.equal(reader.weight.any(1), channels)
        keys = attention.k_proj.weight.any(1).view(2, 12)
        assert torch.equal(keys[:, :6], keys[:, 6:])
        assert torch.equal(attention.q_proj.weight.any(1).view(2, 2, 12), keys[:, None].expand(2, 2, 12))
        values = attention.v_proj.weight.any(1).view(2, 12)
        assert torch.equal(attention.o_proj.weight.any(0).view(2, 2, 12), values[:, None].expand(2, 2, 12))
    assert sum(shares) / len(shares) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
def test_another_layout_is_refused(name):
    with pytest.raises(InputError, match="choose another preset"):
        modegpt(ARCHITECTURES[name](64), {}, torch.zeros(1, 2, dtype=torch.long), 1, 0.5)
