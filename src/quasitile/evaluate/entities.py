"""Named entities: CoNLL files, and strict precision, recall and F1 by seqeval's default convention."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from quasitile.errors import InputError

DOCUMENT = re.compile(r"#\s*(?:document\s*=\s*(?P<name>.*\S)|doc=(?P<word>\S+).*)\s*")
LABEL = re.compile(r"O|[BI]-\S+")


class Sentence(NamedTuple):
    """The words of a sentence, a BIO label for each, and the document they stand in."""

    document: str
    words: tuple[str, ...]
    labels: tuple[str, ...]


class Entity(NamedTuple):
    """An entity of words `[start, stop)`."""

    label: str
    start: int
    stop: int


def read_conll(path: str | Path) -> list[Sentence]:
    """Sentences of a file with `word<TAB>label` lines and blank lines between sentences.

    Lines `# document = NAME` (or `# doc=NAME ...`) name the document of what follows; other lines
    without a tab that begin with `#` are comments. Columns after the second are not read.

    Raises:
        InputError: The file is missing, or a line (named) is not as described.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; check the path") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error}); convert it") from error
    sentences, document = [], ""
    words, labels = [], []
    for number, line in enumerate([*lines, ""], 1):
        columns = line.split("\t")
        if len(columns) >= 2:
            if not LABEL.fullmatch(columns[1]):
                raise InputError(f"{path}:{number} has the label {columns[1]!r}; expected O, B-NAME or I-NAME")
            words.append(columns[0])
            labels.append(columns[1])
            continue
        if line.strip() and not line.startswith("#"):
            raise InputError(f"{path}:{number} is {line[:40]!r}; expected a word, a tab and a label")
        if words:
            sentences.append(Sentence(document, tuple(words), tuple(labels)))
            words, labels = [], []
        if named := DOCUMENT.fullmatch(line):
            document = named["name"] or named["word"]
    return sentences


def entities_of(labels: Sequence[str]) -> list[Entity]:
    """The entities of a sentence's BIO labels.

    As in seqeval's default mode, an entity begins at every `B-`, and at an `I-` that does not
    continue an entity of its own name.
    """
    entities: list[Entity] = []
    name, start = None, 0
    for place, label in enumerate([*labels, "O"]):
        continues = label.startswith("I-") and label[2:] == name
        if continues:
            continue
        if name is not None:
            entities.append(Entity(name, start, place))
        name, start = (None if label == "O" else label[2:]), place
    return entities


def repaired(labels: Sequence[str]) -> list[str]:
    """The same entities in well-formed BIO: an `I-` that continues nothing becomes a `B-`."""
    before = ["O", *labels]
    return [
        f"B-{label[2:]}" if label.startswith("I-") and previous[2:] != label[2:] else label
        for previous, label in zip(before, labels, strict=False)
    ]


def entity_scores(expected: Iterable[Sequence[str]], predicted: Iterable[Sequence[str]]) -> dict[str, Any]:
    """Strict scores of predicted labels, sentence by sentence: an entity counts if its name and both ends agree.

    Returns:
        `f1`, `precision`, `recall` over all entities (micro average), `num_entities` expected, and
        the same for each name in `by_label`.
    """
    wanted, found, right = Counter(), Counter(), Counter()
    for true_labels, given_labels in zip(expected, predicted, strict=True):
        true, given = set(entities_of(true_labels)), set(entities_of(given_labels))
        wanted.update(entity.label for entity in true)
        found.update(entity.label for entity in given)
        right.update(entity.label for entity in true & given)
    by_label = {label: scores(right[label], found[label], wanted[label]) for label in sorted(wanted | found)}
    return {**scores(right.total(), found.total(), wanted.total()), "by_label": by_label}


def scores(num_right: int, num_found: int, num_wanted: int) -> dict[str, float]:
    """Precision, recall and F1 from counts; zero where there is nothing to divide by."""
    return {
        "f1": 2 * num_right / max(num_found + num_wanted, 1),
        "precision": num_right / max(num_found, 1),
        "recall": num_right / max(num_wanted, 1),
        "num_entities": num_wanted,
    }
