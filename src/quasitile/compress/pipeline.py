"""Compression from a model folder to a model folder: calibrate -> tile -> factor -> transform -> allocate -> write."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator

from quasitile.checkpoint import check_tensors, stored_bytes, tensor_headers
from quasitile.codec.block import Block
from quasitile.codec.machine import STATES
from quasitile.codec.matrix import Coding, decode_matrix
from quasitile.codec.packing import code_bits, unpack
from quasitile.codec.spectrum import TRANSFORMS, TRUNCATIONS
from quasitile.codec.tiling import TILINGS
from quasitile.compress.allocate import Coded, Job, allocate
from quasitile.compress.calibrate import calibrate
from quasitile.compress.layout import deflate_where_it_pays
from quasitile.compress.size import BITS_OF_NUMBER, parse_size
from quasitile.compress.text import read_texts, token_windows
from quasitile.errors import InputError
from quasitile.folders import stage_folder, write_json
from quasitile.progress import human_bytes, say
from quasitile.runtime import (
    Place,
    check_vocabulary,
    compressible_layers,
    convert,
    is_compressed,
    load_model,
    save_model,
    uncoded,
)
from quasitile.settings import Settings

BITS_OF_BF16 = 16


class TilingSettings(Settings):
    """Where the tiles lie."""

    name: Literal[*TILINGS] = "fibonacci"  # type: ignore[valid-type]
    short: int = Field(default=96, ge=1, description="the shorter tile side; the longer one is 1.618 times it")
    seed: int = Field(default=0, ge=0, description="phase of the chain, or order of the shuffled one")


class SpectrumSettings(Settings):
    """What is done in the frequency domain."""

    transform: Literal[*TRANSFORMS] = "dct"  # type: ignore[valid-type]
    threshold: float = Field(default=0.55, ge=0.5, description="coefficients below this many steps are truncated")
    truncation: Literal[*TRUNCATIONS] = Field(default="threshold", description="which others are truncated")  # type: ignore[valid-type]
    keep: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="share of power (energy), of frequencies (low_pass) or of coefficients (budget) kept",
    )

    @model_validator(mode="after")
    def _keep_is_used(self) -> SpectrumSettings:
        if self.truncation == "threshold" and self.keep < 1:
            raise ValueError(f"keep={self.keep} needs a truncation of energy, low_pass or budget; set spectrum.truncation")
        return self


class CalibrationSettings(Settings):
    """How much text is streamed for the moments."""

    num_windows: int = Field(default=96, ge=1)
    num_tokens: int = Field(default=256, ge=2, description="a window")
    batch_size: int = Field(default=8, ge=1)


class CompressSettings(Settings):
    """How a model is compressed."""

    size: str = Field(default="25%", description="share of bf16 bytes (25%), bytes (4GB) or stored parameters (7B)")
    tiling: TilingSettings = TilingSettings()
    spectrum: SpectrumSettings = SpectrumSettings()
    residual: Literal["none", *TRANSFORMS] = Field(default="identity", description="transform of the quantised rest of a tile")  # type: ignore[valid-type]
    residual_threshold: float = Field(default=0.5, ge=0.5, description="dead zone of the residual in steps")
    trellis: Literal[*STATES] = Field(default=8, description="states of the trellis of a residual of identity; 1 for none")  # type: ignore[valid-type]
    row_damping: float = Field(default=0.0, ge=0, description="share of the mean output gradient that every row gets at least")
    max_rank: int | None = Field(default=None, ge=0, description="a limit; with a residual, nothing means no factors")
    rank_price: float = Field(default=1.0, gt=0, description="above 1: fewer components, stored more finely")
    feedback: bool = Field(default=True, description="let column bands make up for what later ones lost")
    calibration: CalibrationSettings = CalibrationSettings()
    workers: int = Field(default=0, ge=0, description="threads; 0 for one a core")
    seed: int = 0

    @model_validator(mode="after")
    def _truncation_is_used(self) -> CompressSettings:
        if self.spectrum.truncation != "threshold" and self.residual == "identity" and not self.max_rank:
            raise ValueError(
                f"spectrum.truncation={self.spectrum.truncation} has nothing to truncate: a residual of identity has no "
                "spectrum and there are no factors; choose another residual, or a max_rank"
            )
        return self


def compress(
    model: str | Path, out: str | Path, *, text: str | Path, settings: CompressSettings | None = None
) -> dict[str, Any]:
    """Compress a model to a given size (paper 3.1 and 3.2.1).

    Args:
        model: A Hugging Face folder or hub name with a model that reads tokens: a causal or masked
            language model, or an encoder without a head.
        out: The model folder to make.
        text: Calibration text: a JSON-lines file with a `text` key, or a text file. `sample` makes
            one from the model itself.
        settings: See `CompressSettings`.

    Returns:
        The summary: sizes, predicted damage, and a line a matrix.

    Raises:
        InputError: The model cannot be used, or the size cannot be met.
    """
    settings = settings or CompressSettings()
    if is_compressed(model):
        raise InputError(f"{model} is already compressed; start from the original model")
    if Path(model).is_dir():
        check_tensors(model)
    dense, tokenizer = load_model(model)
    layers, tied = compressible_layers(dense)
    check_weights(model, dense, layers)
    if dense.main_input_name != "input_ids":
        raise InputError(f"{model} reads {dense.main_input_name}, no tokens; calibration needs a model that reads text")
    if dense.config.is_encoder_decoder:
        raise InputError(f"{model} is an encoder with a decoder, which calibration cannot feed yet; give one of the two alone")
    num_parameters = sum(parameter.numel() for parameter in dense.parameters())
    original_bytes = num_parameters * BITS_OF_BF16 // 8
    target = parse_size(settings.size, original_bytes)
    with stage_folder(out, "compress", settings, settings.seed, model=model, text=text) as stage:
        amount = settings.calibration
        windows = token_windows(tokenizer, read_texts(text), amount.num_tokens, amount.num_windows, settings.seed)
        check_vocabulary(model, dense, int(windows.max()) + 1)
        moments = calibrate(dense, windows, amount.batch_size, settings.seed)
        place = TILINGS[settings.tiling.name]
        jobs = [
            Job(
                name,
                layer.weight.detach().float(),
                place(layer.weight.shape[0], layer.weight.shape[1], settings.tiling.short, settings.tiling.seed),
                moments[name],
            )
            for name, layer in layers.items()
        ]
        coding = Coding(
            transform=settings.spectrum.transform,
            threshold=settings.spectrum.threshold,
            max_rank=settings.max_rank,
            price=settings.rank_price,
            feedback=settings.feedback,
            residual=None if settings.residual == "none" else settings.residual,
            residual_threshold=settings.residual_threshold,
            num_states=settings.trellis,
            row_damping=settings.row_damping,
            truncation=settings.spectrum.truncation,
            keep=settings.spectrum.keep,
        )
        rest = uncoded(dense)
        rest_bytes = sum(
            tensor.numel() * dense.storage_dtypes.get(name, tensor.dtype).itemsize for name, tensor in rest.items()
        )
        headers = 200 + sum(max(140, 94 + len(name)) for name in [*rest, *layers])

        def num_bytes(coded: dict[str, Coded]) -> int:
            return sum(result.payload.numel() for result in coded.values()) + rest_bytes + headers

        def num_numbers(coded: dict[str, Coded]) -> int:
            return sum(result.num_numbers for result in coded.values()) + sum(tensor.numel() for tensor in rest.values())

        workers = settings.workers or len(os.sched_getaffinity(0))
        if settings.tiling.name == "hierarchical":
            room = (target.num_bytes or (target.num_parameters or 0) * BITS_OF_NUMBER / 8) - rest_bytes
            jobs = deflate_where_it_pays(jobs, coding, room, settings.tiling.short, settings.tiling.seed, workers)
        measure, limit = (num_bytes, target.num_bytes) if target.num_bytes is not None else (num_numbers, target.num_parameters)
        assert limit is not None
        coded, step = allocate(jobs, coding, measure, limit, workers)
        convert(dense, {name: result.matrix for name, result in coded.items()}, tied)
        save_model(dense, tokenizer, stage.path, trainable=True)
        stage.summary |= {
            "original_bytes": original_bytes,
            "target_bytes": target.num_bytes,
            "stored_bytes": stored_bytes(stage.path),
            "stored_parameters": num_numbers(coded),
            "num_parameters": num_parameters,
            "bits_per_weight": 8 * stored_bytes(stage.path) / num_parameters,
            "predicted_damage_nats": sum(result.damage_nats for result in coded.values()),
            "step": step if step < float("inf") else None,
            "calibration_tokens": windows.numel(),
            "matrices": [describe_matrix(job, coded[job.name], settings) for job in jobs],
        }
        largest = max(jobs, key=lambda job: len(job.tiling.tiles) if min(job.weight.shape) > settings.tiling.short else 0)
        write_json(stage.path / "picture.json", picture(largest, coded[largest.name]))
    say(f"  {human_bytes(original_bytes)} in bf16 -> {human_bytes(stage.summary['stored_bytes'])}")
    return stage.summary


def check_weights(folder: str | Path, model: Any, layers: dict[str, Place]) -> None:
    """Refuse weights that are not numbers.

    Raises:
        InputError: A tensor holds NaN or infinite values, or there is no matrix.
    """
    if not layers:
        raise InputError(f"{folder} has no weight matrix to compress; give a language model")
    headers = tensor_headers(folder) if Path(folder).is_dir() else {}
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            file = f"{folder}/{headers[name]['file']}" if name in headers else str(folder)
            raise InputError(f"{file}: {name} holds NaN or infinite values; the checkpoint is damaged, copy it again")


def describe_matrix(job: Job, coded: Coded, settings: CompressSettings) -> dict[str, Any]:
    """The summary's line about one matrix."""
    ranks = [block.rank for block in coded.matrix.blocks]
    codes = [block.codes() for block in coded.matrix.blocks]
    num_codes = sum(c.numel() for c in codes)
    error = job.weight - decode_matrix(coded.matrix)
    return {
        "name": job.name,
        "shape": list(job.weight.shape),
        "tiling": settings.tiling.name,
        "num_tiles": len(ranks),
        "mean_rank": sum(ranks) / len(ranks),
        "max_rank": max(ranks),
        "stored_bytes": coded.payload.numel(),
        "bits_per_weight": 8 * coded.payload.numel() / job.weight.numel(),
        "relative_squared_error": float(error.square().sum() / job.weight.square().sum().clamp_min(1e-30)),
        "kept_share": sum(int((c != 0).sum()) for c in codes) / num_codes if num_codes else 0.0,
        "predicted_damage_nats": coded.damage_nats,
    }


def picture(job: Job, coded: Coded) -> dict[str, Any]:
    """The layout of one matrix: a row a tile, for the report."""
    stored = unpack(coded.payload)
    tiles = [
        [t.row_start, t.row_stop, t.column_start, t.column_stop, block.rank, round(tile_bits(block) / 8)]
        for t, block in zip(stored.tiling.tiles, stored.blocks, strict=True)
    ]
    return {"name": job.name, "shape": list(job.weight.shape), "tiles": tiles}


def tile_bits(block: Block) -> float:
    """About the bits of one tile's codes, from their entropy."""
    bits = sum(code_bits(codes) for codes in (block.left, block.right) if codes.numel())
    if block.residual is not None:
        counts = block.residual.unique(return_counts=True)[1].double()
        bits -= float((counts * (counts / counts.sum()).log2()).sum())
    return bits
