"""LoRA by the PEFT library, on dense layers and on coded ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from quasitile.runtime import TiledLinear
from quasitile.runtime.lora import known_layers, optional


def add_lora(model: Any, rank: int, alpha: float, seed: int) -> Any:
    """The model with an adapter on every linear layer of its stack, and nothing else trainable.

    Args:
        model: Dense or compressed; its head is left alone.
        rank: Of the adapters.
        alpha: Their scale, times the rank.
        seed: Of what they start from.
    """
    peft = optional("peft")
    head = model.get_output_embeddings()
    kinds = (nn.Linear, TiledLinear)
    names = [name for name, module in model.named_modules() if isinstance(module, kinds) and module is not head]
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=names, lora_dropout=0.0, bias="none")
    torch.manual_seed(seed)
    with known_layers():
        return peft.get_peft_model(model, optional("quasitile.runtime.adapters").with_coded_layers(config))
