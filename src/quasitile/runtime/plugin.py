"""Transformers' quantiser for quasitile folders: `import quasitile` is all that loading needs."""

from __future__ import annotations

import re
import weakref
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import nn
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from quasitile.checkpoint import seal, verify_checksums
from quasitile.codec.block import CodedMatrix
from quasitile.errors import InputError
from quasitile.folders import read_json, write_json
from quasitile.runtime.declared import FORMAT_VERSION, check_depth, check_entries, check_files, check_version, structure_of
from quasitile.runtime.decode import named
from quasitile.runtime.execution import apply
from quasitile.runtime.layers import KINDS, compressible_layers
from quasitile.runtime.linear import TiledHead, TiledMatrix, tiled_matrices
from quasitile.runtime.substitute import coded_parameters, substitute

METHOD = "quasitile"
GUARD = "transformers_weights"  # a key of config.json that Transformers reads before anything is built
SENTENCE = "this folder was written by quasitile, run `import quasitile` before loading it"


@register_quantization_config(METHOD)
class QuasitileConfig(QuantizationConfigMixin):
    """What `config.json` says of the coded layers.

    Args:
        modules: Layer name -> `{"kind": ..., "shape": [M, N], "payload_bytes": n}`, with a kind of
            `quasitile.runtime.layers.KINDS`; of experts, name of the parameter -> the same with
            `[E, M, N]` and a list of E numbers of bytes. `"structure": {"name", "side", "ratio"}`
            where the weight is expanded from a smaller matrix (`quasitile.codec.structure`).
        tied: Layer name -> name of the embedding whose matrix it shares.
        axes: Name of the layer that stores the axes which others refer to, if any does.
        format_version: Of the folder.
    """

    def __init__(
        self,
        modules: dict[str, dict[str, Any]] | None = None,
        tied: dict[str, str] | None = None,
        axes: str = "",
        format_version: int = FORMAT_VERSION,
        **_: Any,
    ) -> None:
        check_version(format_version)
        self.quant_method = METHOD
        self.modules = {} if modules is None else modules
        self.tied = {} if tied is None else tied
        self.axes = axes
        self.format_version = format_version
        check_entries(self.modules, self.tied, self.axes)


@register_quantizer(METHOD)
class QuasitileQuantizer(HfQuantizer):
    """Puts coded layers where the configuration names them and decodes them after loading."""

    requires_calibration = True
    _model: Any = None
    is_trainable = True  # pyright: ignore[reportAssignmentType]
    is_qat_trainable = True  # pyright: ignore[reportAssignmentType]  # straight through the rounding, also by Trainer

    def update_attn_implementation(self, config: Any) -> Any:
        """The first sight of the configuration: take out what stops readers that do not know quasitile."""
        check_depth(config)
        if getattr(config, GUARD, None) == SENTENCE:
            delattr(config, GUARD)
        return config

    def update_tp_plan(self, config: Any) -> Any:
        """Where Transformers before 5.23 first shows the configuration."""
        return self.update_attn_implementation(config)

    def _process_model_before_weight_loading(self, model: nn.Module, checkpoint_files: Any = None, **_: Any) -> None:
        verify_checksums(checkpoint_files or [])
        names = _names_in(model, self.quantization_config)
        for name, entry in self.quantization_config.modules.items():
            if name in names:
                _put_undecoded(model, names[name], entry)
        _tie(model, {names[head]: names[source] for head, source in self.quantization_config.tied.items() if head in names})
        check_files(model, checkpoint_files or [], self.quantization_config.modules)

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> nn.Module:
        matrices = tiled_matrices(model)
        source, shared = _names_in(model, self.quantization_config).get(self.quantization_config.axes), None
        for matrix in matrices.values():
            if matrix.dense.is_meta:
                matrix.dense = torch.empty(0, dtype=matrix.dense.dtype)
        if source is not None:
            with named(source):
                shared = matrices[source].opened().axes
        for name, matrix in matrices.items():
            matrix.shared_axes = None if name == source else shared
        apply(model)
        self.belongs_to(model)
        return model

    def belongs_to(self, model: Any) -> None:
        """Let Transformers save what the model then is, and finish the folder (`finish_folder`)."""
        self._model = weakref.ref(model)
        model.save_pretrained = MethodType(save_pretrained, model)

    def update_weight_conversions(self, weight_conversions: Any, *_: Any) -> list[Any]:
        """None: in our folders tensors have the names of the model's modules, experts included."""
        return []

    def param_needs_quantization(self, model: nn.Module, param_name: str, **_: Any) -> bool:
        """Nothing is coded while loading: the bytes are stored as they are."""
        return False

    def is_serializable(self, *_: Any, **__: Any) -> bool:
        """The bytes can be saved again: asked before saving, when the configuration must say what the model now is."""
        model = self._model() if self._model is not None else None
        if model is not None:
            describe(model, {name: source for name, source in tied_heads(model).items()})
        return True


