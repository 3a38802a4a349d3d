"""A model without its weights: they are read from the shards part by part, and dropped again."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, GenerationConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import logging as transformers_logging

from quasitile.checkpoint.streams import TensorReader
from quasitile.errors import InputError
from quasitile.runtime.device import CPU
from quasitile.runtime.layers import compressible_layers
from quasitile.runtime.load import model_class, uncoded


class Skeleton:
    """A model on the meta device whose tensors come and go.

    What is no matrix (norms, biases, routers, tables of positions) is read at once and stays. Names
    that Transformers renames, merges or splits on loading are renamed, merged or split here by its
    own rules.

    Args:
        folder: A local model folder.

    Raises:
        InputError: A tensor is missing, or the folder cannot be read.
    """

    def __init__(self, folder: str | Path) -> None:
        self.reader, self.device = TensorReader(folder), CPU
        config = AutoConfig.from_pretrained(str(folder))
        self.dtype = getattr(config, "dtype", None) or torch.bfloat16
        chosen = model_class(config)
        build = getattr(chosen, "from_config", None) or chosen._from_config
        with torch.device("meta"):
            self.model = build(config, dtype=torch.float32).eval()
        if (Path(folder) / "generation_config.json").is_file():
            self.model.generation_config = GenerationConfig.from_pretrained(str(folder))
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        self.model.tie_weights()
        _fill_buffers(self.model)
        self.layers, self.tied = compressible_layers(self.model)
        self.mapping: Any = get_model_conversion_mapping(self.model)
        self.sources = self._sources()
        self._empty: dict[str, Tensor] = {}
        others = [name for name in uncoded(self.model) if name in self.sources]
        self.load(others)
        self._empty.clear()
        self.model.tie_weights()
        self._check(folder)

    def _sources(self) -> dict[str, list[str]]:
        """Name in the model -> names in the files that it is made of; of several made together, the first."""
        renamings = [entry for entry in self.mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in self.mapping if isinstance(entry, WeightConverter)]
        state, prefix = self.model.state_dict(), self.model.base_model_prefix
        sources: dict[str, list[str]] = {}
        self.converted: set[str] = set()
        for key in self.reader.headers:
            name, pattern = rename_source_key(key, renamings, converters, prefix, state)
            if name not in state and key in state:
                name, pattern = key, None
            if name in state:
                sources.setdefault(name, []).append(key)
                if pattern is not None:
                    self.converted.add(name)
        return sources

    def _check(self, folder: str | Path) -> None:
        """Everything that the model needs is in the files, as far as names say."""
        tied = set(getattr(self.model, "all_tied_weights_keys", None) or {}) | {f"{name}.weight" for name in self.tied}
        several = {prefix_of(name) for name in self.converted}  # one file tensor may become several of a module's neighbours
        missing = [
            name
            for name in self.model.state_dict()
            if name not in self.sources and name not in tied and prefix_of(name) not in several
        ]
        if missing:
            raise InputError(
                f"{folder} lacks {len(missing)} tensors ({missing[0]}, ...); the model would be partly random, copy it again"
            )

    def tensor_name(self, layer: str) -> str:
        """The parameter that holds a matrix."""
        place = self.layers[layer]
        return f"{place.path}.{place.parameter}"

    def direct(self, layer: str) -> str | None:
        """The tensor in the files that is a matrix as it stands, rows and all; nothing where it must be converted."""
        name = self.tensor_name(layer)
        keys = self.sources.get(name, [])
        if self.layers[layer].kind not in ("linear", "embedding") or name in self.converted or len(keys) != 1:
            return None
        return keys[0] if self.reader.shape(keys[0]) == tuple(self.layers[layer].weight.shape) else None

    def load(self, names: Iterable[str], dtype: torch.dtype = torch.float32) -> None:
        """Read tensors of the model, by their names in it.

        Raises:
            InputError: One holds NaN or infinite values, or is of another shape than the model's.
        """
        keys = [key for name in names for key in self.sources.get(name, [])]
        if not keys:
            return
        before = self._tensors()
        state = {key: self.reader.read(key) for key in keys}
        for key, tensor in state.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                file = self.reader.headers[key]["file"]
                raise InputError(f"{file}: {key} holds NaN or infinite values; the checkpoint is damaged, copy it again")
        bars = transformers_logging.is_progress_bar_enabled()
        transformers_logging.disable_progress_bar()
        extra = {"tp_plan": None} if "tp_plan" in inspect.signature(convert_and_load_state_dict_in_model).parameters else {}
        try:
            result: Any = convert_and_load_state_dict_in_model(
                self.model,
                state,
                LoadStateDictConfig(dtype=dtype, weight_mapping=self.mapping, device_map={"": self.device}),
                **extra,
            )
        finally:
            if bars:
                transformers_logging.enable_progress_bar()
        report = result[0] if isinstance(result, tuple) else result
        if report.mismatched_keys:
            name, found, expected = next(iter(report.mismatched_keys))
            raise InputError(f"{name} has the shape {list(found)} where {list(expected)} is expected; copy the model again")
        for name, tensor in self._tensors().items():
            if tensor is not before[name]:
                self._empty.setdefault(name, before[name])
                tensor.requires_grad_(False)

    def _tensors(self) -> dict[str, Tensor]:
        return dict([*self.model.named_parameters(remove_duplicate=False), *self.model.named_buffers(remove_duplicate=False)])

    def compute_on(self, device: torch.device) -> None:
        """What is loaded, and what will be, on a device."""
        self.device = device
        moved: dict[Tensor, Tensor] = {}
        for name, tensor in self._tensors().items():
            if not tensor.is_meta:
                module, leaf = self._place(name)
                values = module._parameters if leaf in module._parameters else module._buffers
                if tensor not in moved:
                    here = tensor.detach().to(device)
                    moved[tensor] = torch.nn.Parameter(here, False) if values is module._parameters else here
                values[leaf] = moved[tensor]

    def _place(self, name: str) -> tuple[Any, str]:
        """The module of a tensor, and its name there."""
        path, _, leaf = name.rpartition(".")
        return self.model.get_submodule(path), leaf

    def drop(self) -> None:
        """Forget what `load` has read since."""
        for name, tensor in self._empty.items():
            module, leaf = self._place(name)
            (module._parameters if leaf in module._parameters else module._buffers)[leaf] = tensor
        self._empty.clear()

    def under(self, path: str) -> list[str]:
        """Names of the matrices' parameters below a module."""
        wanted = {self.tensor_name(layer) for layer in self.layers if layer.startswith(f"{path}.")}
        return [name for name in self.sources if name in wanted or (name in self.converted and name.startswith(f"{path}."))]


def prefix_of(name: str) -> str:
    """The module that holds a parameter's module."""
    return name.rpartition(".")[0].rpartition(".")[0]


def _fill_buffers(model: Any) -> None:
    """Compute what a model computes for itself (rotary frequencies), as Transformers does after loading."""
    for tensor in model.state_dict(keep_vars=True).values():
        tensor._is_hf_initialized = True
    for name, buffer in model.named_non_persistent_buffers():
        path, _, leaf = name.rpartition(".")
        model.get_submodule(path)._buffers[leaf] = torch.empty_like(buffer, device="cpu")
    model.initialize_weights()
