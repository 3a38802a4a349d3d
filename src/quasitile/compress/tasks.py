"""What is done with one matrix on disk: estimate its bytes, or code it at a step. Each can run in another process.

A weight is read some rows at a time where the file holds it as it is used; only what Transformers
converts on loading (experts) and transposed matrices are read whole.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quasitile.checkpoint.shards import checksum
from quasitile.checkpoint.streams import TensorReader
from quasitile.codec.block import Tile, Tiling
from quasitile.codec.coding import Coding
from quasitile.codec.factors import scale_values
from quasitile.codec.matrix import decode_matrix, encode_matrix
from quasitile.codec.packing import pack
from quasitile.codec.plain import InputSide, code_rows, is_plain, part_of, row_scale_codes, unit_of
from quasitile.codec.plain_packing import CodeStore, grouped_bands, pack_plain, sampled_bytes
from quasitile.codec.tiling import TILINGS
from quasitile.compress.allocate import Coded, Job, sampled_spreads, tile_spectra
from quasitile.compress.stored import StoredMoments
from quasitile.errors import InputError
from quasitile.runtime.layers import KINDS
from quasitile.runtime.skeleton import Skeleton

NUMBERS_AT_A_TIME, ROWS_AT_A_TIME = 1 << 24, 1024  # of a weight
SAMPLED_ROWS, SAMPLED_SHARE = 128, 32  # at least so many rows of a matrix, and one in so many
SAMPLED_NUMBERS = 1 << 22  # at most, of a very tall one


@dataclass(frozen=True)
class MatrixTask:
    """A matrix to code.

    Attributes:
        folder: Of the model.
        identity: Of the folder's files, so that a change is noticed.
        name: Of the matrix.
        shape: (M, N).
        key: The tensor in the files that is the matrix, or nothing where it has to be converted.
        stored: Its moments.
        version: Of the moments' files.
        tiling: Name, shorter side and seed.
        coding: How.
        weight_file: With other weights than the model's, as `weight`.
    """

    folder: str
    identity: str
    name: str
    shape: tuple[int, int]
    key: str | None
    stored: StoredMoments
    version: str
    tiling: tuple[str, int, int]
    coding: Coding
    weight_file: Path | None = None

    def tiles(self) -> Tiling:
        """Its tiling."""
        name, short, seed = self.tiling
        return TILINGS[name](*self.shape, short, seed)

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows of the weight.

        Raises:
            InputError: They hold NaN or infinite values.
        """
        if self.weight_file is not None:
            return TensorReader(self.weight_file).rows("weight", start, stop)
        if self.key is None:
            weight = _converted(self.folder, self.identity, self.name)[start:stop]
        else:
            weight = _reader(self.folder, self.identity).rows(self.key, start, stop).float()
        if not torch.isfinite(weight).all():
            raise InputError(f"{self.name} holds NaN or infinite values; the checkpoint is damaged")
        return weight


@lru_cache(maxsize=2)
def _reader(folder: str, _identity: str) -> TensorReader:
    return TensorReader(folder)


@lru_cache(maxsize=1)
def _skeleton(folder: str, _identity: str) -> Skeleton:
    return Skeleton(folder)


@lru_cache(maxsize=1)
def _parameter(folder: str, identity: str, tensor_name: str) -> Tensor:
    skeleton = _skeleton(folder, identity)
    converted = skeleton.converted
    near = [name for name in skeleton.sources if name == tensor_name]
    if not near:  # it comes out of a tensor of several neighbours
        parent = tensor_name.rpartition(".")[0].rpartition(".")[0]
        near = [name for name in converted if name.startswith(f"{parent}.")]
    skeleton.load(near)
    path, _, leaf = tensor_name.rpartition(".")
    tensor = getattr(skeleton.model.get_submodule(path), leaf).detach()
    skeleton.drop()
    return tensor


def _converted(folder: str, identity: str, name: str) -> Tensor:
    """A matrix (M, N) that is not in the files as it is used."""
    skeleton = _skeleton(folder, identity)
    place = skeleton.layers[name]
    matrix = KINDS[place.kind].matrix(_parameter(folder, identity, skeleton.tensor_name(name)))
    return matrix if place.index is None else matrix[place.index]


@lru_cache(maxsize=1)
def _side(stored: StoredMoments, _version: str, coding: Coding) -> InputSide:
    return stored.side(coding)


def side_of(task: MatrixTask) -> InputSide:
    """Of a matrix; matrices with the same inputs that come one after another share it."""
    leader = replace(task.stored, name=task.stored.leader, outputs_file=Path())
    return _side(leader, task.version, task.coding)


def estimate(task: MatrixTask) -> Any:
    """From what the bytes at any step can be told roughly: see `allocate.first_step`."""
    if is_plain(task.coding):
        rows, weight = sampled_rows(task)
        columns = scale_values(side_of(task).column_codes)
        scale = scale_values(row_scale_codes(task.stored.outputs(), task.coding))
        power = (weight * scale[rows][:, None] * columns).double().square()
        spread = torch.outer(power.mean(1), power.mean(0)) / power.mean().clamp_min(1e-30)
        count = min(4096, spread.numel())
        picked = spread.flatten()[torch.linspace(0, spread.numel() - 1, count, dtype=torch.float64).long()]
        return picked.sqrt().float(), task.shape[0] * task.shape[1] / count
    job = Job(task.name, task.rows(0, task.shape[0]), task.tiles(), task.stored.moments())
    return tile_spectra(job, task.coding) if task.coding.residual is None else sampled_spreads(job, task.coding)