def convert(model: nn.Module, coded: dict[str, CodedMatrix], tied: dict[str, str]) -> nn.Module:
    """Replace layers of a model in memory by their coded form.

    Args:
        model: Changed in place.
        coded: Layer name -> coded matrix.
        tied: Layer name -> name of the embedding that it shares.
    """
    layers, _ = compressible_layers(model)
    parameters: dict[tuple[str, str, str], list[TiledMatrix]] = {}
    for name, place in layers.items():
        if name in coded:
            matrix = TiledMatrix.from_coded(coded[name], place.tensor.dtype)
            parameters.setdefault((place.path, place.parameter, place.kind), []).append(matrix)
    assert sum(map(len, parameters.values())) == len(coded), "a coded matrix has no place in the model"
    for (path, parameter, kind), matrices in parameters.items():
        substitute(model, path, parameter, kind, matrices)
    _tie(model, tied)
    describe(model, tied)
    return model


def convert_to_sizes(model: nn.Module, num_bytes: dict[str, int], tied: dict[str, str]) -> nn.Module:
    """Replace layers of a model on the meta device by coded ones of which only the sizes are known.

    Args:
        model: Changed in place.
        num_bytes: Layer name -> bytes of its coded matrix.
        tied: As for `convert`.
    """
    layers, _ = compressible_layers(model)
    parameters: dict[tuple[str, str, str], list[TiledMatrix]] = {}
    for name, place in layers.items():
        with torch.device("meta"):
            matrix = TiledMatrix((place.weight.shape[0], place.weight.shape[1]), num_bytes[name], place.tensor.dtype)
        matrix.loading = True
        parameters.setdefault((place.path, place.parameter, place.kind), []).append(matrix)
    for (path, parameter, kind), matrices in parameters.items():
        substitute(model, path, parameter, kind, matrices)
    _tie(model, tied)
    describe(model, tied)
    return model


def describe(model: Any, tied: dict[str, str]) -> None:
    """Write the coded layers into the model's configuration and give it its quantiser."""
    modules: dict[str, dict[str, Any]] = {}
    for name, kind, matrices in coded_parameters(model):
        num_bytes = [matrix.payload.numel() for matrix in matrices]
        shape = list(matrices[0].shape)
        modules[name] = (
            {"kind": kind, "shape": [len(matrices), *shape], "payload_bytes": num_bytes}
            if kind == "experts"
            else {"kind": kind, "shape": shape, "payload_bytes": num_bytes[0]}
        )
        if (structure := matrices[0].structure) is not None:
            modules[name]["structure"] = {"name": structure.name, "side": structure.side, "ratio": structure.ratio}
    shared = any(matrix.shared_axes is not None for matrix in tiled_matrices(model).values())
    if not modules:  # all have become dense (merged adapters)
        model.hf_quantizer, model.is_quantized = None, False
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        return
    table = [name for name, kind, _ in coded_parameters(model) if kind == "embedding"]
    config: Any = QuasitileConfig(modules, tied, table[0] if shared else "")  # pyright: ignore[reportCallIssue]
    model.config.quantization_config = config
    model.hf_quantizer = QuasitileQuantizer(config, pre_quantized=True)
    model.hf_quantizer.belongs_to(model)
    model._weight_conversions = []  # what Transformers renames and splits when it saves: nothing


