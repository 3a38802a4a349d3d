"""Safetensors shards with an index that carries a checksum for each (docs/format.md)."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from quasitile.checkpoint.headers import file_headers
from quasitile.errors import InputError
from quasitile.folders import STAGE_FILES, read_json, write_json

INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"  # of PEFT, in a folder that is no model
REMAINDERS = "remainders.safetensors"
SHARD_BYTES = 5_000_000_000
WEIGHT_DTYPES = ("F64", "F32", "F16", "BF16")


def write_shards(tensors: dict[str, Tensor], folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Write tensors as `model-00001-of-0000n.safetensors` and the index with checksums.

    Args:
        tensors: By name; contiguous, not sharing memory.
        folder: Exists.
        shard_bytes: A shard is closed before it grows beyond this (one tensor may be larger).
    """
    groups: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        num_bytes = tensor.numel() * tensor.element_size()
        if groups[-1] and size + num_bytes > shard_bytes:
            groups.append({})
            size = 0
        groups[-1][name] = tensor.contiguous()
        size += num_bytes
    checksums, weight_map = {}, {}
    for number, group in enumerate(groups, 1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        _save(group, folder / file)
        checksums[file] = checksum(folder / file)
        weight_map |= dict.fromkeys(group, file)
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    write_json(folder / INDEX, {"metadata": {"total_size": total, "sha256": checksums}, "weight_map": weight_map})


def _save(tensors: dict[str, Tensor], file: Path) -> None:
    """Write one shard; a full disk is an `OSError`, as it is everywhere else."""
    try:
        save_file(tensors, file, metadata={"format": "pt"})
    except SafetensorError as error:
        if "os error 28" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file)) from error
        raise


def write_remainders(remainders: dict[str, Tensor], folder: Path) -> None:
    """Write what rounding took away, for later training; it is no part of the model and may be deleted."""
    _save(remainders, folder / REMAINDERS)


def read_remainders(folder: str | Path) -> dict[str, Tensor]:
    """What `write_remainders` wrote, or nothing.

    Raises:
        InputError: The file is damaged.
    """
    path = Path(folder) / REMAINDERS
    if not path.is_file():
        return {}
    try:
        return load_file(path)
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}); delete it, training then starts without it") from error


def checksum(file: Path) -> str:
    """The file's SHA-256, as hexadecimal digits."""
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def seal(folder: str | Path, trust_index: bool = False) -> None:
    """Write checksums of all that belongs to a finished model folder: weights, configuration, tokenizer, template.

    Args:
        folder: With one weight file, which gets an index, or with several and their index.
        trust_index: Keep the checksums of weight files that the index has.
    """
    folder = Path(folder)
    index = read_index(folder) if (folder / INDEX).is_file() else {"metadata": {}, "weight_map": {}}
    single = folder / "model.safetensors"
    if single.is_file():
        index["weight_map"] = dict.fromkeys(file_headers(single), single.name)
    known = (index["metadata"].get("sha256") or {}) if trust_index else {}
    weights = {file.name for file in weight_files(folder)}
    others = {file.name for file in folder.iterdir() if file.is_file() and belongs(file.name)}
    sums = {name: known[name] if name in known else checksum(folder / name) for name in sorted(weights)}
    index["metadata"]["sha256"] = sums | {name: checksum(folder / name) for name in sorted(others)}
    write_json(folder / INDEX, index)


def belongs(name: str) -> bool:
    """Whether a file beside the weights is part of a model, and not of how it was made."""
    kinds = (".json", ".jinja", ".model", ".txt", ".tiktoken")
    return name.endswith(kinds) and name not in (INDEX, *STAGE_FILES) and not name.startswith(".")


def read_index(folder: str | Path) -> dict[str, Any]:
    """The index of a folder.

    Raises:
        InputError: It is no index, or names something that is no file of the folder.
    """
    path = Path(folder) / INDEX
    index = read_json(path)
    index = index if isinstance(index, dict) else {}
    metadata, weight_map = index.setdefault("metadata", {}), index.get("weight_map")
    if not isinstance(metadata, dict) or not isinstance(weight_map, dict):
        raise InputError(f"{path} is no index of tensors; copy the whole folder again")
    checksums = metadata.get("sha256")
    if checksums is not None and not isinstance(checksums, dict):
        raise InputError(f"{path} has no list of checksums; copy the whole folder again")
    for name in {*map(str, weight_map.values()), *(checksums or {})}:
        if Path(name).name != name or name in ("", ".", "..") or len(name) > 255:
            raise InputError(f"{path} names {name[:80]!r}, which is no file of the folder; copy the whole folder again")
    return index


