"""The stages in order, into one run folder, resumable after a kill."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from quasitile.adapt import adapt
from quasitile.align import align
from quasitile.baselines import TuneSettings, tune
from quasitile.checkpoint import stored_bytes
from quasitile.compress import compress, inspect, sample
from quasitile.compress.size import parse_size
from quasitile.errors import InputError
from quasitile.evaluate import evaluate
from quasitile.folders import peak_memory_bytes, provenance, read_json, read_jsonl, write_json, write_jsonl, write_yaml
from quasitile.progress import say
from quasitile.reading import read
from quasitile.recipe import Recipe, load_recipe, resolve
from quasitile.report import report
from quasitile.runtime.export import export

FOLDERS = {
    "inspect": "plan",
    "sample": "text",
    "warm_up": "warmed-up",
    "compress": "compressed",
    "align": "aligned",
    "read": "reading",
    "adapt": "adapted",
    "finish": "finished",
    "evaluate": "evaluation",
}
DENSE = "adapted-dense"  # what has read as a dense checkpoint, while it is compressed further
TYPICAL_BYTES = 2**34  # any number does, to see whether a size is one
LEAST_TO_LEARN = 6.25  # per cent of the bytes: one bit a weight; at half a bit a quarter is learned (docs/results/learning.md)
TITLES = {
    "inspect": "look at the model",
    "sample": "sample general text from the model",
    "warm_up": "let the original read the text of the papers",
    "compress": "compress",
    "align": "align with the original",
    "read": "read the papers",
    "adapt": "learn, section by section",
    "finish": "compress what was learned further",
    "evaluate": "measure",
}


def run(recipe: str | Path | Recipe | None = None, out: str | Path = "run", *, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Everything in order: inspect, compress, align, read, adapt, evaluate, report.

    With a warm-up, the papers are read first and the original learns their text; what is compressed, and imitated
    afterwards, is the model that has. With `finish.size`, the model that has read is compressed further, calibrated on
    what it was taught too. Finished stages are kept: a run that was stopped goes on where it stopped.

    Args:
        recipe: A YAML file or a `Recipe`; the embedded one by default.
        out: The run folder.
        overrides: `key.key=value` each, on top of the recipe.

    Returns:
        The run's summary (docs/data.md).

    Raises:
        InputError: Something the recipe names cannot be used, or `out` belongs to another recipe.
    """
    recipe = ready_to_learn(recipe if isinstance(recipe, Recipe) else load_recipe(recipe, overrides))
    out = Path(out)
    inputs = check_inputs(recipe)
    claim(out, recipe)
    hint_at_finish(recipe)
    started = time.monotonic()
    calls = stage_calls(recipe, out, *inputs)
    for number, (stage, call) in enumerate(calls.items(), 1):
        folder = out / FOLDERS[stage]
        if (folder / "provenance.json").is_file():
            say(f"[{number}/{len(calls)}] {TITLES[stage]}: already done")
            continue
        say(f"[{number}/{len(calls)}] {TITLES[stage]}")
        call()
    summary = summarise(recipe, out, list(calls), time.monotonic() - started)
    report(out)
    return summary


def ready_to_learn(recipe: Recipe) -> Recipe:
    """Without a trellis unless the recipe asks for one: storing puts trained codes back on it, which undoes small changes."""
    if "trellis" in recipe.compress.model_fields_set:
        return recipe
    return recipe.model_copy(update={"compress": recipe.compress.model_copy(update={"trellis": 1})})


def hint_at_finish(recipe: Recipe) -> None:
    """Say where a model is to read at a size at which reading may teach little."""
    size = recipe.compress.size.strip()
    if size.endswith("%") and float(size[:-1]) < LEAST_TO_LEARN and not recipe.finish.size:
        say(f"  reading may teach little at compress.size={size}; better read at 25% (docs/learning.md): finish.size={size}")


def grows(compress: str, finish: str) -> bool:
    """Whether the second of two sizes is above the first; unknown, hence no, where only one of them is a share."""
    if compress.strip().endswith("%") != finish.strip().endswith("%"):
        return False
    before, after = parse_size(compress, TYPICAL_BYTES), parse_size(finish, TYPICAL_BYTES)
    pairs = (before.num_bytes, after.num_bytes), (before.num_parameters, after.num_parameters)
    return any(first is not None and second is not None and second > first for first, second in pairs)


def check_inputs(recipe: Recipe) -> tuple[str, str]:
    """Resolve the model and the papers before anything is made.

    Raises:
        InputError: The papers are missing, a size is none or above the one before, or the recipe is a baseline's.
    """
    sizes = {"compress": recipe.compress.size, "finish": recipe.finish.size or recipe.compress.size}
    for stage, size in sizes.items():
        try:
            parse_size(size, TYPICAL_BYTES)
        except InputError as error:
            raise InputError(f"{stage}.{error}") from error
    if grows(**sizes):
        raise InputError(
            f"finish.size={sizes['finish']} is above compress.size={sizes['compress']}, and what was lost does not come back; "
            "leave finish out, or lower it"
        )
    if recipe.baseline.name != "none":
        raise InputError(
            f"baseline.name={recipe.baseline.name} makes a dense model, which cannot be aligned or adapted; "
            "use it with `quasitile compress --recipe`"
        )
    papers = resolve(recipe.papers)
    if not Path(papers).exists():
        raise InputError(f"{papers} does not exist; give a folder of papers")
    return resolve(recipe.model), papers


