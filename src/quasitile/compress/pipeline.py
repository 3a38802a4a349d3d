"""Compression from a model folder to a model folder: calibrate -> tile -> factor -> transform -> allocate -> write."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quasitile.checkpoint import check_tensors, header_bytes, stored_bytes, tensor_headers
from quasitile.codec.coding import Coding
from quasitile.codec.packing import unpack
from quasitile.codec.tiling import TILINGS
from quasitile.compress.allocate import Coded, Job, allocate, describe_matrix
from quasitile.compress.calibrate import Moments, calibrate
from quasitile.compress.correct import code_in_order, replaced
from quasitile.compress.forms import as_products, text_nats, tries_products
from quasitile.compress.from_shards import compress_from_shards, wants_stream
from quasitile.compress.layout import check_tiles, deflate_where_it_pays
from quasitile.compress.modular import MODULES
from quasitile.compress.numbers import number_share, structure_for, with_share
from quasitile.compress.order import reorder
from quasitile.compress.picture import layout
from quasitile.compress.settings import CompressSettings
from quasitile.compress.size import BITS_OF_NUMBER, parse_size
from quasitile.compress.stack import NotAStack, Stack
from quasitile.compress.stream import stream_axes
from quasitile.compress.windows import calibration_windows, held_out_windows, usable_reading
from quasitile.errors import InputError
from quasitile.folders import stage_folder, write_json
from quasitile.progress import human_bytes, say
from quasitile.runtime import (
    Place,
    check_vocabulary,
    compressible_layers,
    convert,
    device_of,
    is_compressed,
    load_model,
    save_model,
    storage_dtypes,
    uncoded,
)
from quasitile.runtime.device import lent_to

BITS_OF_BF16 = 16


def compress(
    model: str | Path,
    out: str | Path,
    *,
    text: str | Path,
    reading: str | Path | None = None,
    settings: CompressSettings | None = None,
) -> dict[str, Any]:
    """Compress a model to a given size (paper 3.1 and 3.2.1).

    Args:
        model: A Hugging Face folder or hub name with a model that reads tokens: a causal or masked
            language model, or an encoder without a head.
        out: The model folder to make.
        text: Calibration text: a JSON-lines file with a `text` key, or a text file. `sample` makes
            one from the model itself.
        reading: A folder that `read` made, which the model was taught, or the one that `adapt` made:
            `calibration.reading_share` of the calibration are its questions and answers, so that they survive.
        settings: See `CompressSettings`.

    Returns:
        The summary: sizes, predicted damage, and a line a matrix.

    Raises:
        InputError: The model cannot be used, the reading teaches nothing, or the size cannot be met.
    """
    settings = settings or CompressSettings()
    reading = usable_reading(reading, settings.calibration)
    if not is_compressed(model) and wants_stream(model, settings):
        try:
            return compress_from_shards(
                Path(model), Path(out), Path(text), settings, lambda share: coding_for(settings, share), reading
            )
        except NotAStack as reason:
            if settings.calibration.stream == "yes":
                raise InputError(f"{model} cannot be streamed: {reason}; set calibration.stream to no") from reason
            say(f"  not streamed: {reason}")
    if settings.ray:
        say("  ray is not used: the model is not streamed (set calibration.stream to yes)")
    device = device_of(settings.device)
    dense, tokenizer, layers, tied = open_original(model, settings.skip)
    num_parameters = sum(parameter.numel() for parameter in dense.parameters())
    original_bytes = num_parameters * BITS_OF_BF16 // 8
    target = parse_size(settings.size, original_bytes)
    check_tiles({name: tuple(layer.weight.shape) for name, layer in layers.items()}, settings)
    inputs: dict[str, Any] = {"model": model, "text": text} | ({"reading": reading} if reading else {})
    with stage_folder(out, "compress", settings, settings.seed, **inputs) as stage:
        amount = settings.calibration
        windows = calibration_windows(tokenizer, text, amount, settings.seed, reading)
        check_vocabulary(model, dense, int(windows.max()) + 1)
        with lent_to(dense, device):
            moments = calibrate(dense, windows, amount.batch_size, settings.seed)
        if settings.order != "none":
            reorder(dense, moments, settings.order, windows[:1])
            layers, tied = without_skipped(*compressible_layers(dense), settings.skip)
            dense.storage_dtypes |= storage_dtypes(uncoded(dense, set(layers)), dense.storage_dtypes[""])
            with lent_to(dense, device):
                moments = calibrate(dense, windows, amount.batch_size, settings.seed)  # in the new axes
        rest = uncoded(dense, set(layers))
        beside = bytes_beside(dense, layers, target.num_bytes or original_bytes)
        if target.num_bytes is not None:
            room, number_bits = 8 * (target.num_bytes - beside), settings.number_bits
        else:
            room, number_bits = target.num_parameters or 0, 1.0
        share = number_share(room, number_bits, sum(layer.weight.numel() for layer in layers.values()))
        if settings.modules != "none":
            MODULES[settings.modules](dense, moments, windows, amount.batch_size, share)
            with lent_to(dense, device):
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
        room_bytes = (target.num_bytes or (target.num_parameters or 0) * BITS_OF_NUMBER / 8) - beside
        if settings.tiling.name == "hierarchical":
            jobs = deflate_where_it_pays(jobs, coding, room_bytes, settings.tiling.short, settings.tiling.seed, workers)
        measure, limit = (num_bytes, target.num_bytes) if target.num_bytes is not None else (num_numbers, target.num_parameters)
        assert limit is not None
        stack = None if settings.calibration.propagate == "original" else stack_of(dense, settings)

        bits = 8 * room_bytes / sum(job.weight.numel() for job in jobs)

        def code(jobs: list[Job], coding: Coding) -> tuple[dict[str, Coded], float]:
            found = allocate(jobs, coding, measure, limit, workers)
            if stack is None or found.step == math.inf:
                return found.coded, found.step
            with lent_to(dense, device):
                return code_in_order(
                    stack, jobs, layers, found, coding, measure, limit, windows, amount.batch_size, workers
                ), found.step

        def code_midway(jobs: list[Job], coding: Coding) -> tuple[list[Job], dict[str, Coded], float]:
            coded, step = code(jobs, coding)
            if step == math.inf or not amount.prices_midway(bits):
                return jobs, coded, step
            with replaced(layers, coded), lent_to(dense, device):
                there = calibrate(dense, windows, amount.batch_size, settings.seed)
            tables = {job.name: layers[job.name].kind == "embedding" for job in jobs}
            jobs = [replace(job, moments=job.moments.midway(there[job.name], tables[job.name])) for job in jobs]
            return jobs, *code(jobs, coding)

        def held_out_nats(coded: dict[str, Coded], held_out: Tensor) -> float:
            with replaced(layers, coded), lent_to(dense, device):
                return text_nats(dense, held_out, amount.batch_size)

        found, tiling = code_midway(jobs, coding), settings.tiling.name
        if dense.can_generate() and tries_products(settings, coding, bits):
            held_out = held_out_windows(tokenizer, text, amount, settings.seed)
            if len(held_out):
                products = code_midway(*as_products(jobs, coding))
                if held_out_nats(products[1], held_out) < held_out_nats(found[1], held_out):
                    found, tiling = products, "whole"
        jobs, coded, step = found
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
            "matrices": [describe_matrix(job, coded[job.name], tiling) for job in jobs],
        }
        largest = max(jobs, key=lambda job: len(job.tiling.tiles) if min(job.weight.shape) > settings.tiling.short else 0)
        write_json(
            stage.path / "picture.json",
            layout(largest.name, unpack(coded[largest.name].payload, shared=coded[largest.name].matrix.axes)),
        )
    say(f"  {human_bytes(original_bytes)} in bf16 -> {human_bytes(stage.summary['stored_bytes'])}")
    return stage.summary


def stack_of(model: Any, settings: CompressSettings) -> Stack | None:
    """The layers that are coded one behind the other.

    Raises:
        InputError: There are none, and they are asked for.
    """
    try:
        return Stack(model)
    except NotAStack as reason:
        if settings.calibration.propagate == "corrected":
            raise InputError(f"calibration.propagate=corrected is not possible: {reason}; set it to original") from reason
        return None


def open_original(model: str | Path, skip: tuple[str, ...] = ()) -> tuple[Any, Any, dict[str, Place], dict[str, str]]:
    """A model that can be compressed, its tokenizer, its matrices, and heads tied to its embedding.

    Args:
        model: A Hugging Face folder or hub name.
        skip: Names and patterns of matrices that stay as they are.

    Raises:
        InputError: It cannot be used.
    """
    if is_compressed(model):
        raise InputError(f"{model} is already compressed; start from the original, or make it dense first: quasitile export")
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


def bytes_beside(dense: Any, layers: dict[str, Place], limit: int) -> int:
    """Stored bytes of everything but the matrices, headers of weight files of at most `limit` bytes included."""
    rest = uncoded(dense, set(layers))
    numbers = sum(tensor.numel() * dense.storage_dtypes.get(name, tensor.dtype).itemsize for name, tensor in rest.items())
    return numbers + header_bytes({name: tensor.shape for name, tensor in rest.items()}, layers, limit)


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
        num_tokens=settings.calibration.num_windows * settings.calibration.num_tokens,
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
