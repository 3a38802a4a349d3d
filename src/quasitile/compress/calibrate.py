"""Moments that price an error: of every layer's inputs, and of the gradients at its outputs.

The loss whose gradients count is the next-token loss at labels drawn from the model's own
prediction, so that the gradients' second moment is the Fisher information and no labels are needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quasitile.progress import track


@dataclass
class Moments:
    """What calibration knows of one matrix.

    Attributes:
        inputs: (N, N) second moment of what the columns meet, a mean over tokens.
        outputs: (M,) mean square of the loss's gradient at each output, a mean over tokens.
    """

    inputs: Tensor
    outputs: Tensor


class _Sums:
    """Running sums of one layer."""

    def __init__(self, num_rows: int, num_columns: int) -> None:
        self.inputs = torch.zeros(num_columns, num_columns)
        self.outputs = torch.zeros(num_rows)
        self.gradients = torch.zeros(num_columns, num_columns)  # of an embedding
        self.frequencies = torch.zeros(num_rows)  # of an embedding's rows


def compressible_layers(model: nn.Module) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Linear layers and the input embedding by name, and heads tied to the embedding.

    Returns:
        Layers to compress, and head name -> embedding name for heads that share its weight.
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Embedding) and module is model.get_input_embeddings())
    }
    embedding = next((name for name, module in layers.items() if isinstance(module, nn.Embedding)), None)
    tied = {
        name: embedding
        for name, module in layers.items()
        if embedding and isinstance(module, nn.Linear) and module.weight is layers[embedding].weight
    }
    return {name: module for name, module in layers.items() if name not in tied}, tied


def calibrate(model: Any, windows: Tensor, batch_size: int = 8, seed: int = 0) -> dict[str, Moments]:
    """Stream the calibration text through the model once, forward and backward.

    Args:
        model: In memory, float32.
        windows: (count, T) token ids.
        batch_size: Windows at a time.
        seed: Of the drawn labels.

    Returns:
        Moments by layer name. A tied embedding's are the sum of both uses: as a table, a row meets
        the gradient of its token as often as the token occurs; as the head, it meets the last
        hidden state. The sum is kept in its best separable form (rows times columns).
    """
    layers, tied = compressible_layers(model)
    sums = {name: _Sums(*layer.weight.shape) for name, layer in layers.items()}
    heads = {head: _Sums(*layers[source].weight.shape) for head, source in tied.items()}
    handles = []
    for name, layer in layers.items():
        observe = _observe_embedding if isinstance(layer, nn.Embedding) else _observe_linear
        handles.append(layer.register_forward_hook(observe(sums[name])))
    handles += [model.get_submodule(head).register_forward_hook(_observe_linear(heads[head])) for head in tied]
    generator = torch.Generator().manual_seed(seed)
    num_tokens = 0
    try:
        for batch in track(windows.split(batch_size), "calibrate"):
            with torch.enable_grad():
                logits = model(batch, use_cache=False).logits
                with torch.no_grad():
                    flat = logits.detach().float().softmax(-1).flatten(0, -2)
                    labels = torch.multinomial(flat, 1, generator=generator).flatten()
                loss = nn.functional.cross_entropy(logits.float().flatten(0, -2), labels, reduction="sum")
                model.zero_grad(set_to_none=True)
                loss.backward()
            num_tokens += batch.numel()
    finally:
        for handle in handles:
            handle.remove()
        model.zero_grad(set_to_none=True)
    return {name: _moments(total, [heads[h] for h, s in tied.items() if s == name], num_tokens) for name, total in sums.items()}


def _observe_linear(sums: _Sums) -> Any:
    def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        x = args[0].detach().float().flatten(0, -2)
        sums.inputs += x.T @ x

        def with_gradient(gradient: Tensor) -> None:
            sums.outputs.add_(gradient.float().flatten(0, -2).square().sum(0))

        output.register_hook(with_gradient)

    return hook


def _observe_embedding(sums: _Sums) -> Any:
    def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        sums.frequencies += torch.bincount(args[0].flatten(), minlength=len(sums.frequencies))

        def with_gradient(gradient: Tensor) -> None:
            flat = gradient.float().flatten(0, -2)
            sums.gradients.add_(flat.T @ flat)

        output.register_hook(with_gradient)

    return hook


def _moments(total: _Sums, heads: list[_Sums], num_tokens: int, damping: float = 0.02) -> Moments:
    """Means from sums; outputs are damped by a share of their mean, so that nothing is free."""
    if total.frequencies.any():
        frequencies = (total.frequencies + 1) / (num_tokens + len(total.frequencies))
        gradients = total.gradients / num_tokens
        inputs, outputs = gradients.clone(), frequencies * gradients.diagonal().mean()
        for head in heads:
            hidden, squares = head.inputs / num_tokens, head.outputs / num_tokens
            inputs += squares.sum() * hidden
            outputs += squares * hidden.diagonal().mean()
        inputs /= inputs.diagonal().mean().clamp_min(1e-30)
    else:
        inputs, outputs = total.inputs / num_tokens, total.outputs / num_tokens
    return Moments(inputs, outputs + damping * outputs.mean().clamp_min(1e-30))