def claim(out: Path, recipe: Recipe) -> None:
    """Make the run folder this recipe's own.

    Raises:
        InputError: It belongs to another recipe, or holds something else.
    """
    content = recipe.model_dump(mode="json")
    mark = out / "recipe.yaml"
    if mark.is_file():
        earlier = load_recipe(mark)
        if earlier != recipe:
            changed = [key for key in content if content[key] != earlier.model_dump(mode="json")[key]]
            raise InputError(f"{out} is a run of another recipe (it differs in {', '.join(changed)}); choose another --out")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is no run folder; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_yaml(mark, content)


def stage_calls(recipe: Recipe, out: Path, model: str, papers: str) -> dict[str, Callable[[], Any]]:
    """What each stage does, in order."""
    data = recipe.data
    text = Path(resolve(data.text)) if data.text else out / FOLDERS["sample"] / "samples.jsonl"
    place = {stage: out / folder for stage, folder in FOLDERS.items()}

    warmed = str(place["warm_up"]) if recipe.warm_up.num_steps else model

    def warm_up() -> dict[str, Any]:
        settings = TuneSettings(train="full", data="text", **recipe.warm_up.model_dump())
        return tune(model, place["read"], place["warm_up"], settings, text=text)

    def optional(location: str) -> str | None:
        return resolve(location) if location else None

    def finish() -> dict[str, Any]:
        whole = recipe.compress
        share = {"reading_share": recipe.finish.reading_share}
        changes = {"size": recipe.finish.size, "trellis": recipe.finish.trellis}
        settings = whole.model_copy(update={**changes, "calibration": whole.calibration.model_copy(update=share)})
        dense = out / DENSE
        if not (dense / "provenance.json").is_file():
            export(place["adapt"], dense)
        summary = compress(dense, place["finish"], text=text, reading=place["adapt"], settings=settings)
        shutil.rmtree(dense)
        return summary

    def measure() -> dict[str, Any]:
        models = {"original": model, "compressed": place["compress"], "aligned": place["align"], "adapted": place["adapt"]}
        if recipe.finish.size:
            models["finished"] = place["finish"]
        entities = [resolve(file) for file in data.entities]
        return evaluate(
            models,
            place["evaluate"],
            reading=place["read"],
            general=optional(data.general),
            domain=optional(data.domain),
            entities=entities[0] if len(entities) == 1 else entities or None,
            properties=optional(data.properties),
            choices={name: resolve(file) for name, file in data.choices.items()} or None,
            settings=recipe.evaluate,
        )

    calls: dict[str, Callable[[], Any]] = {
        "inspect": lambda: inspect(model, place["inspect"], recipe.inspect),
        "sample": lambda: sample(model, place["sample"], recipe.sample),
        "compress": lambda: compress(warmed, place["compress"], text=text, settings=recipe.compress),
        "align": lambda: align(place["compress"], place["align"], teacher=warmed, text=text, settings=recipe.align),
        "read": lambda: read(papers, place["read"], recipe.read),
        "adapt": lambda: adapt(place["align"], place["read"], place["adapt"], teacher=warmed, text=text, settings=recipe.adapt),
        "finish": finish,
        "evaluate": measure,
    }
    if not recipe.finish.size:
        del calls["finish"]
    if data.text:
        del calls["sample"]
    if recipe.warm_up.num_steps:
        first = [stage for stage in ("inspect", "sample") if stage in calls]
        calls = {stage: calls[stage] for stage in (*first, "read")} | {"warm_up": warm_up} | calls
    return calls


def summarise(recipe: Recipe, out: Path, stages: list[str], seconds: float) -> dict[str, Any]:
    """Write the run's own `summary.json`, `provenance.json` and `metrics.jsonl`."""
    records = {stage: read_json(out / FOLDERS[stage] / "provenance.json") for stage in stages}
    summaries = {stage: read_json(out / FOLDERS[stage] / "summary.json") for stage in stages}
    last = "finish" if "finish" in stages else "adapt"
    sizes = summaries["finish" if "finish" in stages else "compress"]
    summary = {
        "name": recipe.name,
        "size": {key: sizes[key] for key in ("original_bytes", "target_bytes", "bits_per_weight")}
        | {"stored_bytes": stored_bytes(out / FOLDERS[last])},
        "stages": summaries,
        "seconds": {stage: record["seconds"] for stage, record in records.items()},
        "peak_memory_bytes": max(peak_memory_bytes(), *(record["peak_memory_bytes"] for record in records.values())),
    }
    metrics = [
        {"stage": stage, **row}
        for stage in stages
        if (out / FOLDERS[stage] / "metrics.jsonl").is_file()
        for row in read_jsonl(out / FOLDERS[stage] / "metrics.jsonl")
    ]
    write_jsonl(out / "metrics.jsonl", metrics)
    write_json(out / "summary.json", summary)
    write_json(
        out / "provenance.json", provenance("run", recipe.seed, seconds, {"model": recipe.model, "papers": recipe.papers})
    )
    return summary
