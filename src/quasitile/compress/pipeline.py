"""Compression from a model folder to a model folder: calibrate -> tile -> factor -> transform -> allocate -> write."""

from __future__ import annotations

import os
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator, model_validator

from quasitile.checkpoint import check_tensors, stored_bytes, tensor_headers
from quasitile.codec.factors import SVDS
from quasitile.codec.machine import STATES
from quasitile.codec.matrix import INPUTS, PRICES, Coding
from quasitile.codec.packing import unpack
from quasitile.codec.spectrum import TRANSFORMS, TRUNCATIONS
from quasitile.codec.structure import STRUCTURES
from quasitile.codec.tiling import TILINGS
from quasitile.compress.allocate import Coded, Job, allocate, describe_matrix
from quasitile.compress.calibrate import Moments, calibrate
from quasitile.compress.from_shards import compress_from_shards, wants_stream
from quasitile.compress.layout import deflate_where_it_pays
from quasitile.compress.modular import MODULES
from quasitile.compress.numbers import number_share, structure_for, with_share
from quasitile.compress.order import ORDERS, reorder
from quasitile.compress.picture import layout
from quasitile.compress.pieces import NotAStack
from quasitile.compress.size import BITS_OF_NUMBER, parse_size
from quasitile.compress.stream import AxesSettings, stream_axes
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
    storage_dtypes,
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
    stream: Literal["auto", "yes", "no"] = Field(
        default="auto", description="one layer at a time from disk; auto: where the model would fill the memory"
    )
    propagate: Literal["original", "compressed"] = Field(
        default="original", description="whether the layers before one count as they were, or as coded (streamed)"
    )
    moment_bytes: int = Field(
        default=64 * 2**20, ge=2**12, description="a larger second moment is kept as diagonal blocks of so many (streamed)"
    )

    @field_validator("stream", mode="before")
    @classmethod
    def _yes_is_a_word(cls, value: object) -> object:
        return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value  # YAML reads yes as true

    @model_validator(mode="after")
    def _compressed_is_streamed(self) -> CalibrationSettings:
        if self.propagate == "compressed" and self.stream == "no":
            raise ValueError("propagate=compressed works layer by layer; leave stream at auto, or set it to yes")
        return self


