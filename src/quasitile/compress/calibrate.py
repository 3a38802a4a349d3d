"""Moments that price an error: of every layer's inputs, and of the gradients at its outputs.

The loss whose gradients count is that of labels drawn from the model's own prediction, so that the
gradients' second moment is the Fisher information and no labels are needed (`sampled_loss`).
"""

from __future__ import annotations

import inspect
import statistics
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quasitile.compress.observe import OBSERVERS, ExpertWatch, SharedInputs, Sums, observe_linear, separate_experts
from quasitile.progress import track
from quasitile.runtime import Place, compressible_layers
from quasitile.runtime.device import CPU

PRIOR_TOKENS = 32  # of an average expert, added to each
DEAREST = 10.0  # times the original's price of a row that the coded model's may be
UNREACHED = 1e-29  # mean square of gradients below which a matrix counts as not reached


@dataclass
class Moments:
    """What calibration knows of one matrix.

    Attributes:
        inputs: (N, N) second moment of what the columns meet, a mean over what meets them.
        outputs: (M,) mean square of the loss's gradient at each output, a mean over tokens.
    """

    inputs: Tensor
    outputs: Tensor

    def to(self, device: torch.device) -> Moments:
        """The same on a device."""
        return Moments(self.inputs.to(device), self.outputs.to(device))

    def midway(self, there: Moments, columns: bool) -> Moments:
        """With half of these gradients and half of those at another point.

        Args:
            there: The moments there.
            columns: Whether the columns meet gradients too, as those of a table do.
        """
        inputs = (self.inputs + there.inputs) / 2 if columns else self.inputs
        return Moments(inputs, price_midway(self.outputs, there.outputs))


def price_midway(here: Tensor, there: Tensor) -> Tensor:
    """The mean of gradients' mean squares (M,), those there counting `DEAREST` times what they are here at most.

    A model that coding has all but destroyed has gradients a thousand times as large, which say nothing any more.
    """
    return (here + torch.minimum(there, DEAREST * here)) / 2


def calibrate(model: Any, windows: Tensor, batch_size: int = 8, seed: int = 0) -> dict[str, Moments]:
    """Stream the calibration text through the model once, forward and backward.

    Args:
        model: In memory, float32, on any device.
        windows: (count, T) token ids.
        batch_size: Windows at a time.
        seed: Of the drawn labels.

    Returns:
        Moments by the name of the matrix, on the CPU. A tied embedding's are the sum of both uses: as a table, a row meets
        the gradient of its token as often as the token occurs; as the head, it meets the last
        hidden state. The sum is kept in its best separable form (rows times columns).
    """
    layers, tied = compressible_layers(model)
    shared = SharedInputs()
    device = next(model.parameters()).device

    def sums_of(layer: Place, shared: SharedInputs | None) -> Sums:
        return Sums(layer.weight.shape[0], layer.weight.shape[1], shared=shared, device=device)

    sums = {name: sums_of(layer, shared) for name, layer in layers.items()}
    heads = {head: sums_of(layers[source], None) for head, source in tied.items()}
    stacks: dict[Tensor, list[Sums]] = {}
    handles = []
    for name, layer in layers.items():
        if layer.kind == "experts":
            stacks.setdefault(layer.tensor, []).append(sums[name])
        else:
            hook = OBSERVERS[layer.kind](sums[name], layer)
            handles.append(layer.module.register_forward_hook(hook, with_kwargs=True))
    for head, source in tied.items():
        hook = observe_linear(heads[head], layers[source])
        handles.append(model.get_submodule(head).register_forward_hook(hook, with_kwargs=True))
    generator = torch.Generator().manual_seed(seed)
    num_tokens = 0
    try:
        with separate_experts(model, bool(stacks)):
            for batch in track(windows.split(batch_size), "calibrate"):
                with torch.enable_grad():
                    with ExpertWatch(stacks) if stacks else nullcontext():
                        outputs = model(batch, **without_cache(model))
                    loss = sampled_loss(outputs, generator)
                    model.zero_grad(set_to_none=True)
                    loss.backward()
                shared.settle()
                num_tokens += batch.numel()
    finally:
        for handle in handles:
            handle.remove()
        model.zero_grad(set_to_none=True)
    for experts in stacks.values():
        share(experts)
    means: dict[Sums, Tensor] = {}
    moments = {
        name: moments_of(total, [heads[h] for h, s in tied.items() if s == name], num_tokens, means, shared)
        for name, total in sums.items()
    }
    moments = {name: each.to(CPU) for name, each in moments.items()}
    return priced(moments, {name for name, layer in layers.items() if layer.kind != "embedding"})


