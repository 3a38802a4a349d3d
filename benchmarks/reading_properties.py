"""Property questions against annotated pairs of property and value (MuLMS), beside pairing the nearest words.

    python benchmarks/reading_properties.py DATA/mulms/property_value_pairs.jsonl [--split test] [--show]

Only sentences with annotations are asked, each as a passage of its own. A pair is right when an annotated pair of the same
sentence has the same value (numbers and units written in one form) and a property whose words overlap. The baseline pairs
every quantity with the nearest word of the same list of properties.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from pathlib import Path

from quasitile.folders import read_jsonl
from quasitile.reading.normalise import comparable, count_words, dehyphenate, normalise
from quasitile.reading.quantities import find_quantities, tidy_unit
from quasitile.reading.questions import RULES, Passage
from quasitile.reading.questions.lexicon import PROPERTIES

_PROPERTY = re.compile(rf"\b(?:{'|'.join(sorted(map(re.escape, PROPERTIES), key=len, reverse=True))})s?\b", re.IGNORECASE)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--show", action="store_true", help="print what was wrong or missed")
    options = parser.parse_args()
    gold: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for row in read_jsonl(options.pairs):
        if row["split"].startswith(options.split):
            gold[row["sentence"]].append((row["property"], row["value"]))
    vocabulary = count_words(normalise("\n\n".join(gold)))
    for name, pair in (("rules", by_rule), ("nearest words", nearest)):
        num_right = num_given = num_found = 0
        for sentence, pairs in gold.items():
            wanted = [(dehyphenate(normalise(name), vocabulary), written) for name, written in pairs]
            text = dehyphenate(normalise(sentence), vocabulary)
            given = list(dict.fromkeys(pair(text)))
            hits = [candidate for candidate in given if any(same(candidate, each) for each in wanted)]
            num_given, num_right = num_given + len(given), num_right + len(hits)
            num_found += sum(any(same(candidate, each) for candidate in given) for each in wanted)
            if options.show and name == "rules":
                for candidate in given:
                    if candidate not in hits:
                        print(f"WRONG {candidate}\n   gold {wanted}\n   {text}")
                for each in wanted:
                    if not any(same(candidate, each) for candidate in given):
                        print(f"MISSED {each}\n   {text}")
        num_pairs = sum(map(len, gold.values()))
        print(
            f"{name}: precision {num_right / max(1, num_given):.3f} ({num_right} of {num_given}), "
            f"recall {num_found / num_pairs:.3f} ({num_found} of {num_pairs}), {len(gold)} sentences"
        )


def by_rule(text: str) -> list[tuple[str, str]]:
    """Pairs that the property rule reads: the property is what its conclusion names."""
    pairs = []
    for candidate in RULES["property"](Passage("", "", "", text)):
        pairs.append((candidate.conclusion, candidate.answer))
    return pairs


def nearest(text: str) -> list[tuple[str, str]]:
    words = [(match.start(), match.end(), match[0]) for match in _PROPERTY.finditer(text)]
    pairs = []
    for quantity in find_quantities(text):
        if words:
            closest = min(words, key=lambda word: min(abs(word[1] - quantity.start), abs(word[0] - quantity.stop)))
            pairs.append((closest[2], quantity.text))
    return pairs


def same(given: tuple[str, str], wanted: tuple[str, str]) -> bool:
    ours, theirs = set(comparable(given[0]).split()), set(comparable(wanted[0]).split())
    overlap = bool({singular(word) for word in theirs - {"of"}} & {singular(word) for word in ours})
    return overlap and value(given[1]) == value(wanted[1])


def singular(word: str) -> str:
    return re.sub(r"(?<=ss)es$|(?<!s)s$", "", re.sub(r"ies$", "y", word))


def value(text: str) -> str:
    """A value in one form: the first quantity in it without words, blanks and marks."""
    found = find_quantities(normalise(text).replace("between ", "").replace(" and ", "-"))
    printed = f"{found[0].value} {found[0].unit}" if found else normalise(text)
    return re.sub(r"[\s^~≈·()]|about|approximately|up to", "", tidy_unit(printed)).lower()


if __name__ == "__main__":
    main()
