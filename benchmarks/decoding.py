"""Nanoseconds of decoding, stage by stage, beside the plain decoders: CPU time of one thread, least of several runs.

OMP_NUM_THREADS=1 python benchmarks/decoding.py
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

import runtime as shapes
from quasitile.codec import entropy
from quasitile.codec.packing import pack
from quasitile.codec.stored import StoredMatrix
from quasitile.runtime.decode import chunks, decode_weight


def nanoseconds(function: Callable[[], object], count: int, repeats: int) -> float:
    """A number of `count`."""
    function()
    times = []
    for _ in range(repeats):
        started = time.process_time()
        function()
        times.append(time.process_time() - started)
    return min(times) * 1e9 / count


def one_by_one(stored: StoredMatrix) -> None:
    """The residual by the plain decoder, tile after tile."""
    statistics, words = stored._statistics, stored._residual_words
    assert statistics is not None
    for index, tile in enumerate(stored.tiling.tiles):
        stream = np.frombuffer(stored._reader.data[words[index] : words[index + 1]], "<u4").astype(np.uint32)
        cut = int(stored._lengths[index])
        levels = statistics.levels(tile.rows, tile.columns)
        entropy.decode_tile(stream[:cut], stream[cut:].view(np.int32), levels, statistics.shape, statistics.num_states)


def by_library(stored: StoredMatrix) -> None:
    """The factors by constriction."""
    sides = np.array([tile.shape for tile in stored.tiling.tiles], np.int64)
    words = np.frombuffer(stored._reader.data[stored._factor_words[0] : stored._factor_words[-1]], "<u4").astype(np.uint32)
    stored._by_library(words, np.diff(stored._factor_words) // 4, sides, stored.ranks, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--columns", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    shape = given.rows, given.columns
    count = given.rows * given.columns
    stored = StoredMatrix(pack(shapes.residual_matrix(shape, 0)))
    parts = chunks(stored)
    rows = {
        "residual, one tile after another (reference), a weight": (lambda: one_by_one(stored), count),
        "residual, eight tiles in turns, a weight": (lambda: [stored.points(*part) for part in parts], count),
        "residual to bf16 weights, a weight": (lambda: decode_weight(stored, None, torch.bfloat16), count),
    }
    factors = StoredMatrix(pack(shapes.factor_matrix(shape, 0)))
    numbers = int((np.array([sum(tile.shape) for tile in factors.tiling.tiles]) * factors.ranks).sum())
    bands = chunks(factors)
    rows |= {
        "factors by the library (reference), a number": (lambda: by_library(factors), numbers),
        "factors, eight tiles in turns, a number": (lambda: [factors.blocks(*band) for band in bands], numbers),
        "factors to bf16 weights, a weight": (lambda: decode_weight(factors, None, torch.bfloat16), count),
    }
    print("| stage | ns |\n| --- | --- |")
    for name, (function, size) in rows.items():
        print(f"| {name} | {nanoseconds(function, size, given.repeats):.1f} |", flush=True)


if __name__ == "__main__":
    main()
