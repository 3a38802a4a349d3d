"""What is in a model, what a size would buy, and what it would cost: from its configuration alone."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Iterable
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import Field

from quasitile.checkpoint import stored_bytes, tensor_headers
from quasitile.checkpoint.shards import INDEX
from quasitile.codec.block import Tiling
from quasitile.codec.tiling import TILINGS
from quasitile.compress.picture import tiling_svg
from quasitile.compress.rates import USUAL, Load, Rates, measure, predict
from quasitile.compress.settings import CalibrationSettings, TilingSettings
from quasitile.compress.size import BITS_OF_NUMBER, parse_size
from quasitile.errors import InputError
from quasitile.folders import read_json, stage_folder, write_json, write_text
from quasitile.runtime import Place, compressible_layers, is_compressed_config, load_config, meta_model, uncoded
from quasitile.settings import Settings

BYTES_OF_BF16 = 2
LEAST_BITS = 2.0  # of a weight, for which damage is foreseen: a bit less a weight then quadruples it
EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k", "moe_k")


class InspectSettings(Settings):
    """What to look at."""

    sizes: tuple[str, ...] = Field(default=("50%", "25%", "12.5%", "6.25%"), min_length=1)
    tiling: TilingSettings = TilingSettings()
    calibration: CalibrationSettings = CalibrationSettings()
    workers: int = Field(default=0, ge=0, description="cores that the time is predicted for; 0 for those that are here")


def inspect(
    model: str | Path,
    out: str | Path | None = None,
    settings: InspectSettings | None = None,
    *,
    picture: str | Path | None = None,
    matrix: str | None = None,
    measured: bool = False,
) -> dict[str, Any]:
    """Sizes and matrices of a model, what budgets would buy, and about how long `compress` would take.

    The configuration is enough: the model is built without weights, and its matrices are found as
    `compress` finds them. Where there are weight files, their headers are read too.

    Args:
        model: A model folder with or without weights, a `config.json`, or a hub name.
        out: A folder for `plan.json`, or nothing to only return it.
        settings: See `InspectSettings`.
        picture: An SVG file to make, with the tiling of one matrix.
        matrix: Which one; without it, the largest.
        measured: Time one synthetic matrix here, instead of using the rates that we measured.

    Returns:
        `num_parameters`, `original_bytes` (bf16), `matrices` (each) and `groups` (alike ones together),
        `sizes` and `cost`; what docs/data.md says of `plan.json`.

    Raises:
        InputError: There is no such model or matrix, or a weight file is missing or cut off.
    """
    settings = settings or InspectSettings()
    config = load_config(model)
    skeleton = meta_model(config)
    layers, tied = compressible_layers(skeleton)
    shapes = {name: shape_of(place) for name, place in layers.items()}
    matrices = [
        {"name": name, "kind": layers[name].kind, "shape": list(shape), **tiles_of(shape, settings)}
        for name, shape in shapes.items()
    ]
    rest = uncoded(skeleton)
    rest_bytes = BYTES_OF_BF16 * sum(tensor.numel() for tensor in rest.values())
    num_parameters = sum(parameter.numel() for parameter in skeleton.parameters())
    rates = measure() if measured else USUAL
    workers = settings.workers or len(os.sched_getaffinity(0))
    num_tokens = settings.calibration.num_windows * settings.calibration.num_tokens
    calibrated = calibrated_damage(Path(model)) if is_compressed_config(config) else None
    cost = cost_of(layers, shapes, config, num_tokens, rates, workers, measured)
    once = cost["calibration_seconds"] + cost["coding_seconds"]
    rows = [size_row(size, num_parameters, matrices, rest_bytes, calibrated) for size in settings.sizes]
    for row in rows:  # prices midway take everything twice
        row["seconds"] = once * (2 if settings.calibration.prices_midway(row["bits_per_matrix_weight"]) else 1)
    plan = {
        "architecture": type(skeleton).__name__,
        "compressed": is_compressed_config(config),
        "num_parameters": num_parameters,
        "num_buffer_values": sum(buffer.numel() for name, buffer in skeleton.named_buffers() if name in rest),
        "original_bytes": BYTES_OF_BF16 * num_parameters,
        "rest_bytes": rest_bytes,
        **stored(Path(model)),
        "num_matrices": len(matrices),
        "tied": tied,
        "groups": groups_of(matrices),
        "sizes": rows,
        "cost": cost,
        "matrices": matrices,
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


def shape_of(place: Place) -> tuple[int, int]:
    """(M, N) of a matrix; an expert's without taking it out of its stack, of which there are tens of thousands."""
    num_rows, num_columns = place.weight.shape if place.index is None else place.tensor.shape[1:]
    return num_rows, num_columns


