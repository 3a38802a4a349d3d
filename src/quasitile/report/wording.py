"""The headline in words and in cards, composed from the numbers, honest in either direction."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from quasitile.report.formats import COUNT, NATS, PERPLEXITY, SHARE, SIZE, TIMES, Format, listed, number, pick
from quasitile.report.load import Run

WHERE = {
    "general": ("On ordinary English it has not seen", "its loss, the surprise at each next word piece,"),
    "domain": ("On scientific text from the field", "the loss"),
}
SPLITS = {
    "train": "the questions it was taught",
    "phrasing": "the same facts asked in new words",
    "test": "questions on documents it was not taught",
}


@dataclass(frozen=True)
class Card:
    """A key figure; `tone` is `better`, `worse` or nothing."""

    label: str
    value: str
    note: str
    tone: str = ""


def sizes(run: Run) -> tuple[float | None, float | None]:
    """Bytes of the original and of the last model."""
    before = number(pick(run.summary, "size", "original_bytes"))
    if before is None:
        before = number(pick(run.models, "original", "stored_bytes"))
    after = number(pick(run.models, run.final, "stored_bytes")) if run.final else None
    if after is None:
        after = number(pick(run.summary, "size", "stored_bytes"))
    return before, after


def loss(run: Run, model: str | None, key: str) -> float | None:
    """Nats a token of `model` on `general` or `domain` text."""
    return number(pick(run.models, model, key, "nats_per_token")) if model else None


def before_reading(run: Run) -> str | None:
    """The last evaluated model before it was taught."""
    return next((name for name in ("aligned", "compressed", "original") if name in run.models), None)


def after_reading(run: Run) -> str | None:
    """The last evaluated model that has read."""
    return next((name for name in ("finished", "adapted") if name in run.models), None)


def exact(run: Run, model: str | None, split: str) -> tuple[float | None, float]:
    """Exact match from memory, and the number of questions."""
    found = pick(run.models, model, "answers", "closed_book", split) if model else None
    return number(pick(found, "exact_match")), number(pick(found, "num_questions")) or 0


def learned(before: float, after: float, num_questions: float) -> int:
    """1, -1, or 0 where the change lies within two standard errors of two shares."""
    error = math.sqrt((before * (1 - before) + after * (1 - after)) / num_questions) if num_questions else math.inf
    change = after - before
    return 0 if change == 0 or abs(change) <= 2 * error else int(math.copysign(1, change))


def headline(run: Run) -> list[str]:
    """The sentences of the opening paragraph."""
    parts = [_size(run), _language(run, "general"), _language(run, "domain"), _learning(run)]
    if not run.has("evaluate"):
        parts.append("It has not been evaluated yet, so what was lost and what was learned is not known.")
    return [part for part in parts if part]


def _size(run: Run) -> str:
    before, after = sizes(run)
    if after is None:
        return "The model has not been compressed yet." if not run.has("compress") else ""
    bits = number(pick(run.summary, "size", "bits_per_weight"))
    weight = "" if bits is None else f", at {Format(2)(bits)} bits per weight"
    if before is None:
        text = f"The model now takes {SIZE(after)}{weight}."
    elif after < before:
        text = f"{SIZE(before)} became {SIZE(after)}, {TIMES(before / after)} smaller{weight}."
    else:
        text = f"The model did not become smaller: it took {SIZE(before)} and takes {SIZE(after)}{weight}."
    target = number(pick(run.summary, "size", "target_bytes"))
    if target is not None and after > target:
        text += f" That is above the target of {SIZE(target)}."
    return text


def verdict(start: float, end: float) -> str:
    """What a change of the loss means, as printed."""
    if NATS(start) == NATS(end):
        return "neither better nor worse than the original"
    return "better than the original" if end < start else "worse than the original"


def _language(run: Run, key: str) -> str:
    """How the loss went from the original to the last model."""
    start, end = loss(run, "original", key), loss(run, run.final, key)
    if start is None or end is None:
        return ""
    where, meaning = WHERE[key]
    if NATS(start) == NATS(end):
        moved = f"stayed at {NATS(start)} nats per token"
    else:
        verb = "fell" if end < start else "rose"
        moved = f"{verb} by {NATS(abs(end - start))} nats per token, from {NATS(start)} to {NATS(end)}"
    return f"{where}, {meaning} {moved}: {verdict(start, end)}."


def _learning(run: Run) -> str:
    """What it answers from memory before and after reading, and what that amounts to."""
    after = after_reading(run)
    if after is None:
        return "" if run.has("adapt") else "It has not been taught anything yet."
    before = before_reading(run)
    earlier = {"Before reading": before} | ({"Before it was compressed further": "adapted"} if after == "finished" else {})
    parts: list[str] = []
    was: dict[str, list[float | None]] = {when: [] for when in earlier}
    moved: dict[str, int] = {}
    for split, words in SPLITS.items():
        now, count = exact(run, after, split)
        if now is None or not count:
            continue
        parts.append(f"{SHARE(now)} of {words}")
        for when, model in earlier.items():
            was[when].append(exact(run, model, split)[0])
        if (start := exact(run, before, split)[0]) is not None:
            moved[split] = learned(start, now, count)
    if not parts:
        return ""
    known = [
        f" {when} it was {listed([SHARE(share) for share in shares])}." for when, shares in was.items() if None not in shares
    ]
    return f"From memory it now answers exactly {listed(parts)}.{''.join(known)} {_verdict(moved)}".rstrip()


def _verdict(moved: dict[str, int]) -> str:
    """One sentence about which splits changed beyond chance."""
    if not moved:
        return ""
    parts = []
    rose = [split for split, sign in moved.items() if sign > 0]
    if not rose:
        parts.append("Reading brought no gain in exact answers that stands out from chance.")
    elif "train" in rose and moved.get("phrasing") == 0:
        parts.append("It learned the wording of what it was taught rather than the facts: new words show no clear gain.")
    elif "test" not in rose and "test" in moved:
        parts.append("It learned what it read; on documents it was not taught there is no clear gain.")
    else:
        parts.append("It learned what it read." if "test" not in rose else "The gain extends to documents it was not taught.")
    fell = [SPLITS[split] for split, sign in moved.items() if sign < 0]
    if fell:
        parts.append(f"It became worse on {listed(fell)}.")
    return " ".join(parts)


def cards(run: Run) -> list[Card]:
    """Four or five key figures, as far as the run has them."""
    found = [_size_card(run), _loss_card(run, "general", "General English"), _loss_card(run, "domain", "Text of the field")]
    found += [_answer_card(run, "phrasing", "Facts in new words"), _answer_card(run, "test", "Held-out documents")]
    found += [_answer_card(run, "train", "Facts as taught"), _bits_card(run), *_matrix_cards(run)]
    return [card for card in found if card][:5]


def _size_card(run: Run) -> Card | None:
    before, after = sizes(run)
    if before is None or not after:
        return None
    tone = "better" if after < before else "worse"
    return Card(
        "Size", TIMES(before / after), f"smaller: {SIZE(before)} to {SIZE(after)}" if after < before else "not smaller", tone
    )


def _loss_card(run: Run, key: str, label: str) -> Card | None:
    start, end = loss(run, "original", key), loss(run, run.final, key)
    if start is None or end is None:
        return None
    perplexities = [number(pick(run.models, name, key, "perplexity")) for name in ("original", run.final or "")]
    note = f"nats of loss: {NATS(start)} to {NATS(end)}"
    if None not in perplexities:
        note += f" (perplexity {PERPLEXITY(perplexities[0])} to {PERPLEXITY(perplexities[1])})"
    tone = "" if NATS(start) == NATS(end) else ("worse" if end > start else "better")
    return Card(label, NATS.change(end - start), note, tone)


def _answer_card(run: Run, split: str, label: str) -> Card | None:
    (was, _), (now, count) = exact(run, before_reading(run), split), exact(run, after_reading(run), split)
    if now is None or not count:
        return None
    note = f"of {COUNT(count)} answered exactly from memory"
    if was is None:
        return Card(label, SHARE(now), note)
    return Card(
        label, SHARE(now), f"{note}; {SHARE(was)} before reading", {1: "better", -1: "worse", 0: ""}[learned(was, now, count)]
    )


def _bits_card(run: Run) -> Card | None:
    bits = pick(run.summary, "size", "bits_per_weight")
    return Card("Precision left", Format(2)(bits), "bits per weight on average") if number(bits) is not None else None


def _matrix_cards(run: Run) -> list[Card]:
    matrices = matrices_of(run)
    tiles = [number(matrix.get("num_tiles")) for matrix in matrices]
    if not matrices or None in tiles:
        return []
    return [Card("Tiles", COUNT(sum(count or 0 for count in tiles)), f"in {COUNT(len(matrices))} matrices")]


def matrices_of(run: Run) -> list[dict[str, Any]]:
    """The compressed matrices, as the compression listed them."""
    found = run.stages["compress"].summary.get("matrices") if run.has("compress") else None
    return [matrix for matrix in found if isinstance(matrix, dict)] if isinstance(found, list) else []
