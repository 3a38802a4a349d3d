"""The stage: models and data in, one evaluation folder out."""

from __future__ import annotations

import difflib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quasitile.errors import InputError
from quasitile.evaluate.battery import read_battery
from quasitile.evaluate.measures import Subject, continuations, measure, reference_states, sizes
from quasitile.evaluate.settings import EvaluateSettings
from quasitile.folders import stage_folder, write_json, write_jsonl
from quasitile.runtime import device_of, load_model

MODELS = ("original", "compressed", "aligned", "tuned", "adapted", "finished")


def evaluate(
    models: Mapping[str, str | Path], out: str | Path, *, reading: str | Path | None = None,
    general: str | Path | None = None, domain: str | Path | None = None,
    entities: str | Path | Sequence[str | Path] | None = None, properties: str | Path | None = None,
    choices: str | Path | Mapping[str, str | Path] | None = None, settings: EvaluateSettings | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measure models side by side on the same data and write the evaluation folder (`docs/data.md`).

    One model is in memory at a time. A measure whose data is not given is left out.

    Args:
        models: Folders or hub names of some of `original`, `compressed`, `aligned`, `tuned`, `adapted`, `finished`.
        out: The folder to make.
        reading: A reading folder: questions, and its held-out documents where `domain` is not given. Where `adapted` or
            `tuned` says what it was taught, questions on training papers are about those sections.
        general: Held-out general text, `.txt` or JSON lines with `text`.
        domain: Held-out text of the field, likewise, or with `sections`.
        entities: A CoNLL file split by the reading's documents, or one to learn from and one to test on.
        properties: Property records.
        choices: Multiple-choice questions or a glossary: a file (`general`), or files by name.
        settings: Limits and seed.

    Returns:
        The folder's summary.

    Raises:
        InputError: A name of a model is unknown, a model cannot be loaded, or data cannot be used.
    """
    settings = settings or EvaluateSettings()
    check_models(models)
    battery = read_battery(
        settings, reading=reading, general=general, domain=domain, entities=entities, properties=properties,
        choices=choices, learned=[models[name] for name in ("adapted", "tuned") if name in models],
    )  # fmt: skip
    inputs = {"models": dict(models), "reading": reading, "general": general, "domain": domain, "entities": entities,
              "properties": properties, "choices": choices}  # fmt: skip
    with stage_folder(out, "evaluate", settings, seed=settings.seed, **inputs) as stage:
        measured, answers, reference = {}, [], []
        examples: list[dict[str, str]] = [{"prompt": prompt} for prompt in battery.prompts]
        for name in [name for name in MODELS if name in models]:
            started = time.perf_counter()
            model, tokenizer = load_model(models[name], device=device_of(settings.device))
            subject = Subject(name, model, tokenizer, time.perf_counter() - started, battery, settings, reference)
            measured[name] = sizes(subject, models[name]) | measure(subject)
            answers += subject.answers
            for example, text in zip(examples, continuations(subject), strict=True):
                example[name] = text
            if name == "original":
                reference = reference_states(subject)
            del model, subject
        stage.summary["models"] = measured
        write_jsonl(stage.path / "answers.jsonl", answers)
        write_json(stage.path / "examples.json", examples)
    return stage.summary


def check_models(models: Mapping[str, str | Path]) -> None:
    """Refuse names that the report does not know.

    Raises:
        InputError: There is no model, or a name is unknown.
    """
    if not models:
        raise InputError(f"no model to evaluate; name at least one of {', '.join(MODELS)}")
    for name in models:
        if name not in MODELS:
            near = difflib.get_close_matches(name, MODELS, 1, 0.0)[0]
            raise InputError(f"model name {name!r} is unknown; did you mean {near!r}? (one of {', '.join(MODELS)})")