def verify_checksums(files: Iterable[str | Path]) -> None:
    """Compare weight files, and what else their folder's index has checksums of, with the index, where it has any.

    Raises:
        InputError: A file differs, a weight file is missing, or the index names no checksum for one.
    """
    weights = list(map(Path, files))
    for folder in {file.parent for file in weights}:
        if not (folder / INDEX).is_file():
            continue
        expected = read_index(folder)["metadata"].get("sha256")
        if expected is None:
            continue
        for name in (file.name for file in weights if file.parent == folder):
            if name not in expected:
                raise InputError(f"{folder / INDEX} has no checksum for {name}; copy the whole folder again")
            if not (folder / name).is_file():
                raise InputError(f"{folder / name} is missing; copy the whole folder again")
        for name, value in expected.items():
            if (folder / name).is_file() and checksum(folder / name) != value:
                advice = "copy it again" if name.endswith(".safetensors") else "copy it again, or take it out of the index"
                raise InputError(f"{folder / name} does not match its checksum in {INDEX}; it is damaged, {advice}")


def weight_files(folder: str | Path) -> list[Path]:
    """The safetensors files of a model folder.

    Raises:
        InputError: The folder is missing or holds no safetensors weights.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give a model folder in the Hugging Face layout")
    single = folder / "model.safetensors"
    files = [single] if single.is_file() else []
    if not files and (folder / INDEX).is_file():
        files = [folder / name for name in sorted(set(map(str, read_index(folder)["weight_map"].values())))]
    if not files and (folder / ADAPTER).is_file():
        raise InputError(f"{folder} is an adapter of PEFT and no model; give the model that it belongs to")
    if not files:
        raise InputError(f"{folder} has no safetensors weights; convert the model to safetensors first")
    for file in files:
        if not file.is_file():
            raise InputError(f"{file} is missing; copy the whole folder again")
    return files


def header_bytes(shapes: Mapping[str, Sequence[int]], coded: Iterable[str], num_bytes: int) -> int:
    """Bytes that the headers of a model's weight files take, or a few more.

    Args:
        shapes: Of the tensors that are stored as they are.
        coded: Names of the matrices that are stored as payloads.
        num_bytes: Of all weight files, at most.
    """
    entries: dict[str, Any] = {name: {"dtype": "BF16", "shape": list(shape)} for name, shape in shapes.items()}
    entries |= {f"{name}.matrices.payload": {"dtype": "U8", "shape": [num_bytes]} for name in coded}
    entries = {name: {**entry, "data_offsets": [num_bytes, num_bytes]} for name, entry in entries.items()}
    num_files = 1 + num_bytes // SHARD_BYTES
    return len(json.dumps(entries, separators=(",", ":"))) + 64 * num_files  # their lengths, formats and fillings


def stored_bytes(folder: str | Path) -> int:
    """Bytes of all weight files of a model folder, headers included."""
    return sum(file.stat().st_size for file in weight_files(folder))


def check_tensors(folder: str | Path) -> None:
    """Look at the headers of an original model: whether every tensor is there, whole, and of a dtype that can be compressed.

    Raises:
        InputError: A file is missing or cut off, the index names a tensor that its file does not
            hold, or weights are stored as whole, 8-bit or complex numbers.
    """
    folder, tensors = Path(folder), tensor_headers(folder)
    if not (folder / "model.safetensors").is_file():
        for name, file in read_index(folder)["weight_map"].items():
            if name not in tensors or tensors[name]["file"] != file:
                where = f"{folder / file} does not hold {name}, which {INDEX} places there"
                raise InputError(f"{where}; copy the whole folder again")
    for name, entry in tensors.items():
        dtype = entry["dtype"]
        odd = dtype.startswith(("F8", "F4", "F6", "C"))
        if odd or (dtype not in WEIGHT_DTYPES and name.endswith("weight") and len(entry["shape"]) > 1):
            raise InputError(
                f"{folder / entry['file']} stores {name} as {dtype}, which cannot be compressed; "
                "make a copy of the model in bfloat16 first"
            )


def tensor_headers(folder: str | Path) -> dict[str, dict[str, Any]]:
    """Name -> `{"dtype", "shape", "num_bytes", "file", "start"}` of every tensor, from the files' headers alone.

    Args:
        folder: A model folder, or one safetensors file.

    Raises:
        InputError: See `file_headers`, or a tensor is in two files.
    """
    tensors: dict[str, dict[str, Any]] = {}
    for file in [Path(folder)] if Path(folder).is_file() else weight_files(folder):
        for name, entry in file_headers(file).items():
            if name in tensors:
                raise InputError(f"{file} holds {name}, which {tensors[name]['file']} holds too; copy the whole folder again")
            tensors[name] = entry
    return tensors
