"""LoRA by the PEFT library, on dense layers and on coded ones."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import nn

from quasitile.errors import InputError
from quasitile.runtime import TiledLinear


def optional(module: str) -> Any:
    """A module of a package that is not always there.

    Raises:
        InputError: It is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise InputError(f"{package} is not installed; `pip install {package}`, or quasitile[peft]") from error


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


def open_lora(model: Any, folder: str) -> Any:
    """The model with an adapter that PEFT saved."""
    peft = optional("peft")
    config = optional("quasitile.runtime.adapters").with_coded_layers(peft.PeftConfig.from_pretrained(folder))
    with known_layers():
        return peft.PeftModel.from_pretrained(model, folder, config=config).eval()


@contextmanager
def known_layers() -> Iterator[None]:
    """PEFT warns of layers that are not its own, although it asked for their class; and of Transformers' changing names."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Unsupported layer type", UserWarning)
        warnings.filterwarnings("ignore", ".*deprecated", FutureWarning)
        yield
