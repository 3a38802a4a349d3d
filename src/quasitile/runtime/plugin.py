"""Transformers' quantiser for quasitile folders: `import quasitile` is all that loading needs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from quasitile.checkpoint import verify_checksums
from quasitile.codec.block import CodedMatrix
from quasitile.errors import InputError
from quasitile.runtime.linear import TiledEmbedding, TiledHead, TiledLinear, TiledMatrix, tiled_matrices

METHOD = "quasitile"
FORMAT_VERSION = 1


@register_quantization_config(METHOD)
class QuasitileConfig(QuantizationConfigMixin):
    """What `config.json` says of the coded layers.

    Args:
        modules: Layer name -> `{"kind": "linear" | "embedding", "shape": [M, N], "payload_bytes": n}`.
        tied: Layer name -> name of the embedding whose matrix it shares.
        format_version: Of the folder.
    """

    def __init__(
        self,
        modules: dict[str, dict[str, Any]] | None = None,
        tied: dict[str, str] | None = None,
        format_version: int = FORMAT_VERSION,
        **_: Any,
    ) -> None:
        self.quant_method = METHOD
        self.modules = modules or {}
        self.tied = tied or {}
        self.format_version = format_version
        if format_version > FORMAT_VERSION:
            raise InputError(f"the folder has format {format_version}, this version reads {FORMAT_VERSION}; update quasitile")


@register_quantizer(METHOD)
class QuasitileQuantizer(HfQuantizer):
    """Puts coded layers where the configuration names them and decodes them after loading."""

    requires_calibration = True
    is_trainable = True

    def _process_model_before_weight_loading(self, model: nn.Module, checkpoint_files: Any = None, **_: Any) -> None:
        verify_checksums(checkpoint_files or [])
        config = self.quantization_config
        for name, entry in config.modules.items():
            old = _submodule(model, name)
            with torch.device("meta"):
                matrix = TiledMatrix(tuple(entry["shape"]), entry["payload_bytes"], old.weight.dtype)
                _replace(model, name, matrix, old)
        _tie(model, config.tied)

    def _process_model_after_weight_loading(self, model: nn.Module, **_: Any) -> nn.Module:
        for name, matrix in tiled_matrices(model).items():
            if matrix.dense.is_meta:
                matrix.dense = torch.empty(0, dtype=matrix.dense.dtype)
            try:
                matrix.decode()
            except ValueError as error:
                raise InputError(f"the stored matrix of {name} is damaged: {error}; copy the folder again") from error
        return model

    def param_needs_quantization(self, model: nn.Module, param_name: str, **_: Any) -> bool:
        """Nothing is coded while loading: the bytes are stored as they are."""
        return False

    def is_serializable(self, *_: Any, **__: Any) -> bool:
        """The bytes can be saved again."""
        return True


def convert(model: nn.Module, coded: dict[str, CodedMatrix], tied: dict[str, str]) -> nn.Module:
    """Replace layers of a model in memory by their coded form.

    Args:
        model: Changed in place.
        coded: Layer name -> coded matrix.
        tied: Layer name -> name of the embedding that it shares.
    """
    for name, matrix in coded.items():
        old = _submodule(model, name)
        _replace(model, name, TiledMatrix.from_coded(matrix, old.weight.dtype), old)
    _tie(model, tied)
    describe(model, tied)
    return model


def describe(model: nn.Module, tied: dict[str, str]) -> None:
    """Write the coded layers into the model's configuration and give it its quantiser."""
    modules = {
        name: {
            "kind": "embedding" if isinstance(_submodule(model, name), TiledEmbedding) else "linear",
            "shape": list(matrix.shape),
            "payload_bytes": matrix.payload.numel(),
        }
        for name, matrix in tiled_matrices(model).items()
    }
    config = QuasitileConfig(modules, tied)
    model.config.quantization_config = config
    model.hf_quantizer = QuasitileQuantizer(config, pre_quantized=True)


def _submodule(model: nn.Module, name: str) -> Any:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise InputError(
            f"config.json names a coded layer {name} that the model does not have; copy the folder again"
        ) from error


def _replace(model: nn.Module, name: str, matrix: TiledMatrix, old: Any) -> None:
    parent, _, leaf = name.rpartition(".")
    is_embedding = isinstance(old, nn.Embedding)
    new = TiledEmbedding(matrix, old.padding_idx) if is_embedding else TiledLinear(matrix, old.bias)
    setattr(model.get_submodule(parent), leaf, new)


def _tie(model: nn.Module, tied: dict[str, str]) -> None:
    """Let output heads use the embedding's matrix; Transformers' own tying has nothing left to do."""
    for name, source in tied.items():
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, TiledHead(_submodule(model, source)))
        keys = getattr(model, "all_tied_weights_keys", None)
        if keys:
            keys.pop(f"{name}.weight", None)
