"""Headers of safetensors files, checked before anything in them is believed."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from quasitile.errors import InputError

MAX_HEADER_BYTES = 100_000_000
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F4": 4,
    "F6_E2M3": 6, "F6_E3M2": 6, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "C64": 64,
    "I64": 64, "U64": 64, "F64": 64,
}  # fmt: skip


def file_headers(file: Path) -> dict[str, dict[str, Any]]:
    """Name -> `{"dtype", "shape", "num_bytes", "file", "start"}` of every tensor in a file, in the order of their bytes.

    Raises:
        InputError: The file is shorter or longer than its header says, sizes contradict shapes, or
            the header is not readable.
    """
    size = file.stat().st_size
    with file.open("rb") as data:
        head = data.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        if length > size - 8:
            raise InputError(f"{file} is truncated; copy it again")
        if length > MAX_HEADER_BYTES:
            raise InputError(f"{file} has a header of {length} bytes, the limit is {MAX_HEADER_BYTES}; copy it again")
        raw = data.read(length)
    try:
        header = json.loads(raw, object_pairs_hook=_without_duplicates)
        metadata = header.pop("__metadata__", {})
        if not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError("metadata that are no text")
        entries = {str(name): _entry(entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{file} has no valid safetensors header; copy it again") from error
    tensors: dict[str, dict[str, Any]] = {}
    place, available = 0, size - 8 - length
    for name, (dtype, shape, start, stop) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if stop > available:
            raise InputError(f"{file} is truncated inside {name}; copy it again")
        if start != place or dtype not in BITS or 8 * (stop - start) != math.prod(shape) * BITS[dtype]:
            raise InputError(f"{file}: the size of {name} contradicts its header ({dtype} {shape}); copy it again")
        tensors[name] = {
            "dtype": dtype, "shape": shape, "num_bytes": stop - start, "file": file.name, "start": 8 + length + start
        }  # fmt: skip
        place = stop
    if place != available:
        raise InputError(f"{file} holds {available - place} bytes that belong to no tensor; copy it again")
    return tensors


def _entry(entry: dict[str, Any]) -> tuple[str, list[int], int, int]:
    """dtype, shape, start and stop.

    Raises:
        ValueError: They are not what they should be.
    """
    dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
    numbers = [*shape, start, stop]
    if not isinstance(dtype, str) or not isinstance(shape, list) or any(type(n) is not int or n < 0 for n in numbers):
        raise ValueError("no dtype, shape and offsets")
    if start > stop:
        raise ValueError("offsets in the wrong order")
    return dtype, shape, start, stop


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is given twice")
    return found
