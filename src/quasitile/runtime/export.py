"""A stored model as an ordinary dense checkpoint, written tensor by tensor."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from quasitile.checkpoint import stored_bytes, verify_checksums
from quasitile.checkpoint.shards import SHARD_BYTES, belongs, weight_files
from quasitile.checkpoint.streams import Stored, TensorReader, write_streamed_shards
from quasitile.codec.axes import Axes
from quasitile.codec.stored import StoredMatrix
from quasitile.errors import InputError
from quasitile.folders import stage_folder
from quasitile.runtime.declared import check_depth, structure_of
from quasitile.runtime.decode import chunks, decode_weight, finite_rows, in_threads, named
from quasitile.runtime.layers import KINDS
from quasitile.runtime.load import check_local, is_compressed_config, load_config, meta_model
from quasitile.runtime.plugin import GUARD, QuasitileConfig
from quasitile.settings import Settings

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
SHORT = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def dtype_of(name: str) -> torch.dtype:
    """The dtype of a name, short (`bf16`) or long (`bfloat16`).

    Raises:
        InputError: There is none.
    """
    name = SHORT.get(name, name)
    if name not in DTYPES:
        raise InputError(f"dtype={name!r} is not one of {', '.join(SHORT)}")
    return DTYPES[name]


class ExportSettings(Settings):
    """How a dense checkpoint is written.

    Attributes:
        dtype: Of its weights.
        shard_bytes: A shard is closed before it grows beyond this.
    """

    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    shard_bytes: int = SHARD_BYTES


def export(model: str | Path, out: str | Path, settings: ExportSettings | None = None) -> dict[str, Any]:
    """Write a quasitile folder as a dense checkpoint that Transformers and others load without quasitile.

    Tensors have the names of the original checkpoint's format. At most one parameter is held, of
    plain layers at most some rows of one.

    Args:
        model: A folder that quasitile wrote, or the hub name of one.
        out: The folder to make.
        settings: See `ExportSettings`.

    Raises:
        InputError: It is no such folder, it is damaged, or a weight is too large for the dtype.
    """
    settings = settings or ExportSettings()
    check_local(model)
    config = load_config(model)
    if not is_compressed_config(config):
        raise InputError(f"{model} is no folder that quasitile wrote; an ordinary checkpoint needs no export")
    declared: Any = QuasitileConfig(**config.quantization_config)
    check_depth(config)
    folder = Path(model) if Path(model).is_dir() else Path(snapshot_download(str(model)))
    verify_checksums(weight_files(folder))
    del config.quantization_config
    if hasattr(config, GUARD):
        delattr(config, GUARD)
    with stage_folder(out, "export", settings, model=model) as stage:
        dtype = DTYPES[settings.dtype]
        tensors = list(dense_tensors(folder, meta_model(config), declared, dtype))
        write_streamed_shards(tensors, stage.path, settings.shard_bytes)
        config.dtype = dtype
        config.save_pretrained(stage.path)
        for file in folder.iterdir():
            if belongs(file.name) and file.name != "config.json":
                shutil.copy(file, stage.path)
        stage.summary = {
            "dtype": settings.dtype,
            "num_tensors": len(tensors),
            "stored_bytes": stored_bytes(folder),
            "exported_bytes": stored_bytes(stage.path),
        }
        return stage.summary


def dense_tensors(folder: Path, model: Any, declared: Any, dtype: torch.dtype) -> Iterator[Stored]:
    """Every tensor of the dense checkpoint, to be computed when it is written.

    Args:
        folder: The stored model.
        model: The same without weights and without coded layers.
        declared: What the folder's configuration says of the coded layers.
        dtype: Of floating-point numbers, where those that are stored as they are do not need float32.

    Raises:
        InputError: A tensor is missing.
    """
    reader = TensorReader(folder)
    shared = cache(partial(_shared_axes, reader, declared))
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    for name, empty in model.state_dict().items():
        layer = name if name in declared.modules else name.removesuffix(".weight")
        if name in tied or layer in declared.tied:
            continue
        if layer in declared.modules and (name == layer or name.endswith(".weight")):
            entry = declared.modules[layer]
            yield from _coded(reader, name, layer, entry, empty, model, dtype, declared.axes, shared)
        elif name in reader:
            tensor = reader.read(name)
            if tensor.is_floating_point():
                exact = torch.equal(tensor.to(dtype).to(tensor.dtype), tensor)
                tensor = tensor.to(dtype) if exact or tensor.dtype != torch.float32 else tensor
            for original, value in _original_names(model, {name: tensor}).items():
                yield Stored(original, value.dtype, tuple(value.shape), value.contiguous())
        else:
            raise InputError(f"{folder} lacks {name}; copy it again")


def _shared_axes(reader: TensorReader, declared: Any) -> Axes | None:
    """The axes that one layer stores for others, if any does."""
    if not declared.axes:
        return None
    with named(declared.axes):
        return StoredMatrix(reader.read(f"{declared.axes}.matrix.payload")).axes


def _coded(
    reader: TensorReader,
    name: str,
    layer: str,
    entry: dict[str, Any],
    empty: Tensor,
    model: Any,
    dtype: torch.dtype,
    source: str,
    shared: Callable[[], Axes | None],
) -> Iterator[Stored]:
    """The tensors of the checkpoint that one coded parameter becomes."""
    kind, shape = entry["kind"], tuple(entry["shape"])
    if tuple(KINDS[kind].matrix(empty).shape) != shape:
        raise InputError(
            f"config.json gives {layer} the shape {list(shape)}, which does not fit the model; copy the folder again"
        )
    path, parameter = layer.rpartition(".")[::2] if kind == "experts" else (layer, "")
    keys = (
        [f"{path}.matrices.{parameter}.{number}.payload" for number in range(shape[0])]
        if kind == "experts"
        else [f"{layer}.matrix.payload"]
    )
    for key in keys:
        if key not in reader:
            raise InputError(f"{reader.folder} lacks {key}; copy it again")
    structure = structure_of(layer, entry)
    side = (shape[-2], shape[-1]) if structure is None else structure.stored_shape

    def opened(key: str) -> StoredMatrix:
        with named(layer):
            return StoredMatrix(reader.read(key), side, None if layer == source else shared())

    def rows() -> Iterator[Tensor]:
        stored = opened(keys[0])
        with named(layer):
            for part in in_threads(lambda chunk: finite_rows(stored, chunk), chunks(stored)):
                yield _cast(part, dtype, layer)

    @lru_cache(maxsize=1)
    def whole() -> dict[str, Tensor]:
        with named(layer):
            matrices = [_cast(decode_weight(opened(key), structure, torch.float32), dtype, layer) for key in keys]
        matrix = torch.stack(matrices) if kind == "experts" else matrices[0]
        return _original_names(model, {name: KINDS[kind].parameter(matrix, empty.shape).contiguous()})

    outputs = _original_names(model, {name: empty.to(dtype)})
    if structure is None and kind in ("linear", "embedding") and len(outputs) == 1:
        yield Stored(next(iter(outputs)), dtype, shape, rows)
        return
    for original, value in outputs.items():
        yield Stored(original, dtype, tuple(value.shape), partial(_one, whole, original))


def _one(whole: Callable[[], dict[str, Tensor]], name: str) -> Iterable[Tensor]:
    return [whole()[name]]


def _cast(weight: Tensor, dtype: torch.dtype, layer: str) -> Tensor:
    """In the dtype of the checkpoint.

    Raises:
        InputError: A weight is too large for it.
    """
    cast = weight.to(dtype)
    if dtype == torch.float16 and not bool(torch.isfinite(cast).all()):
        raise InputError(f"{layer} has weights beyond the range of float16; export to bfloat16")
    return cast


def _original_names(model: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A parameter under the names, and in the pieces, of the original checkpoint's format."""
    return revert_weight_conversion(model, tensors)
