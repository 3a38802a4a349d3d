"""What is in a model, and what a size would buy: from the weight files' headers alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pydantic import Field

from quasitile.checkpoint.shards import DTYPE_BYTES, tensor_headers
from quasitile.codec.tiling import TILINGS
from quasitile.compress.pipeline import TilingSettings
from quasitile.compress.size import BITS_OF_NUMBER, parse_size
from quasitile.folders import stage_folder, write_json
from quasitile.settings import Settings


class InspectSettings(Settings):
    """What to look at."""

    sizes: tuple[str, ...] = Field(("50%", "25%", "12.5%", "6.25%"), min_length=1)
    tiling: TilingSettings = TilingSettings()


def inspect(model: str | Path, out: str | Path | None = None, settings: InspectSettings | None = None) -> dict[str, Any]:
    """Sizes and matrices of a model folder, and what budgets would buy.

    Args:
        model: A local model folder.
        out: A folder for `plan.json`, or nothing to only return it.
        settings: See `InspectSettings`.

    Returns:
        `num_parameters`, `original_bytes` (bf16), `stored_bytes`, `matrices` and `sizes`.

    Raises:
        InputError: There is no such model.
    """
    settings = settings or InspectSettings()
    headers = tensor_headers(model)
    matrices = [
        {
            "name": name.removesuffix(".weight"),
            "shape": entry["shape"],
            "dtype": entry["dtype"],
            **tiles_of(entry["shape"], settings),
        }
        for name, entry in headers.items()
        if name.endswith(".weight") and len(entry["shape"]) == 2
    ]
    num_parameters = sum(math.prod(entry["shape"]) for entry in headers.values())
    plan = {
        "num_parameters": num_parameters,
        "original_bytes": 2 * num_parameters,
        "stored_bytes": sum(math.prod(e["shape"]) * DTYPE_BYTES.get(e["dtype"], 2) for e in headers.values()),
        "num_matrices": len(matrices),
        "matrices": matrices,
        "sizes": [size_row(size, num_parameters, matrices) for size in settings.sizes],
    }
    if out is not None:
        with stage_folder(out, "inspect", settings, model=model) as stage:
            write_json(stage.path / "plan.json", plan)
            stage.summary |= {key: value for key, value in plan.items() if key != "matrices"}
    return plan


def tiles_of(shape: list[int], settings: InspectSettings) -> dict[str, Any]:
    """How many tiles a matrix gets, and the long sides' sum that a rank costs."""
    tiling = TILINGS[settings.tiling.name](shape[0], shape[1], settings.tiling.short, settings.tiling.seed)
    return {"num_tiles": len(tiling.tiles), "numbers_per_rank": sum(sum(tile.shape) for tile in tiling.tiles)}


def size_row(size: str, num_parameters: int, matrices: list[dict[str, Any]]) -> dict[str, Any]:
    """Bytes, bits a weight, and about the mean rank of a tile, at one size."""
    target = parse_size(size, 2 * num_parameters)
    num_bytes = target.num_bytes if target.num_bytes is not None else round((target.num_parameters or 0) * BITS_OF_NUMBER / 8)
    numbers_per_rank = sum(matrix["numbers_per_rank"] for matrix in matrices)
    return {
        "size": size,
        "stored_bytes": num_bytes,
        "bits_per_weight": 8 * num_bytes / num_parameters,
        "mean_rank": 8 * num_bytes / BITS_OF_NUMBER / max(numbers_per_rank, 1),
    }
