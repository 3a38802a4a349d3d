"""LoRA by the PEFT library, on dense layers and on coded ones."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

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
    config._register_custom_module({TiledLinear: adapter_class()})
    torch.manual_seed(seed)
    with known_layers():
        return peft.get_peft_model(model, config)


def open_lora(model: Any, folder: str) -> Any:
    """The model with an adapter that PEFT saved."""
    peft = optional("peft")
    config = peft.PeftConfig.from_pretrained(folder)
    config._register_custom_module({TiledLinear: adapter_class()})
    with known_layers():
        return peft.PeftModel.from_pretrained(model, folder, config=config).eval()


@contextmanager
def known_layers() -> Iterator[None]:
    """PEFT warns of layers that are not its own, although it asked for their class; and of Transformers' changing names."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Unsupported layer type", UserWarning)
        warnings.filterwarnings("ignore", ".*deprecated", FutureWarning)
        yield


@cache
def adapter_class() -> type[nn.Module]:
    """PEFT's form of a coded linear layer."""
    tuners = optional("peft.tuners.lora")

    class LoraTiled(nn.Module, tuners.LoraLayer):  # type: ignore[misc, name-defined]
        """`y = W x + b + scale B A x` with a coded W."""

        def __init__(self, base_layer: Any, adapter_name: str, config: Any = None, **options: Any) -> None:
            super().__init__()
            tuners.LoraLayer.__init__(self, base_layer, **options)
            self._active_adapter = adapter_name
            self.update_layer(adapter_name, config.r, lora_alpha=config.lora_alpha, config=config)

        def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
            """`(..., N) -> (..., M)`."""
            result = self.base_layer(x, *args, **options)
            for name in self.active_adapters:
                if name in self.lora_A:
                    down, up = self.lora_A[name], self.lora_B[name]
                    result = result + self.scaling[name] * up(down(x.to(down.weight.dtype)))
            return result

        def merge(self, *_: Any, **__: Any) -> None:
            """Not possible.

            Raises:
                InputError: Always.
            """
            raise InputError("an adapter cannot be merged into coded weights; keep it beside them")

    return LoraTiled
