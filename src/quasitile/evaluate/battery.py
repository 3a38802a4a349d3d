"""Everything that the models will be asked, read and sampled once, so that all of them get the same."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from quasitile.compress.windows import QUESTIONS
from quasitile.errors import InputError
from quasitile.evaluate.choices import Item, choices_from_questions, read_choices
from quasitile.evaluate.entities import Sentence, read_conll
from quasitile.evaluate.properties import REQUIRED
from quasitile.evaluate.settings import EvaluateSettings
from quasitile.folders import read_jsonl

SPLITS = ("train", "phrasing", "test")

Value = TypeVar("Value")


@dataclass
class Battery:
    """The data of every measure; what is empty is not measured."""

    general: list[str] = field(default_factory=list)
    domain: list[str] = field(default_factory=list)
    questions: list[dict[str, Any]] = field(default_factory=list)
    open_questions: list[dict[str, Any]] = field(default_factory=list)
    contexts: list[str] = field(default_factory=list)  # one an open question
    choices: dict[str, list[Item]] = field(default_factory=dict)
    train_sentences: list[Sentence] = field(default_factory=list)
    test_sentences: list[Sentence] = field(default_factory=list)
    properties: list[dict[str, Any]] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)


def read_battery(
    settings: EvaluateSettings, *, reading: str | Path | None = None, general: str | Path | None = None,
    domain: str | Path | None = None, entities: str | Path | Sequence[str | Path] | None = None,
    properties: str | Path | None = None, choices: str | Path | Mapping[str, str | Path] | None = None,
    learned: Sequence[str | Path] = (),
) -> Battery:  # fmt: skip
    """Read the data that was given and sample it by the settings' seed and limits.

    Facts of training papers are asked from the sections that the first of the folders `learned` names: `adapt` and `tune`
    write there what they taught.

    Raises:
        InputError: A file is missing or is not as described in `docs/data.md`.
    """
    battery = Battery()
    if general is not None:
        battery.general = read_texts(general)
    if domain is not None:
        battery.domain = read_texts(domain)
    if reading is not None:
        taught = next(filter(None, map(sections_taught, learned)), set())
        _add_reading(battery, Path(reading), settings, taught, with_domain=domain is None)
    sets = choices if isinstance(choices, Mapping) else {} if choices is None else {"general": choices}
    for name, path in sets.items():
        battery.choices[name] = sample(read_choices(path, settings.seed), settings.num_choices, settings.seed)
    if entities is not None:
        battery.train_sentences, battery.test_sentences = read_sentences(entities, reading, settings)
    if properties is not None:
        battery.properties = sample(read_properties(properties), settings.num_properties, settings.seed)
    battery.prompts = example_prompts([battery.domain, battery.general], settings)
    return battery


def read_texts(path: str | Path) -> list[str]:
    """The texts of a `.txt` file (one) or of a JSON-lines file: `{"text"}` or `{"sections": [{"title", "text"}]}`.

    Raises:
        InputError: The file is missing, a row has neither, or there is no text.
    """
    path = Path(path)
    if path.suffix == ".txt":
        if not path.is_file():
            raise InputError(f"{path} does not exist; check the path")
        texts = [path.read_text(encoding="utf-8")]
    else:
        texts = [_text_of(row, f"{path}, row {number}") for number, row in enumerate(read_jsonl(path), 1)]
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise InputError(f"{path} holds no text; give a file with at least one")
    return texts


def _text_of(row: dict[str, Any], place: str) -> str:
    """The running text of one row."""
    if isinstance(row.get("text"), str):
        return row["text"]
    if isinstance(row.get("sections"), list):
        return running_text(row["sections"])
    raise InputError(f"{place} has neither `text` nor `sections`; expected one of them")


def running_text(sections: Sequence[Mapping[str, Any]]) -> str:
    """Sections with their titles as one text."""
    return "\n\n".join(part for section in sections for part in (section.get("title", ""), section["text"]) if part)


def sections_taught(model: str | Path) -> set[tuple[str, int]]:
    """Document and number of every section that a model was taught, by the questions beside it; none without them."""
    questions = Path(model) / QUESTIONS
    return {place_of(record) for record in read_jsonl(questions)} if questions.is_file() else set()


def place_of(record: dict[str, Any]) -> tuple[str, int]:
    """Document and number of a question's section."""
    return record["metadata"]["document"], record["metadata"]["section"]