class CompressSettings(Settings):
    """How a model is compressed."""

    size: str = Field(default="25%", description="share of bf16 bytes (25%), bytes (4GB) or stored parameters (7B)")
    tiling: TilingSettings = TilingSettings()
    order: Literal["none", *ORDERS] = Field(default="none", description="of axes that are free")  # type: ignore[valid-type]
    axes: AxesSettings = AxesSettings()
    spectrum: SpectrumSettings = SpectrumSettings()
    residual: Literal["none", *TRANSFORMS] = Field(default="identity", description="transform of the quantised rest of a tile")  # type: ignore[valid-type]
    residual_threshold: float = Field(default=0.5, ge=0.5, description="dead zone of the residual in steps")
    trellis: Literal[*STATES] = Field(default=8, description="states of the trellis of a residual of identity; 1 for none")  # type: ignore[valid-type]
    row_damping: float = Field(default=0.0, ge=0, description="share of the mean output gradient that every row gets at least")
    max_rank: int | None = Field(default=None, ge=0, description="a limit; with a residual, nothing means no factors")
    rank_price: float = Field(default=1.0, gt=0, description="above 1: fewer components, stored more finely")
    factorise: Literal["tile first", "factor first"] = Field(
        default="tile first", description="each tile by itself, or slices of one factorisation of the matrix"
    )
    svd: Literal[*SVDS] = Field(default="auto", description="auto: randomised for few components of large tiles")  # type: ignore[valid-type]
    feedback: bool = Field(default=True, description="let column bands make up for what later ones lost")
    skip: tuple[str, ...] = Field(default=(), description="matrices left as they are: names, or patterns such as *embed*")
    calibration: CalibrationSettings = CalibrationSettings()
    ranks: Literal["priced", "share", "fixed"] = Field(
        default="priced", description="who decides a tile's rank: its price, an equal share of all tiles' numbers, or max_rank"
    )
    residual_part: Literal["all", "rows", "entries"] = Field(default="all", description="which entries the residual has")
    structure: Literal["none", *STRUCTURES] = Field(default="none", description="which weights share a number")  # type: ignore[valid-type]
    modules: Literal["none", *MODULES] = Field(default="none", description="how whole modules are made narrower first")  # type: ignore[valid-type]
    number_bits: float = Field(
        default=8.0, gt=0, description="where numbers are counted (ranks, residual_part, structure, modules): bits for each"
    )
    factor_numbers: float = Field(default=0.5, gt=0, lt=1, description="factors' part of them beside a part of the residual")
    alternations: int = Field(default=0, ge=0, description="rounds of fitting the residual and the factors in turn")
    inputs: Literal[*INPUTS] = Field(default="correlated", description="what is known of the inputs")  # type: ignore[valid-type]
    prices: Literal[*PRICES] = Field(default="rows", description="output gradients count by row, by matrix or not")  # type: ignore[valid-type]
    workers: int = Field(default=0, ge=0, description="threads, or processes where the model is streamed; 0 for one a core")
    ray: str = Field(default="", description="address of a Ray cluster (auto, local, host:port) that codes a streamed model")
    seed: int = 0

    @model_validator(mode="after")
    def _truncation_is_used(self) -> CompressSettings:
        if self.spectrum.truncation != "threshold" and self.residual == "identity" and not self.max_rank:
            raise ValueError(
                f"spectrum.truncation={self.spectrum.truncation} has nothing to truncate: a residual of identity has no "
                "spectrum and there are no factors; choose another residual, or a max_rank"
            )
        return self

    @model_validator(mode="after")
    def _axes_are_known(self) -> CompressSettings:
        if self.axes.kind != "none" and self.tiling.name == "hierarchical":
            raise ValueError("the hierarchical tiling is laid out in the weight's own columns; set axes.kind to none")
        if self.axes.kind != "none" and self.structure != "none":
            raise ValueError(f"the columns of structure={self.structure} have no axes of their own; set axes.kind to none")
        if self.axes.kind in ("sorted", "stream") and self.residual == "none":
            raise ValueError(f"axes.kind={self.axes.kind} is for columns that make up for each other's loss; set a residual")
        return self

    @model_validator(mode="after")
    def _factors_are_used(self) -> CompressSettings:
        has_factors = self.residual == "none" or self.max_rank or self.ranks == "share"
        if not has_factors and (self.factorise != "tile first" or self.svd == "randomised"):
            raise ValueError("factorise and svd are about factors; with a residual there are none unless you set a max_rank")
        if self.factorise == "factor first" and self.ranks != "priced":
            raise ValueError(f"ranks={self.ranks} is for factors of single tiles; set factorise to tile first")
        if self.svd == "randomised" and self.max_rank is None:
            raise ValueError("svd=randomised finds the leading components and must know how many; set a max_rank")
        return self

    @model_validator(mode="after")
    def _parts_are_there(self) -> CompressSettings:
        if self.ranks == "fixed" and not self.max_rank:
            raise ValueError("ranks=fixed needs a max_rank above 0")
        if self.residual_part != "all" and self.residual != "identity":
            raise ValueError(f"residual_part={self.residual_part} needs a residual of identity")
        if self.alternations and (self.residual != "identity" or (self.ranks == "priced" and not self.max_rank)):
            raise ValueError(f"alternations={self.alternations} need a residual of identity and factors; give a max_rank")
        if self.alternations and self.residual_part != "all":
            raise ValueError(f"alternations={self.alternations} need the whole residual; set residual_part to all")
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
    if not is_compressed(model) and wants_stream(model, settings):
        try:
            return compress_from_shards(Path(model), Path(out), Path(text), settings, lambda share: coding_for(settings, share))
        except NotAStack as reason:
            if settings.calibration.stream == "yes":
                raise InputError(f"{model} cannot be streamed: {reason}; set calibration.stream to no") from reason
            say(f"  not streamed: {reason}")
    if settings.ray:
        say("  ray is not used: the model is not streamed (set calibration.stream to yes)")
    dense, tokenizer, layers, tied = open_original(model, settings.skip)
    num_parameters = sum(parameter.numel() for parameter in dense.parameters())
    original_bytes = num_parameters * BITS_OF_BF16 // 8
    target = parse_size(settings.size, original_bytes)
    with stage_folder(out, "compress", settings, settings.seed, model=model, text=text) as stage:
        amount = settings.calibration
        windows = token_windows(tokenizer, read_texts(text), amount.num_tokens, amount.num_windows, settings.seed)
        check_vocabulary(model, dense, int(windows.max()) + 1)
        moments = calibrate(dense, windows, amount.batch_size, settings.seed)
        if settings.order != "none":
            reorder(dense, moments, settings.order, windows[:1])
            layers, tied = without_skipped(*compressible_layers(dense), settings.skip)
            dense.storage_dtypes |= storage_dtypes(uncoded(dense, set(layers)), dense.storage_dtypes[""])
            moments = calibrate(dense, windows, amount.batch_size, settings.seed)  # in the new axes
        rest = uncoded(dense, set(layers))
        beside = bytes_beside(dense, layers)
        if target.num_bytes is not None:
            room, number_bits = 8 * (target.num_bytes - beside), settings.number_bits
        else:
            room, number_bits = target.num_parameters or 0, 1.0
        share = number_share(room, number_bits, sum(layer.weight.numel() for layer in layers.values()))
        if settings.modules != "none":
            MODULES[settings.modules](dense, moments, windows, amount.batch_size, share)
            moments = calibrate(dense, windows, amount.batch_size, settings.seed)
        jobs = [job_for(name, layer, moments[name], settings, share) for name, layer in layers.items()]
        if settings.axes.kind == "stream":
            stream = stream_axes(dense, layers, moments, windows[:1])
            jobs = [replace(job, axes=stream.of(job.name)) for job in jobs]
        coding = coding_for(settings, share)

        def num_bytes(coded: dict[str, Coded]) -> int:
            return sum(result.payload.numel() for result in coded.values()) + beside

        def num_numbers(coded: dict[str, Coded]) -> int:
            return sum(result.num_numbers for result in coded.values()) + sum(tensor.numel() for tensor in rest.values())

        workers = settings.workers or len(os.sched_getaffinity(0))
        if settings.tiling.name == "hierarchical":
            room = (target.num_bytes or (target.num_parameters or 0) * BITS_OF_NUMBER / 8) - beside
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
            "matrices": [describe_matrix(job, coded[job.name], settings.tiling.name) for job in jobs],
        }
        largest = max(jobs, key=lambda job: len(job.tiling.tiles) if min(job.weight.shape) > settings.tiling.short else 0)
        write_json(
            stage.path / "picture.json",
            layout(largest.name, unpack(coded[largest.name].payload, shared=coded[largest.name].matrix.axes)),
        )
    say(f"  {human_bytes(original_bytes)} in bf16 -> {human_bytes(stage.summary['stored_bytes'])}")
    return stage.summary