def sampled_rows(task: MatrixTask) -> tuple[Tensor, Tensor]:
    """Numbers of some rows, evenly spread, and the rows (R, N)."""
    num_rows = task.shape[0]
    count = min(num_rows, max(SAMPLED_ROWS, min(num_rows // SAMPLED_SHARE, SAMPLED_NUMBERS // task.shape[1])))
    rows = ((torch.arange(count, dtype=torch.float64) + 0.5) * num_rows / count).long()
    return rows, torch.cat([task.rows(int(row), int(row) + 1) for row in rows])


def sample(task: MatrixTask, steps: tuple[float, ...]) -> list[tuple[float, float]]:
    """About the bytes and the stored numbers of a matrix at each of some steps, from coding some of its rows.

    All steps at once, as so many more rows: reading the factor of the inputs takes longer than the rows do.
    """
    rows, weight = sampled_rows(task)
    side, row_codes = side_of(task), row_scale_codes(task.stored.outputs(), task.coding)
    tiling, first_step, count = task.tiles(), steps[0], len(rows)
    tiles = []
    for tile in tiling.tiles:
        first, last = torch.searchsorted(rows, torch.tensor([tile.row_start, tile.row_stop])).tolist()
        if first < last:
            tiles.append(Tile(first, last, tile.column_start, tile.column_stop))
    copies = [
        replace(t, row_start=t.row_start + at, row_stop=t.row_stop + at)
        for at in range(0, count * len(steps), count)
        for t in tiles
    ]
    of_rows = Tiling((count * len(steps), task.shape[1]), tuple(copies))
    weights = torch.cat([weight.float() * (first_step / step) for step in steps])  # what is rounded is a weight in steps
    coded = code_rows(weights, scale_values(row_codes)[rows].repeat(len(steps)), side, of_rows, first_step, task.coding)
    scales = row_codes, side.column_codes
    found = []
    for points in coded.points.split(count):
        num_bytes = sampled_bytes(points, tiles, task.coding.trellis, task.shape, len(tiling.tiles), scales)
        found.append((num_bytes, float(points.count_nonzero()) * task.shape[0] / count + sum(task.shape)))
    return found


def code(task: MatrixTask, step: float, file: Path) -> dict[str, Any]:
    """Code a matrix and write its payload; the file appears whole.

    Returns:
        Its `bytes`, stored `numbers`, `damage` in nats, `squared_error`, `power` of the weight, `kept` share of
        the codes, ranks and `sha256`.
    """
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    facts = code_plain(task, step, partial) if is_plain(task.coding) else code_whole(task, step, partial)
    facts |= {"bytes": partial.stat().st_size, "sha256": checksum(partial)}
    os.replace(partial, file)
    return facts


def code_plain(task: MatrixTask, step: float, file: Path) -> dict[str, Any]:
    """Some rows at a time, see `quasitile.codec.plain`."""
    tiling, side = task.tiles(), side_of(task)
    row_codes = row_scale_codes(task.stored.outputs(), task.coding)
    scales = scale_values(row_codes)
    damage = squared_error = power = 0.0
    with CodeStore(task.shape, task.coding.trellis, file.parent) as store, file.open("wb") as out:
        for rows, tiles in grouped_bands(tiling, min(ROWS_AT_A_TIME, NUMBERS_AT_A_TIME // task.shape[1])):
            weight, part = task.rows(rows.start, rows.stop), part_of(tiles, rows, slice(0, task.shape[1]))
            coded = code_rows(weight, scales[rows], side, part, step, task.coding)
            store.append(coded.points, part.tiles)
            damage, squared_error = damage + coded.damage, squared_error + coded.squared_error
            power += float(weight.square().sum(dtype=torch.float64))
        unit = unit_of(step, task.coding)
        pack_plain(store, tiling, row_codes, side.column_codes, task.coding.transform, unit, out)
        out.flush()
        os.fsync(out.fileno())
        kept = store.num_kept
    return {
        "numbers": kept + sum(task.shape), "damage": damage, "squared_error": squared_error, "power": power,
        "kept": kept / (task.shape[0] * task.shape[1]), "mean_rank": 0.0, "max_rank": 0, "num_tiles": len(tiling.tiles),
    }  # fmt: skip


def code_whole(task: MatrixTask, step: float, file: Path) -> dict[str, Any]:
    """In memory, whatever the coding."""
    weight, moments = task.rows(0, task.shape[0]), task.stored.moments()
    matrix, damage = encode_matrix(weight, task.tiles(), moments.inputs, moments.outputs, step, task.coding)
    payload = pack(matrix)
    with file.open("wb") as out:
        out.write(payload.numpy().data)
        out.flush()
        os.fsync(out.fileno())
    ranks = [block.rank for block in matrix.blocks]
    codes = [block.codes() for block in matrix.blocks]
    num_codes = sum(each.numel() for each in codes)
    return {
        "numbers": Coded(matrix, payload, damage).num_numbers, "damage": damage,
        "squared_error": float((weight - decode_matrix(matrix)).square().sum()), "power": float(weight.square().sum()),
        "kept": sum(int(each.count_nonzero()) for each in codes) / max(num_codes, 1),
        "mean_rank": sum(ranks) / len(ranks), "max_rank": max(ranks), "num_tiles": len(ranks),
    }  # fmt: skip
