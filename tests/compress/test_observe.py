"""Calibration sees of experts, convolutions and scaled embeddings what a naive loop sees."""

import pytest
import torch
from tests.compress.architectures import build
from tests.conftest import TOLERANCE
from torch import nn
from torch.testing import assert_close
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

from quasitile.codec.matrix import encode_matrix
from quasitile.codec.tiling import whole
from quasitile.compress.calibrate import PRIOR_TOKENS, Moments, calibrate, priced, sampled_loss
from quasitile.compress.observe import OBSERVERS, ExpertWatch, Sums, separate_experts
from quasitile.runtime import TiledMatrix, compressible_layers
from quasitile.runtime.substitute import substitute

CLOSE = TOLERANCE[torch.float32]
CONVOLUTIONS = {
    "1d": nn.Conv1d(6, 8, 3, padding=1),
    "1d grouped, dilated": nn.Conv1d(6, 8, 3, stride=2, dilation=2, groups=2),
    "2d": nn.Conv2d(4, 8, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
    "2d circular": nn.Conv2d(4, 8, 3, padding=1, padding_mode="circular"),
    "3d": nn.Conv3d(2, 4, 2),
}


def observed(module, x):
    """Sums over one forward and backward pass of the sum of squares, and the gradient at the output."""
    model = nn.Sequential(module)
    place = compressible_layers(model)[0]["0"]
    sums = Sums(*place.weight.shape)
    handle = module.register_forward_hook(OBSERVERS[place.kind](sums, place), with_kwargs=True)
    out = model(x)
    out.retain_grad()
    out.square().sum().backward()
    handle.remove()
    return place, sums, out


@pytest.mark.parametrize("convolution", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_a_convolution_is_a_product_with_its_patches(convolution):
    torch.manual_seed(0)
    size = (5, 7, 6)[: len(convolution.kernel_size)]
    x = torch.randn(3, convolution.in_channels, *size)
    place, sums, out = observed(convolution, x)
    assert_close(sums.outputs, out.grad.movedim(1, -1).flatten(0, -2).square().sum(0), **CLOSE)
    # The patches' second moment says how much the outputs change with the weight.
    change = torch.randn_like(place.weight)
    with torch.no_grad():
        before = convolution(x)
        convolution.weight += change.view_as(convolution.weight)
        moved = (convolution(x) - before).square().sum()
    if convolution.groups == 1:
        assert_close(((change @ sums.inputs) * change).sum(), moved, rtol=1e-3, atol=1e-3)
    assert sums.count == convolution.groups * out.numel() // out.shape[1]


@pytest.mark.parametrize("convolution", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_a_coded_convolution_is_its_dense_weight(convolution):
    model = nn.Sequential(convolution)
    place = compressible_layers(model)[0]["0"]
    (rows, columns), bias = place.weight.shape, convolution.bias
    coded, _ = encode_matrix(place.weight.detach(), whole(rows, columns, 16, 0), torch.eye(columns), torch.ones(rows), 0.05)
    x = torch.randn(2, convolution.in_channels, *(9, 9, 9)[: len(convolution.kernel_size)])
    matrix = TiledMatrix.from_coded(coded)
    dense = type(convolution)(
        convolution.in_channels, len(bias), convolution.kernel_size, convolution.stride, convolution.padding,
        convolution.dilation, convolution.groups, padding_mode=convolution.padding_mode,
    )  # fmt: skip
    dense.load_state_dict({"weight": matrix.weight().view_as(dense.weight), "bias": bias})
    copied = type(convolution)(
        convolution.in_channels, len(bias), convolution.kernel_size, convolution.stride, convolution.padding,
        convolution.dilation, convolution.groups, padding_mode=convolution.padding_mode,
    )  # fmt: skip
    copied.bias = bias
    holder = nn.Sequential(copied)
    substitute(holder, "0", "weight", "convolution", [matrix])
    assert torch.equal(holder(x), dense(x))
    assert set(holder.state_dict()) == {"0.bias", "0.matrix.payload"}


def test_the_scale_of_an_embedding_reaches_its_gradients():
    scaled = Gemma3TextScaledWordEmbedding(20, 8, 0, embed_scale=3.0)
    model = nn.Sequential(scaled)
    model.get_input_embeddings = lambda: scaled
    place = compressible_layers(model)[0]["0"]
    sums = Sums(20, 8)
    scaled.register_forward_hook(OBSERVERS["embedding"](sums, place), with_kwargs=True)
    token_ids = torch.tensor([[3, 5, 3, 7]])
    out = model(token_ids)
    weights = torch.randn(out.shape)
    (out * weights).sum().backward()
    flat = 3.0 * weights.flatten(0, -2)
    assert_close(sums.gradients, flat.T @ flat, **CLOSE)
    assert sums.frequencies[3] == 2


@pytest.mark.parametrize("name", ["mixtral", "deepseek-v3", "gpt-oss"])
def test_each_expert_is_seen_on_the_tokens_routed_to_it(name):
    model = build(name, 64)
    experts = model.model.layers[1].mlp.experts
    tokens = torch.arange(48).view(2, 24)
    layers, _ = compressible_layers(model)
    stacks = {}
    for place in layers.values():
        if place.kind == "experts":
            stacks.setdefault(place.tensor, []).append(Sums(*place.weight.shape))
    routed = []
    handle = experts.register_forward_pre_hook(lambda _, args: routed.append([arg.detach() for arg in args]))
    with separate_experts(model, True), ExpertWatch(stacks):
        logits = model(tokens).logits
    sampled_loss(type("Output", (), {"logits": logits})(), torch.Generator().manual_seed(0)).backward()
    handle.remove()
    hidden, chosen = routed[0][:2]
    for index, sums in enumerate(stacks[experts.gate_up_proj]):
        x = hidden.reshape(-1, hidden.shape[-1])[(chosen == index).any(-1)]
        assert sums.count == len(x)
        if name == "gpt-oss":  # stored (in, out): rows meet the inputs, columns the gradients
            assert_close(sums.outputs, x.square().sum(0), **CLOSE)
        else:
            assert_close(sums.inputs, x.T @ x, **CLOSE)
    # What reached the down projections explains the gradients of their weights: sum of squares by Cauchy-Schwarz.
    for sums, gradient in zip(stacks[experts.down_proj], experts.down_proj.grad, strict=True):
        assert gradient.square().sum() <= sums.inputs.trace() * sums.outputs.sum() * 1.001
        assert (sums.count > 0) == (gradient.abs().sum() > 0)


def test_all_experts_have_moments_and_other_implementations_come_back():
    model = build("mixtral", 64)
    before = model.config._experts_implementation
    moments = calibrate(model, torch.arange(8).view(1, 8), seed=0)
    assert model.config._experts_implementation == before
    experts = [moments[f"model.layers.0.mlp.experts.down_proj.{index}"] for index in range(4)]
    assert all(each.inputs.diagonal().min() > 0 and each.outputs.min() > 0 for each in experts)
    assert PRIOR_TOKENS > 8  # eight tokens alone would leave the experts singular


def test_what_the_loss_does_not_reach_is_priced_like_the_others():
    seen = {str(size): Moments(size * torch.eye(2), torch.full((3,), 10.0 * size)) for size in (1, 2, 4)}
    unseen = Moments(torch.zeros(5, 5), torch.full((4,), 1e-32))
    priced_moments = priced({**seen, "unseen": unseen}, set(seen))
    assert torch.equal(priced_moments["unseen"].inputs, 2 * torch.eye(5))
    assert torch.equal(priced_moments["unseen"].outputs, torch.full((4,), 20.0))
    assert priced(seen, set(seen)) is seen
