"""The stage `compress` for a model on disk that is not loaded: what `pipeline` does in memory, see `outofcore`."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quasitile.checkpoint import check_tensors, header_bytes, stored_bytes, tensor_headers
from quasitile.checkpoint.shards import checksum, weight_files
from quasitile.codec.coding import Coding
from quasitile.compress.correct_streamed import layers_fit
from quasitile.compress.fanout import fan_out
from quasitile.compress.journal import Journal
from quasitile.compress.layout import check_tiles
from quasitile.compress.midway import once_more
from quasitile.compress.numbers import number_share
from quasitile.compress.outofcore import Amounts, OutOfCore, stored_as
from quasitile.compress.picture import layout
from quasitile.compress.pieces import RESIDENT_NUMBERS, largest_layer
from quasitile.compress.size import BITS_OF_NUMBER, parse_size
from quasitile.compress.stack import find_stack
from quasitile.compress.streaming import Walk
from quasitile.compress.tasks import MatrixTask
from quasitile.compress.windows import QUESTIONS, calibration_windows
from quasitile.errors import InputError
from quasitile.folders import Stage, peak_memory_bytes, stage_folder, write_json
from quasitile.progress import human_bytes, say
from quasitile.runtime import check_vocabulary, device_of, load_tokenizer, uncoded
from quasitile.runtime.device import with_room
from quasitile.runtime.skeleton import Skeleton

if TYPE_CHECKING:
    from quasitile.compress.settings import CompressSettings

STREAM_SHARE = 0.25  # of the available memory; a model in memory needs about three times its size in float32
CORRECTED_BITS = 3.0  # above so many a weight, errors are too small to be worth the time from disk
WORK = "work"
CodingFor = Callable[[float], Coding]  # from the share of the weights' numbers that are stored, see `numbers`


def wants_stream(model: str | Path, settings: CompressSettings) -> bool:
    """Whether a model is to be worked on from its shards.

    Raises:
        InputError: It is asked for and cannot be.
    """
    wish = settings.calibration.stream
    reason = ""
    if not Path(model).is_dir():
        reason = "it is not a local folder; download it first"
    elif settings.tiling.name == "hierarchical":
        reason = "the hierarchical tiling looks at all weights at once; choose another tiling"
    elif settings.modules != "none" or settings.structure != "none" or settings.skip:
        reason = "modules, structure and skip need the model in memory; leave them out"
    elif settings.order != "none" or settings.axes.kind != "none":
        reason = "order and axes need the model in memory; leave them out"
    if reason:
        if wish == "yes" or settings.calibration.propagate == "compressed":
            raise InputError(f"{model} cannot be streamed: {reason}")
        return False
    if wish != "auto":
        return wish == "yes"
    if settings.calibration.propagate == "compressed":
        return True
    num_numbers = sum(math.prod(entry["shape"]) for entry in tensor_headers(model).values())
    return 4 * num_numbers > STREAM_SHARE * available_bytes()


def available_bytes() -> int:
    """Memory that a process may take without pushing others out."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # no Linux
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def identity_of(model: Path) -> str:
    """A change of the model's files changes this; their contents are not read."""
    files = [*weight_files(model), model / "config.json"]
    return ";".join(f"{file.name}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files)


def compress_from_shards(
    model: Path, out: Path, text: Path, settings: CompressSettings, coding_for: CodingFor, reading: Path | None = None
) -> dict[str, Any]:
    """See `pipeline.compress`.

    A run that was killed continues in the work folder that it left, and ends in the same bytes.

    Raises:
        InputError: The model cannot be used, or the size cannot be met; then nothing is left.
        NotAStack: The model is no stack of layers.
    """
    workers = settings.workers or len(os.sched_getaffinity(0))
    inputs = {"model": model, "text": text} | ({"reading": reading} if reading else {})
    with (
        fan_out(workers, settings.ray) as run,
        stage_folder(out, "compress", settings, settings.seed, resume=True, **inputs) as stage,
    ):
        _compress(model, text, reading, settings, coding_for, run, stage)
        shutil.rmtree(stage.path / WORK)
    say(f"  {human_bytes(stage.summary['original_bytes'])} in bf16 -> {human_bytes(stage.summary['stored_bytes'])}")
    return stage.summary


def _compress(
    model: Path,
    text: Path,
    reading: Path | None,
    settings: CompressSettings,
    coding_for: CodingFor,
    run: Any,
    stage: Stage,
) -> None:
    for earlier in stage.path.iterdir():  # of an attempt that was killed while it wrote
        if earlier.name != WORK:
            earlier.unlink()
    clock = Clock(stage)
    check_tensors(model)
    skeleton = Skeleton(model)
    check_kind(skeleton.model, model)
    check_tiles({name: tuple(place.weight.shape) for name, place in skeleton.layers.items()}, settings)
    amount = settings.calibration
    identity = identity_of(model)
    windows = calibration_windows(load_tokenizer(model), text, amount, settings.seed, reading)
    purpose = [settings.model_dump(mode="json", exclude={"workers", "ray"}), identity, checksum(text)]
    purpose += [checksum(reading / QUESTIONS)] if reading else []
    check_vocabulary(model, skeleton.model, int(windows.max()) + 1)
    num_parameters = sum(parameter.numel() for parameter in skeleton.model.parameters())
    target = parse_size(settings.size, 2 * num_parameters)
    rest = {name: stored_as(tensor, skeleton.dtype) for name, tensor in uncoded(skeleton.model).items()}
    rest_bytes = sum(tensor.numel() * tensor.dtype.itemsize for tensor in rest.values())
    if target.num_bytes is not None:
        headers = header_bytes({name: tensor.shape for name, tensor in rest.items()}, skeleton.layers, target.num_bytes)
        amounts = Amounts(target.num_bytes, rest_bytes + headers, "bytes")
        room, number_bits = target.num_bytes - amounts.rest, settings.number_bits
    else:
        assert target.num_parameters is not None
        amounts = Amounts(target.num_parameters, sum(tensor.numel() for tensor in rest.values()), "numbers")
        room, number_bits = target.num_parameters * BITS_OF_NUMBER / 8, BITS_OF_NUMBER
    if room <= 0:
        raise InputError(f"the target of {amounts.target} cannot be met: what is no matrix takes {amounts.rest}; raise --size")
    tiling = settings.tiling.name, settings.tiling.short, settings.tiling.seed
    journal = Journal(stage.path / WORK, purpose)
    # a layer's weights in float32, and as much again for what is between
    needed = 2 * 4 * min(RESIDENT_NUMBERS, largest_layer(skeleton, find_stack(skeleton.model)[0]))
    skeleton.compute_on(with_room(device_of(settings.device), needed))
    share = number_share(8 * room, number_bits, sum(place.weight.numel() for place in skeleton.layers.values()))
    work = OutOfCore(skeleton, journal, identity, coding_for(share), tiling, amount.moment_bytes, run, str(model))
    clock.lap("prepare")
    walk = work.calibrate(windows, amount.batch_size, settings.seed)
    clock.lap("calibrate")
    tasks = work.tasks()
    bits = 8 * room / sum(math.prod(task.shape) for task in tasks)

    def coded(work: OutOfCore, walk: Walk, tasks: list[MatrixTask]) -> tuple[dict[str, dict[str, Any]], float]:
        plan = work.allocate(tasks, amounts, room, walk if amount.propagate == "compressed" else None)
        clock.lap("code")
        if not corrects(walk, model, amount.propagate, bits):
            return plan[0], plan[1]
        facts = work.correct(walk, tasks, amounts, plan)
        clock.lap("correct")
        return facts, plan[1]

    facts, step = coded(work, walk, tasks)
    if amount.prices_midway(bits):
        work, walk, tasks = once_more(work, walk, tasks, facts)
        clock.lap("calibrate midway")
        facts, step = coded(work, walk, tasks)
    picture = work.picture(tasks, facts)
    work.write(facts, stage.path)
    if picture is not None:
        write_json(stage.path / "picture.json", layout(picture[0].name, picture[1]))
    clock.lap("write")
    stored = stored_bytes(stage.path)
    stage.summary |= {
        "original_bytes": 2 * num_parameters,
        "target_bytes": target.num_bytes,
        "stored_bytes": stored,
        "stored_parameters": sum(tensor.numel() for tensor in rest.values()) + sum(each["numbers"] for each in facts.values()),
        "num_parameters": num_parameters,
        "bits_per_weight": 8 * stored / num_parameters,
        "predicted_damage_nats": sum(each["damage"] for each in facts.values()),
        "step": step,
        "calibration_tokens": windows.numel(),
        "matrices": [describe(task.name, task.shape, settings.tiling.name, facts[task.name]) for task in tasks],
    }


def corrects(walk: Walk, model: Path, propagate: str, bits: float) -> bool:
    """Whether layers are coded behind coded ones, and make up for their errors.

    Args:
        walk: The calibration.
        model: For the message.
        propagate: See `CalibrationSettings`.
        bits: A weight.

    Raises:
        InputError: It is asked for and not possible.
    """
    if propagate not in ("auto", "corrected") or (propagate == "auto" and bits > CORRECTED_BITS):
        return False
    if layers_fit(walk):
        return True
    if propagate == "corrected":
        raise InputError(
            f"calibration.propagate=corrected is not possible: a layer of {model} has more than {RESIDENT_NUMBERS} weights, "
            "and correction needs one in memory; set it to original"
        )
    say("  not coded behind coded layers: a layer is too large to be in memory")
    return False


class Clock:
    """Seconds (by the clock, and of this process' computing) and peak memory of each part, into the stage's metrics."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.started, self.computed = stage, time.monotonic(), time.process_time()

    def lap(self, part: str) -> None:
        """A part is over."""
        now, computed = time.monotonic(), time.process_time()
        self.stage.metric(
            part=part,
            seconds=round(now - self.started, 3),
            cpu_seconds=round(computed - self.computed, 3),
            peak_memory_bytes=peak_memory_bytes(),
        )
        self.started, self.computed = now, computed


def check_kind(model: Any, folder: Path) -> None:
    """Refuse models that calibration cannot feed.

    Raises:
        InputError: This is one, or it has no matrix.
    """
    if model.main_input_name != "input_ids":
        raise InputError(f"{folder} reads {model.main_input_name}, no tokens; calibration needs a model that reads text")
    if model.config.is_encoder_decoder:
        raise InputError(f"{folder} is an encoder with a decoder, which calibration cannot feed yet; give one of the two alone")


def describe(name: str, shape: tuple[int, int], tiling: str, facts: dict[str, Any]) -> dict[str, Any]:
    """The summary's line about one matrix."""
    return {
        "name": name,
        "shape": list(shape),
        "tiling": tiling,
        "num_tiles": facts["num_tiles"],
        "mean_rank": facts["mean_rank"],
        "max_rank": facts["max_rank"],
        "stored_bytes": facts["bytes"],
        "bits_per_weight": 8 * facts["bytes"] / (shape[0] * shape[1]),
        "relative_squared_error": facts["squared_error"] / max(facts["power"], 1e-30),
        "kept_share": facts["kept"],
        "predicted_damage_nats": facts["damage"],
    }
