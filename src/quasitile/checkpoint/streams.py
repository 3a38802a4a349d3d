"""Weight files tensor by tensor: read without holding a file, written without holding a shard."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from quasitile.checkpoint.shards import INDEX, SHARD_BYTES, checksum, tensor_headers
from quasitile.errors import InputError
from quasitile.folders import write_json

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
COPY_BYTES = 1 << 22


class TensorReader:
    """The tensors of a model folder, or of one file, each read when it is asked for.

    Files are read and not mapped, so that what has been read is not counted against this process.

    Args:
        place: A model folder or a safetensors file.

    Raises:
        InputError: A file is missing or truncated.
    """

    def __init__(self, place: str | Path) -> None:
        place = Path(place)
        self.headers = tensor_headers(place)
        self.folder = place.parent if place.is_file() else place

    def __contains__(self, name: str) -> bool:
        return name in self.headers

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor."""
        return tuple(self.headers[name]["shape"])

    def read(self, name: str) -> Tensor:
        """A whole tensor, in the dtype it is stored in."""
        shape = self.shape(name)
        return self._read(name, 0, math.prod(shape)).view(shape)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of a tensor, stop excluded."""
        shape = self.shape(name)
        width = math.prod(shape[1:])
        return self._read(name, start * width, (stop - start) * width).view(-1, *shape[1:])

    def _read(self, name: str, first: int, count: int) -> Tensor:
        entry = self.headers[name]
        if entry["dtype"] not in DTYPES:
            raise InputError(f"{name} has the dtype {entry['dtype']}, which cannot be compressed; convert it to bf16 first")
        dtype = DTYPES[entry["dtype"]]
        out = torch.empty(count, dtype=dtype)
        if count:
            view = out.view(torch.uint8).numpy().data
            path = self.folder / entry["file"]
            with path.open("rb", buffering=0) as data:
                data.seek(entry["start"] + first * dtype.itemsize)
                done = 0
                while done < len(view):
                    got = data.readinto(view[done : done + (1 << 28)])
                    if not got:
                        raise InputError(f"{path} is truncated inside {name}; copy it again")
                    done += got
        return out


@dataclass(frozen=True)
class Stored:
    """A tensor on its way to a shard: in memory, or the bytes of a file.

    Attributes:
        name: In the shard.
        dtype: Of its values.
        shape: Its axes.
        source: The tensor, a file with exactly its bytes, or a function that gives it in pieces along its first axis.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    source: Tensor | Path | Callable[[], Iterable[Tensor]]

    @property
    def num_bytes(self) -> int:
        """Of its values."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_tensors(path: Path, tensors: Iterable[Stored]) -> None:
    """One safetensors file, written under another name and then moved into place.

    Tensors lie in falling size of their values, so that each is aligned.
    """
    ordered = sorted(tensors, key=lambda each: -each.dtype.itemsize)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for each in ordered:
        stop = start + each.num_bytes
        header[each.name] = {"dtype": DTYPE_NAMES[each.dtype], "shape": list(each.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for each in ordered:
            if isinstance(each.source, Tensor):
                assert (each.source.dtype, each.source.shape) == (each.dtype, each.shape), each.name
                out.write(each.source.detach().contiguous().flatten().view(torch.uint8).numpy().data)
                continue
            copied = 0
            if isinstance(each.source, Path):
                with each.source.open("rb") as data:
                    while part := data.read(COPY_BYTES):
                        copied += out.write(part)
            else:
                for piece in each.source():
                    assert piece.dtype == each.dtype, each.name
                    copied += out.write(piece.contiguous().flatten().view(torch.uint8).numpy().data)
            assert copied == each.num_bytes, each.name
        out.flush()
        os.fsync(out.fileno())
    os.replace(partial, path)


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Tensors in memory as one file, atomically."""
    write_tensors(path, [Stored(name, tensor.dtype, tuple(tensor.shape), tensor) for name, tensor in tensors.items()])


def write_streamed_shards(tensors: list[Stored], folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """What `write_shards` writes, from tensors that need not be in memory.

    Args:
        tensors: All of them.
        folder: Exists.
        shard_bytes: As for `write_shards`.
    """
    groups: list[list[Stored]] = [[]]
    size = 0
    for each in tensors:
        if groups[-1] and size + each.num_bytes > shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(each)
        size += each.num_bytes
    checksums, weight_map = {}, {}
    for number, group in enumerate(groups, 1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        write_tensors(folder / file, group)
        checksums[file] = checksum(folder / file)
        weight_map |= dict.fromkeys((each.name for each in group), file)
    total = sum(each.num_bytes for each in tensors)
    write_json(folder / INDEX, {"metadata": {"total_size": total, "sha256": checksums}, "weight_map": weight_map})
