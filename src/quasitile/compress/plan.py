"""What is in a model, and what a size would buy: from the weight files' headers alone."""

from __future__ import annotations

import difflib
import math
from pathlib import Path
from typing import Any

from pydantic import Field

from quasitile.checkpoint.shards import DTYPE_BYTES, tensor_headers
from quasitile.codec.block import Tiling
from quasitile.codec.tiling import TILINGS
from quasitile.compress.picture import tiling_svg
from quasitile.compress.pipeline import TilingSettings
from quasitile.compress.size import BITS_OF_NUMBER, parse_size
from quasitile.errors import InputError
from quasitile.folders import stage_folder, write_json, write_text
from quasitile.settings import Settings


class InspectSettings(Settings):
    """What to look at."""

    sizes: tuple[str, ...] = Field(default=("50%", "25%", "12.5%", "6.25%"), min_length=1)
    tiling: TilingSettings = TilingSettings()


def inspect(
    model: str | Path,
    out: str | Path | None = None,
    settings: InspectSettings | None = None,
    *,
    picture: str | Path | None = None,
    matrix: str | None = None,
) -> dict[str, Any]:
    """Sizes and matrices of a model folder, and what budgets would buy.

    Args:
        model: A local model folder.
        out: A folder for `plan.json`, or nothing to only return it.
        settings: See `InspectSettings`.
        picture: An SVG file to make, with the tiling of one matrix.
        matrix: Which one; without it, the largest.

    Returns:
        `num_parameters`, `original_bytes` (bf16), `stored_bytes`, `matrices` and `sizes`.

    Raises:
        InputError: There is no such model or matrix.
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
    if picture is not None:
        write_picture(Path(picture), picture_of(chosen(matrices, matrix, model), settings))
    elif matrix is not None:
        raise InputError(f"matrix={matrix} is drawn only where there is a file for its picture; give --picture FILE.svg too")
    if out is not None:
        with stage_folder(out, "inspect", settings, model=model) as stage:
            write_json(stage.path / "plan.json", plan)
            stage.summary |= {key: value for key, value in plan.items() if key != "matrices"}
    return plan


def chosen(matrices: list[dict[str, Any]], name: str | None, model: str | Path) -> dict[str, Any]:
    """The matrix of a name, or the largest.

    Raises:
        InputError: There is none.
    """
    if not matrices:
        raise InputError(f"{model} holds no weight matrix to draw; give an original model, not a compressed one")
    if name is None:
        return max(matrices, key=lambda matrix: math.prod(matrix["shape"]))
    by_name = {matrix["name"]: matrix for matrix in matrices}
    if name not in by_name:
        near = difflib.get_close_matches(name, by_name, 1, 0.5)
        hint = f"did you mean {near[0]}?" if near else f"its first is {next(iter(by_name))}"
        raise InputError(f"{model} has no matrix {name}; {hint}")
    return by_name[name]


def picture_of(matrix: dict[str, Any], settings: InspectSettings) -> str:
    """The tiling of a matrix as SVG."""
    note = f"shorter side {settings.tiling.short}"
    if settings.tiling.name == "hierarchical":
        note += ", before the weights decide what is deflated"
    return tiling_svg(tiling_of(matrix["shape"], settings), f"{settings.tiling.name} tiling of {matrix['name']}", note)


def write_picture(path: Path, svg: str) -> None:
    """Write the file, and the folders it lies in.

    Raises:
        InputError: There is a folder of that name.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the name of an SVG file")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, svg)


def tiling_of(shape: list[int], settings: InspectSettings) -> Tiling:
    """The tiling that a matrix of this shape gets, weights unseen."""
    return TILINGS[settings.tiling.name](shape[0], shape[1], settings.tiling.short, settings.tiling.seed)


def tiles_of(shape: list[int], settings: InspectSettings) -> dict[str, Any]:
    """How many tiles a matrix gets, and the long sides' sum that a rank costs."""
    tiling = tiling_of(shape, settings)
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