def tied_heads(model: Any) -> dict[str, str]:
    """Name of each shared head -> name of the embedding it shares."""
    names = {module: name for name, module in model.named_modules()}
    return {name: names[module._shared[0]] for name, module in model.named_modules() if isinstance(module, TiledHead)}


def save_pretrained(model: Any, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
    """Transformers' `save_pretrained`, after which the folder is finished."""
    type(model).save_pretrained(model, save_directory, *args, **kwargs)
    if tiled_matrices(model) and (Path(save_directory) / "config.json").is_file():
        finish_folder(Path(save_directory))


def finish_folder(folder: Path, trust_index: bool = False) -> None:
    """Write what stops readers that do not know quasitile, and the checksums.

    Transformers only logs that it does not know a quantiser, and would give random weights. But it
    refuses weight files of a strange name, with that name in the message.

    Args:
        folder: With weights, configuration and tokenizer.
        trust_index: Take the checksums of weight files from the index, which has just been written.
    """
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", {**config, GUARD: SENTENCE})
    seal(folder, trust_index)


def _names_in(model: Any, config: Any) -> dict[str, str]:
    """Name in the folder -> name in the model, which may be the folder's without its head, or with one or another one.

    Raises:
        InputError: The model has no such layer.
    """
    prefix = f"{model.base_model_prefix}."
    modules = {name for name, _ in model.named_modules()}
    names = {}
    kinds = {name: entry["kind"] for name, entry in config.modules.items()} | dict.fromkeys(config.tied, "linear")
    inside = any(name.startswith(prefix) for name in kinds) and not any(name.startswith(prefix) for name in modules)
    inside |= type(model).__name__ not in (getattr(model.config, "architectures", None) or [type(model).__name__])
    for name, kind in kinds.items():
        for candidate in (name, name.removeprefix(prefix), prefix + name):
            if (candidate.rpartition(".")[0] if kind == "experts" else candidate) in modules:
                names[name] = candidate
                break
        else:
            if not inside or name.startswith(prefix):
                raise InputError(f"config.json names a coded layer {name} that the model does not have; copy the folder again")
    return names


def _put_undecoded(model: nn.Module, name: str, entry: dict[str, Any]) -> None:
    """Make room for the bytes of one parameter."""
    kind = entry["kind"]
    path, parameter = name.rpartition(".")[::2] if kind == "experts" else (name, "weight")
    old = getattr(model.get_submodule(path), parameter, None)
    shape = entry["shape"]
    if old is None or list(KINDS[kind].matrix(old).shape) != shape:
        raise InputError(f"config.json gives {name} the shape {shape}, which does not fit the model; copy the folder again")
    structure = structure_of(name, entry)
    sizes = entry["payload_bytes"] if kind == "experts" else [entry["payload_bytes"]]
    with torch.device("meta"):
        matrices = [TiledMatrix(tuple(shape[-2:]), num_bytes, old.dtype, structure) for num_bytes in sizes]
        for matrix in matrices:
            matrix.loading = True
        substitute(model, path, parameter, kind, matrices)


def _tie(model: Any, tied: dict[str, str]) -> None:
    """Let output heads use the embedding's matrix; Transformers' own tying has nothing left to do."""
    for name, source in tied.items():
        parent, _, leaf = name.rpartition(".")
        old = model.get_submodule(name)
        setattr(model.get_submodule(parent), leaf, TiledHead(model.get_submodule(source), old.bias))
        keys = getattr(model, "all_tied_weights_keys", None)
        if keys:
            keys.pop(f"{name}.weight", None)
        for module in model.modules():  # `tie_weights` may be called again at any time
            patterns = getattr(module, "_tied_weights_keys", None)
            if isinstance(patterns, dict):
                module._tied_weights_keys = {
                    target: other for target, other in patterns.items() if not re.search(f"{target}$", f"{name}.weight")
                }