def _add_reading(
    battery: Battery, reading: Path, settings: EvaluateSettings, taught: set[tuple[str, int]], with_domain: bool
) -> None:
    """Take the questions, their contexts, choices and (if wanted) held-out text from a reading folder."""
    sections = read_jsonl(reading / "sections.jsonl")
    questions = read_jsonl(reading / QUESTIONS)
    if with_domain:
        held_out: dict[str, list[dict[str, Any]]] = {}
        for section in sections:
            if section["split"] == "test":
                held_out.setdefault(section["document"], []).append(section)
        battery.domain = [running_text(parts) for parts in held_out.values()]
    texts = {(section["document"], section["section"]): section["text"] for section in sections}
    for split in SPLITS:
        asked = [record for record in questions if record["metadata"]["split"] == split]
        asked = [record for record in asked if place_of(record) in taught] or asked
        asked = sample(asked, settings.num_questions, settings.seed)
        battery.questions += asked
        battery.open_questions += sample(asked, settings.num_open_questions, settings.seed)
    for record in battery.open_questions:
        if place_of(record) not in texts:
            raise InputError(f"{reading / QUESTIONS}: {record['metadata']['id']} has no section; run `read` again")
        battery.contexts.append(texts[place_of(record)])
    unseen = [record for record in questions if record["metadata"]["split"] != "train"] or questions
    unseen = sample(unseen, 4 * settings.num_choices, settings.seed)  # not every question makes an item
    items = choices_from_questions(unseen, settings.seed, pool=questions)
    if items:
        battery.choices["domain"] = sample(items, settings.num_choices, settings.seed)


def read_sentences(
    entities: str | Path | Sequence[str | Path], reading: str | Path | None, settings: EvaluateSettings
) -> tuple[list[Sentence], list[Sentence]]:
    """Annotated sentences to learn from and to score: a pair of files, or one file split as the reading's documents are.

    Raises:
        InputError: One file without a reading, more than two files, or a side without a sentence.
    """
    paths = [entities] if isinstance(entities, str | Path) else list(entities)
    if len(paths) == 2:
        train, test = map(read_conll, paths)
    elif len(paths) != 1:
        raise InputError(f"entities has {len(paths)} files; give one file, or one to learn from and one to test on")
    elif reading is None:
        raise InputError(f"{paths[0]} cannot be split without a reading folder; give `reading`, or a pair of files")
    else:
        documents = read_jsonl(Path(reading) / "documents.jsonl")
        held_out = {row["document"] for row in documents if row["split"] == "test"}
        sentences = read_conll(paths[0])
        train = [sentence for sentence in sentences if sentence.document not in held_out]
        test = [sentence for sentence in sentences if sentence.document in held_out]
    for side, found in (("to learn from", train), ("to test on", test)):
        if not found:
            raise InputError(f"{', '.join(map(str, paths))}: no sentence {side}; annotate documents of both splits")
    return sample(train, settings.train_sentences, settings.seed), sample(test, settings.test_sentences, settings.seed)


def read_properties(path: str | Path) -> list[dict[str, Any]]:
    """Property records.

    Raises:
        InputError: The file is missing, or a row (named) lacks a key.
    """
    records = read_jsonl(path)
    for number, record in enumerate(records, 1):
        for key in REQUIRED:
            if not record.get(key):
                raise InputError(f"{path}, row {number} has no `{key}`; expected {', '.join(REQUIRED)} and `unit`")
    return records


def sample(values: Sequence[Value], most: int, seed: int) -> list[Value]:
    """At most so many of the values, drawn by a seed, in their order."""
    if len(values) <= most:
        return list(values)
    return [values[index] for index in sorted(random.Random(seed).sample(range(len(values)), most))]


def example_prompts(sources: Sequence[Sequence[str]], settings: EvaluateSettings) -> list[str]:
    """The first words of some texts, from the sources in turn."""
    longest = max(map(len, sources), default=0)
    texts = [source[place] for place in range(longest) for source in sources if place < len(source)]
    return [" ".join(text.split()[: settings.example_prompt_words]) for text in texts[: settings.num_examples]]