def open_original(model: str | Path, skip: tuple[str, ...] = ()) -> tuple[Any, Any, dict[str, Place], dict[str, str]]:
    """A model that can be compressed, its tokenizer, its matrices, and heads tied to its embedding.

    Args:
        model: A Hugging Face folder or hub name.
        skip: Names and patterns of matrices that stay as they are.

    Raises:
        InputError: It cannot be used.
    """
    if is_compressed(model):
        raise InputError(f"{model} is already compressed; start from the original model")
    if Path(model).is_dir():
        check_tensors(model)
    dense, tokenizer = load_model(model)
    layers, tied = without_skipped(*compressible_layers(dense), skip)
    dense.storage_dtypes |= storage_dtypes(uncoded(dense, set(layers)), dense.storage_dtypes[""])
    check_weights(model, dense, layers)
    if dense.main_input_name != "input_ids":
        raise InputError(f"{model} reads {dense.main_input_name}, no tokens; calibration needs a model that reads text")
    if dense.config.is_encoder_decoder:
        raise InputError(f"{model} is an encoder with a decoder, which calibration cannot feed yet; give one of the two alone")
    return dense, tokenizer, layers, tied


def without_skipped(
    layers: dict[str, Place], tied: dict[str, str], patterns: tuple[str, ...]
) -> tuple[dict[str, Place], dict[str, str]]:
    """What is left of the matrices and of the heads that share one, once those of the patterns are left out.

    Raises:
        InputError: A pattern fits no matrix.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in layers):
            raise InputError(f"compress.skip: no matrix is called {pattern}; one is {next(iter(layers), 'none')}")
    kept = {name: p for name, p in layers.items() if not any(fnmatchcase(name, pattern) for pattern in patterns)}
    return kept, {head: source for head, source in tied.items() if source in kept}


def bytes_beside(dense: Any, layers: dict[str, Place]) -> int:
    """Stored bytes of everything but the matrices, headers of the weight files included."""
    rest = uncoded(dense, set(layers))
    numbers = sum(tensor.numel() * dense.storage_dtypes.get(name, tensor.dtype).itemsize for name, tensor in rest.items())
    return numbers + 200 + sum(max(140, 94 + len(name)) for name in [*rest, *layers])


def job_for(name: str, layer: Place, moments: Moments, settings: CompressSettings, share: float) -> Job:
    """One matrix and how it is laid out.

    Args:
        name: Of the matrix.
        layer: Its place in the model.
        moments: From calibration.
        settings: Decide the tiling and the structure.
        share: Of the weights' numbers that are stored, where they are counted.
    """
    weight = layer.weight.detach().float()
    structure = structure_for(settings.structure, (weight.shape[0], weight.shape[1]), share)
    num_rows, num_columns = weight.shape if structure is None else structure.stored_shape
    tiling = TILINGS[settings.tiling.name](num_rows, num_columns, settings.tiling.short, settings.tiling.seed)
    return Job(name, weight, tiling, moments, structure)


def coding_for(settings: CompressSettings, share: float) -> Coding:
    """How every matrix is coded; `share` as for `job_for`."""
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
        ranks=settings.ranks,
        residual_part=settings.residual_part,
        alternations=settings.alternations,
        inputs=settings.inputs,
        prices=settings.prices,
        factor_first=settings.factorise == "factor first",
        svd=settings.svd,
        axes={"none": None, "stream": "sorted"}.get(settings.axes.kind, settings.axes.kind),
        span=settings.axes.span,
    )
    return with_share(coding, share, settings.factor_numbers)


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
