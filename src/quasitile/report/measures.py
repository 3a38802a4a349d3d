"""The main table: what is measured, what it means, and each model's number as printed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quasitile.report.formats import BITS, COUNT, DASH, NATS, PERPLEXITY, RATE, SHARE, SHORT_SECONDS, SIZE, Format, number, pick


@dataclass(frozen=True)
class Measure:
    """One row of the main table: where the number is, how it looks, what it means."""

    path: tuple[str, ...]
    label: str
    look: Format
    lower_is_better: bool
    line: str
    unit: str = ""
    count: str = ""
    noun: str = ""


@dataclass(frozen=True)
class Cell:
    """A number of the main table as printed, and how it compares."""

    model: str
    text: str
    best: bool = False
    verdict: str = ""


@dataclass(frozen=True)
class Row:
    """A measure and its cells."""

    measure: Measure
    line: str
    cells: list[Cell]


PLURALS = {"token": "tokens", "question": "questions", "entity": "entities", "property record": "property records"}


def _loss(key: str, text: str) -> list[Measure]:
    return [
        Measure(
            (key, "nats_per_token"),
            "Loss",
            NATS,
            True,
            f"How much the next word piece of {text} surprises the model.",
            "nats per token",
            "num_tokens",
            "token",
        ),
        Measure(
            (key, "perplexity"),
            "Perplexity",
            PERPLEXITY,
            True,
            "The same, told as the number of equally likely word pieces it hesitates between.",
        ),
        Measure(
            (key, "bits_per_character"),
            "Bits per character",
            BITS,
            True,
            "The same per character, comparable between models with different vocabularies.",
        ),
    ]


def _choices(key: str, text: str) -> Measure:
    return Measure(
        ("choices", key, "accuracy"),
        "Multiple choice",
        SHARE,
        False,
        f"Picks the right one of several given answers {text}.",
        "right",
        "num_questions",
        "question",
    )


def _answers(book: str) -> list[Measure]:
    splits = {
        "train": ("As taught", "questions in the very words it was taught with"),
        "phrasing": ("In new words", "facts it was taught, asked in words it has never seen"),
        "test": ("Held-out documents", "questions about documents it was never taught"),
    }
    rows = []
    for split, (label, line) in splits.items():
        exact = Measure(
            ("answers", book, split, "exact_match"),
            f"{label}, exact",
            SHARE,
            False,
            f"The whole answer is right: {line}.",
            "right",
            "num_questions",
            "question",
        )
        overlap = Measure(
            ("answers", book, split, "token_f1"),
            f"{label}, in part",
            SHARE,
            False,
            "Words shared with the right answer: credit for being partly right.",
            "token F1",
        )
        rows += [exact, overlap]
    return rows


def _extraction(key: str, noun: str, line: str) -> list[Measure]:
    name, plural = PLURALS[noun].capitalize(), PLURALS[noun]
    return [
        Measure(
            (key, "f1"), f"{name}, F1", SHARE, False, line, count=f"num_{key if key == 'entities' else 'records'}", noun=noun
        ),
        Measure((key, "precision"), f"{name}, precision", SHARE, False, f"The share of the {plural} it gave that are right."),
        Measure((key, "recall"), f"{name}, recall", SHARE, False, f"The share of the {plural} in the text that it found."),
    ]


GROUPS: dict[str, list[Measure]] = {
    "Size": [
        Measure(("stored_bytes",), "On disk", SIZE, True, "Everything in the weight files."),
        Measure(("resident_bytes",), "In memory", SIZE, True, "What the weights take once the model is loaded."),
        Measure(("stored_parameters",), "Stored numbers", COUNT, True, "How many numbers the weight files hold."),
    ],
    "General English": [
        *_loss("general", "ordinary English it has not seen"),
        _choices("general", "to everyday questions"),
    ],
    "Language of the field": [
        *_loss("domain", "scientific text from the field it was not taught"),
        _choices("domain", "to questions of the field"),
    ],
    "Closeness to the original": [
        Measure(
            ("divergence", "logit_kl_nats"),
            "Change in predictions",
            NATS,
            True,
            "How far its next-word probabilities lie from the original's (KL divergence); zero means no change.",
            "nats",
        ),
    ],
    "Questions, from memory": _answers("closed_book"),
    "Questions, with the section at hand": _answers("open_book"),
    "Facts pulled out of text": [
        *_extraction("entities", "entity", "Finds materials, properties and the like, with exact boundaries."),
        *_extraction("properties", "property record", "Finds material, property, value and unit together."),
    ],
    "Cost of use": [
        Measure(("cost", "load_seconds"), "Loading", SHORT_SECONDS, True, "Time until the model is ready."),
        Measure(
            ("cost", "prefill_tokens_per_second"),
            "Reading speed",
            RATE,
            False,
            "How fast it takes in a prompt.",
            "tokens per second",
        ),
        Measure(
            ("cost", "decode_tokens_per_second"),
            "Writing speed",
            RATE,
            False,
            "How fast it writes an answer.",
            "tokens per second",
        ),
        Measure(("cost", "peak_memory_bytes"), "Peak memory", SIZE, True, "The most memory it took while it was measured."),
    ],
}


def measure_row(measure: Measure, models: dict[str, dict[str, Any]]) -> Row | None:
    """The measure for every model, or `None` where no model has it.

    Numbers are compared as they are printed, so that no difference is claimed that cannot be seen.
    """
    values = {name: pick(model, *measure.path) for name, model in models.items()}
    found = {name: number(value) for name, value in values.items()}
    known = {name: value for name, value in found.items() if value is not None}
    if not known:
        return None
    texts = {name: measure.look(values[name]) for name in models}
    sign = 1 if measure.lower_is_better else -1
    best = texts[min(known, key=lambda name: sign * known[name])]
    differ = len({texts[name] for name in known}) > 1
    cells = []
    for name in models:
        verdict = ""
        if name != "original" and name in known and "original" in known and texts[name] != texts["original"]:
            verdict = "better" if sign * known[name] < sign * known["original"] else "worse"
        cells.append(Cell(name, texts[name], differ and name in known and texts[name] == best, verdict))
    return Row(measure, _explained(measure, models), cells)


def _explained(measure: Measure, models: dict[str, dict[str, Any]]) -> str:
    """The measure's plain-English line, with what guessing gets and how much it was measured on."""
    line = measure.line
    parents = [pick(model, *measure.path[:-1]) for model in models.values()]
    chances = sorted({SHARE(pick(parent, "chance")) for parent in parents} - {DASH})
    if measure.path[0] == "choices" and chances:
        line += f" Guessing gets {', '.join(chances)}."
    counts = sorted({value for parent in parents if (value := number(pick(parent, measure.count))) is not None})
    if measure.count and counts:
        found = (f"{COUNT(count)} {measure.noun if count == 1 else PLURALS[measure.noun]}" for count in counts)
        line += f" Measured on {' or '.join(found)}."
    return line


def main_table(models: dict[str, dict[str, Any]]) -> tuple[list[tuple[str, list[Row]]], list[str]]:
    """The groups of rows that have data, and the names of the groups that have none."""
    groups, empty = [], []
    for name, measures in GROUPS.items():
        rows = [row for measure in measures if (row := measure_row(measure, models))]
        if rows:
            groups.append((name, rows))
        else:
            empty.append(name)
    return groups, empty
