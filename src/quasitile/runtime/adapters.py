"""LoRA of PEFT on coded layers; needs the package `peft`."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig  # pyright: ignore[reportMissingImports]
from peft.tuners.lora import Linear  # pyright: ignore[reportMissingImports]
from torch import nn

from quasitile.runtime.linear import TiledLinear


class TiledLora(Linear):
    """An adapter beside a coded linear layer.

    Merged, the layer is a dense one: the sum of a coded weight and an adapter is no coded weight.
    Taken apart again, it is the coded layer that it was.
    """

    _coded: TiledLinear | None = None

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        assert isinstance(module, TiledLinear | nn.Linear)
        return module.in_features, module.out_features

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add adapters to the weight, which becomes dense."""
        coded: Any = self.get_base_layer()
        if isinstance(coded, TiledLinear):
            self._coded, self.base_layer = coded, dense_linear(coded)
        try:
            super().merge(safe_merge=safe_merge, adapter_names=adapter_names)
        finally:
            if not self.merged:
                self._restore()

    def unmerge(self) -> None:
        """Back to the coded layer."""
        super().unmerge()
        self._restore()

    def _restore(self) -> None:
        if self._coded is not None:
            self.base_layer, self._coded = self._coded, None


def dense_linear(layer: TiledLinear) -> nn.Linear:
    """An ordinary linear layer with a copy of a coded layer's weight."""
    weight = layer.weight.detach().clone()
    dense = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    dense.weight = nn.Parameter(weight, requires_grad=False)
    if layer.bias is not None:
        dense.bias = nn.Parameter(layer.bias.detach().clone(), requires_grad=False)
    return dense


def with_coded_layers(config: LoraConfig) -> LoraConfig:
    """A LoRA configuration that also accepts coded layers as targets.

    PEFT does not store this: give it again when adapters are loaded, as
    `PeftModel.from_pretrained(model, folder, config=with_coded_layers(LoraConfig.from_pretrained(folder)))`.
    """
    config._register_custom_module({TiledLinear: TiledLora})
    return config