def stored(model: Path) -> dict[str, Any]:
    """What the headers of the weight files say: bytes, and which dtypes how often; nothing where there are no such files."""
    if not (model / "model.safetensors").is_file() and not (model / INDEX).is_file():
        return {"stored_bytes": None, "stored_dtypes": {}, "unsupported_dtypes": []}
    counts: dict[str, int] = {}
    for entry in tensor_headers(model).values():
        counts[entry["dtype"]] = counts.get(entry["dtype"], 0) + math.prod(entry["shape"])
    odd = [dtype for dtype in counts if dtype.startswith(("F8", "F4", "F6", "C"))]
    return {"stored_bytes": stored_bytes(model), "stored_dtypes": counts, "unsupported_dtypes": odd}


def groups_of(matrices: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Matrices of one kind, shape and name but for its numbers, together, in the order of the model."""
    groups: dict[tuple, dict[str, Any]] = {}
    for matrix in matrices:
        pattern = re.sub(r"\.\d+(?=\.|$)", ".*", matrix["name"])
        key = pattern, matrix["kind"], tuple(matrix["shape"])
        group = groups.setdefault(
            key, {"name": pattern, "kind": matrix["kind"], "shape": matrix["shape"], "count": 0, "num_parameters": 0}
        )
        group["count"] += 1
        group["num_parameters"] += math.prod(matrix["shape"])
    return list(groups.values())


def cost_of(
    layers: dict[str, Place],
    shapes: dict[str, tuple[int, int]],
    config: Any,
    num_tokens: int,
    rates: Rates,
    workers: int,
    measured: bool,
) -> dict[str, Any]:
    """Predicted seconds and bytes of `compress`, with what they rest on."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    active = next((getattr(text, key) for key in EXPERTS_PER_TOKEN if isinstance(getattr(text, key, None), int)), 1)
    loads = []
    for name, place in layers.items():
        share = min(1.0, active / len(place.tensor)) if place.kind == "experts" else 0.0 if place.kind == "embedding" else 1.0
        layer = re.match(r".*?\.\d+(?=\.|$)", place.path)
        loads.append(Load(shapes[name], share, layer[0] if layer else None))
    basis = {"num_tokens": num_tokens, "workers": workers, "measured_here": measured, **asdict(rates)}
    return {**asdict(predict(loads, num_tokens, rates, workers)), **basis}


def calibrated_damage(model: Path) -> tuple[float, float] | None:
    """Stored bits a weight and predicted damage of a compressed folder, from when it was made."""
    summary = model / "summary.json"
    found = read_json(summary) if summary.is_file() else {}
    if found.get("predicted_damage_nats") is None or "bits_per_weight" not in found:
        return None
    return found["bits_per_weight"], found["predicted_damage_nats"]


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


def tiling_of(shape: Iterable[int], settings: InspectSettings) -> Tiling:
    """The tiling that a matrix of this shape gets, weights unseen."""
    num_rows, num_columns = shape
    return TILINGS[settings.tiling.name](num_rows, num_columns, settings.tiling.short, settings.tiling.seed)


def tiles_of(shape: tuple[int, int], settings: InspectSettings) -> dict[str, Any]:
    """How many tiles a matrix gets, and the sides' sum that a rank costs."""
    tiling = settings.tiling
    return dict(_counted(shape, tiling.name, tiling.short, tiling.seed))


@lru_cache(maxsize=256)
def _counted(shape: tuple[int, int], name: str, short: int, seed: int) -> tuple[tuple[str, int], ...]:
    tiles = TILINGS[name](*shape, short, seed).tiles
    return ("num_tiles", len(tiles)), ("numbers_per_rank", sum(sum(tile.shape) for tile in tiles))


def size_row(
    size: str,
    num_parameters: int,
    matrices: list[dict[str, Any]],
    rest_bytes: int,
    calibrated: tuple[float, float] | None,
) -> dict[str, Any]:
    """What one size buys.

    From shapes: bytes, bits a weight (of the whole model, and of the matrices once the rest is paid
    for), and about the mean rank of a tile if there were only factors. Damage needs calibration: with
    the folder of an earlier compression, `predicted_damage_nats` says what another size would do, by
    the rule that a bit less a weight quadruples it; without one, or below `LEAST_BITS`, it is nothing.
    """
    target = parse_size(size, BYTES_OF_BF16 * num_parameters)
    num_bytes = target.num_bytes if target.num_bytes is not None else round((target.num_parameters or 0) * BITS_OF_NUMBER / 8)
    weights = sum(math.prod(matrix["shape"]) for matrix in matrices)
    numbers_per_rank = sum(matrix["numbers_per_rank"] for matrix in matrices)
    bits = 8 * num_bytes / num_parameters
    damage = None
    if calibrated is not None and min(bits, calibrated[0]) >= LEAST_BITS:
        damage = calibrated[1] * 4 ** (calibrated[0] - bits)
    return {
        "size": size,
        "stored_bytes": num_bytes,
        "bits_per_weight": bits,
        "bits_per_matrix_weight": 8 * max(0, num_bytes - rest_bytes) / max(weights, 1),
        "mean_rank": 8 * num_bytes / BITS_OF_NUMBER / max(numbers_per_rank, 1),
        "predicted_damage_nats": damage,
    }
