"""Transformers' quantiser for quasitile folders: `import quasitile` is all that loading needs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from quasitile.checkpoint import verify_checksums
from quasitile.codec.block import CodedMatrix
from quasitile.codec.structure import STRUCTURES, Structure
from quasitile.errors import InputError
from quasitile.runtime.layers import KINDS, compressible_layers
from quasitile.runtime.linear import TiledHead, TiledMatrix, tiled_matrices
from quasitile.runtime.substitute import coded_parameters, substitute

METHOD = "quasitile"
FORMAT_VERSION = 1


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
        self.quant_method = METHOD
        self.modules = modules or {}
        self.tied = tied or {}
        self.axes = axes
        self.format_version = format_version
        if format_version > FORMAT_VERSION:
            raise InputError(f"the folder has format {format_version}, this version reads {FORMAT_VERSION}; update quasitile")


@register_quantizer(METHOD)
class QuasitileQuantizer(HfQuantizer):
    """Puts coded layers where the configuration names them and decodes them after loading."""

    requires_calibration = True
    is_trainable = True  # pyright: ignore[reportAssignmentType]
    is_qat_trainable = True  # pyright: ignore[reportAssignmentType]  # straight through the rounding, also by Trainer

    def _process_model_before_weight_loading(self, model: nn.Module, checkpoint_files: Any = None, **_: Any) -> None:
        verify_checksums(checkpoint_files or [])
        names = _names_in(model, self.quantization_config)
        for name, entry in self.quantization_config.modules.items():
            if name in names:
                _put_undecoded(model, names[name], entry)
        _tie(model, {names[head]: names[source] for head, source in self.quantization_config.tied.items() if head in names})

    def _process_model_after_weight_loading(self, model: nn.Module, **_: Any) -> nn.Module:
        matrices = tiled_matrices(model)
        source, shared = _names_in(model, self.quantization_config).get(self.quantization_config.axes), None
        for name, matrix in sorted(matrices.items(), key=lambda item: item[0] != source):
            if matrix.dense.is_meta:
                matrix.dense = torch.empty(0, dtype=matrix.dense.dtype)
            matrix.shared_axes = shared
            try:
                matrix.decode()
                shared = matrix.coded().axes if name == source else shared
            except ValueError as error:
                raise InputError(f"the stored matrix of {name} is damaged: {error}; copy the folder again") from error
        return model

    def update_weight_conversions(self, weight_conversions: Any, *_: Any) -> list[Any]:
        """None: in our folders tensors have the names of the model's modules, experts included."""
        return []

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
    table = [name for name, kind, _ in coded_parameters(model) if kind == "embedding"]
    config: Any = QuasitileConfig(modules, tied, table[0] if shared else "")  # pyright: ignore[reportCallIssue]
    model.config.quantization_config = config
    model.hf_quantizer = QuasitileQuantizer(config, pre_quantized=True)
    model._weight_conversions = []  # what Transformers renames and splits when it saves: nothing


def _names_in(model: Any, config: Any) -> dict[str, str]:
    """Name in the folder -> name in the model, which may be the folder's without its head, or the folder's with one.

    Raises:
        InputError: The model has no such layer.
    """
    prefix = f"{model.base_model_prefix}."
    modules = {name for name, _ in model.named_modules()}
    names = {}
    kinds = {name: entry["kind"] for name, entry in config.modules.items()} | dict.fromkeys(config.tied, "linear")
    inside = any(name.startswith(prefix) for name in kinds) and not any(name.startswith(prefix) for name in modules)
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
    if kind not in KINDS:
        raise InputError(f"config.json calls {name} a {kind!r}, which this version does not know; update quasitile")
    path, parameter = name.rpartition(".")[::2] if kind == "experts" else (name, "weight")
    old = getattr(model.get_submodule(path), parameter, None)
    shape = entry["shape"]
    if old is None or list(KINDS[kind].matrix(old).shape) != shape:
        raise InputError(f"config.json gives {name} the shape {shape}, which does not fit the model; copy the folder again")
    structure = _structure(name, entry)
    sizes = entry["payload_bytes"] if kind == "experts" else [entry["payload_bytes"]]
    with torch.device("meta"):
        matrices = [TiledMatrix(tuple(shape[-2:]), num_bytes, old.dtype, structure) for num_bytes in sizes]
        for matrix in matrices:
            matrix.loading = True
        substitute(model, path, parameter, kind, matrices)


def _structure(name: str, entry: dict[str, Any]) -> Structure | None:
    """How the weight of an entry is expanded, or nothing.

    Raises:
        InputError: This version does not know the structure, or its numbers are impossible.
    """
    given = entry.get("structure")
    if given is None:
        return None
    if given.get("name") not in STRUCTURES:
        raise InputError(f"config.json gives {name} the structure {given.get('name')!r}, which is unknown; update quasitile")
    side, ratio = given.get("side"), given.get("ratio")
    limits = max(entry["shape"][-2:]), entry["shape"][-2] * entry["shape"][-1]
    if not all(isinstance(n, int) and 1 <= n <= limit for n, limit in zip((side, ratio), limits, strict=True)):
        raise InputError(f"config.json gives {name} a structure of side {side} and ratio {ratio}; copy the folder again")
    return Structure(given["name"], (entry["shape"][-2], entry["shape"][-1]), side, ratio)


def _tie(model: Any, tied: dict[str, str]) -> None:
    """Let output heads use the embedding's matrix; Transformers' own tying has nothing left to do."""
    for name, source in tied.items():
        parent, _, leaf = name.rpartition(".")
        old = model.get_submodule(name)
        setattr(model.get_submodule(parent), leaf, TiledHead(model.get_submodule(source), old.bias))
        keys = getattr(model, "all_tied_weights_keys", None)
        if keys:
            keys.pop(f"{name}.weight", None)