def without_cache(model: Any) -> dict[str, bool]:
    """What tells a model to keep no keys and values, if it ever would."""
    return {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}


def sampled_loss(outputs: Any, generator: torch.Generator) -> Tensor:
    """The loss whose gradients count.

    With logits: the negative log-likelihood of labels drawn from them, at every position, for masked
    language models as for causal ones. Without (an encoder that has no head): products of the last
    hidden states, and of the pooled ones if there are any, with standard normal numbers. Then the
    gradients' second moment is the Gauss-Newton matrix of half the squared change of the outputs,
    and "nats" are units of that.
    """
    logits = getattr(outputs, "logits", None)
    if logits is not None:
        with torch.no_grad():
            flat = logits.detach().float().softmax(-1).flatten(0, -2)
            labels = torch.multinomial(flat.to(CPU), 1, generator=generator).flatten().to(logits.device)
        return nn.functional.cross_entropy(logits.float().flatten(0, -2), labels, reduction="sum")
    states = [outputs.last_hidden_state, getattr(outputs, "pooler_output", None)]
    known = [state.float() for state in states if state is not None]
    return sum((state * torch.randn(state.shape, generator=generator).to(state.device)).sum() for state in known)  # type: ignore[return-value]


def share(experts: list[Sums]) -> None:
    """Add what `PRIOR_TOKENS` average tokens of all experts would give to each expert.

    One that calibration seldom or never met is then priced like a rare copy of the others.
    """
    count = sum(expert.count for expert in experts)
    if count:
        inputs = sum(expert.inputs for expert in experts) * (PRIOR_TOKENS / count)
        outputs = sum(expert.outputs for expert in experts) * (PRIOR_TOKENS / count)
        for expert in experts:
            expert.inputs, expert.outputs = expert.inputs + inputs, expert.outputs + outputs
            expert.count += PRIOR_TOKENS


def moments_of(
    total: Sums, heads: list[Sums], num_tokens: int, means: dict[Sums, Tensor], shared: SharedInputs, damping: float = 0.02
) -> Moments:
    """Means from sums; outputs are damped by a share of their mean, so that nothing is free.

    Args:
        total: Of a matrix.
        heads: Of the heads that share it.
        num_tokens: Of the calibration text.
        means: Of inputs met so far, for those that meet the same; filled.
        shared: Which do.
        damping: The share.
    """
    if total.frequencies.any():
        frequencies = (total.frequencies + 1) / (num_tokens + len(total.frequencies))
        gradients = total.gradients / num_tokens
        inputs, outputs = gradients.clone(), frequencies * mean_power(gradients, total)
        for head in heads:
            hidden, squares = head.inputs / num_tokens, head.outputs / num_tokens
            inputs += squares.sum() * hidden
            outputs += squares * mean_power(hidden, total)
        inputs /= mean_power(inputs, total).clamp_min(1e-30)
    else:
        leader = shared.leader_of(total)
        if leader not in means:
            means[leader] = leader.inputs / max(leader.count, 1)
        inputs, outputs = means[leader], total.outputs / num_tokens
    return Moments(inputs, outputs + damping * outputs.mean().clamp_min(1e-30))


def mean_power(moment: Tensor, sums: Sums) -> Tensor:
    """Mean diagonal of a second moment, in one block or several."""
    return moment.diagonal(dim1=-2, dim2=-1).sum() / sums.edges[-1]


def priced(moments: dict[str, Moments], usual: set[str]) -> dict[str, Moments]:
    """Give matrices that calibration could not see, or that the loss does not reach, the price of the others.

    Their inputs count as uncorrelated where nothing is known of them; power and mean square of the
    gradients are the median over the matrices that were seen.

    Args:
        moments: By name.
        usual: The names over which the median is taken.
    """
    power = {name: float(each.inputs.diagonal().mean()) for name, each in moments.items()}
    gradient = {name: float(each.outputs.mean()) for name, each in moments.items()}
    seen = [name for name in moments if power[name] > 0 and gradient[name] > UNREACHED]
    typical = [name for name in seen if name in usual] or seen
    if len(seen) == len(moments) or not typical:
        return moments
    usual_power = statistics.median(power[name] for name in typical)
    usual_gradient = statistics.median(gradient[name] for name in typical)
    for name in moments.keys() - set(seen):
        inputs, outputs = moments[name].inputs, moments[name].outputs
        if power[name] == 0:
            inputs = usual_power * torch.eye(len(inputs))
        moments[name] = Moments(inputs, torch.full_like(outputs, usual_gradient))
    return moments
