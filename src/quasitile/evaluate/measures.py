"""Each measure of `evaluate` as a function of a loaded model. Read `MEASURES` at the end first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from quasitile.evaluate.answers import answer_report, ask
from quasitile.evaluate.batches import window_length
from quasitile.evaluate.battery import SPLITS, Battery
from quasitile.evaluate.choices import choice_report
from quasitile.evaluate.cost import resident_bytes, running_cost, stored_parameters
from quasitile.evaluate.divergence import States, model_states, state_divergence
from quasitile.evaluate.generation import greedy_tokens
from quasitile.evaluate.perplexity import spread_windows, text_loss
from quasitile.evaluate.probe import entity_f1
from quasitile.evaluate.properties import property_report
from quasitile.evaluate.settings import EvaluateSettings
from quasitile.progress import say, track
from quasitile.runtime import weight_bytes

TAUGHT = ("tuned", "adapted", "finished")  # models that know what an answer looks like


@dataclass
class Subject:
    """A loaded model under evaluation, with what it is asked and what it answered."""

    name: str
    model: Any
    tokenizer: Any
    load_seconds: float
    battery: Battery
    settings: EvaluateSettings
    reference: list[States]
    answers: list[dict[str, Any]] = field(default_factory=list)


def measure(subject: Subject) -> dict[str, Any]:
    """All measures of a model for which there is data."""
    say(f"{subject.name}:")
    results = {}
    for name in track(list(MEASURES), f"measure {subject.name}"):
        result = MEASURES[name](subject)
        if result:
            results[name] = result
    return results


def sizes(subject: Subject, location: str | Path) -> dict[str, int]:
    """Stored bytes, resident bytes and stored numbers: always all three."""
    return {
        "stored_bytes": weight_bytes(location),
        "resident_bytes": resident_bytes(subject.model),
        "stored_parameters": stored_parameters(location, subject.model),
    }


def continuations(subject: Subject) -> list[str]:
    """What the model writes after each example prompt."""
    rows = greedy_tokens(
        subject.model, subject.tokenizer, subject.battery.prompts, max_new_tokens=subject.settings.example_tokens
    )
    return [subject.tokenizer.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False) for row in rows]


def reference_states(subject: Subject) -> list[States]:
    """The original's hidden states and logits, for comparison with the models made from it."""
    return list(model_states(subject.model, comparison_batches(subject)))


def comparison_batches(subject: Subject) -> list[Tensor]:
    """The tokens on which models are compared: general text, or that of the field where there is none."""
    texts, settings = subject.battery.general or subject.battery.domain, subject.settings
    if not texts:
        return []
    length = window_length(subject.model, settings.length)
    batches, _ = spread_windows(subject.tokenizer, texts, length, settings.divergence_tokens, 1)
    return [window[:, :-1] for window in batches]


def measure_general(subject: Subject) -> dict[str, float]:
    """The loss on held-out general text: what was forgotten."""
    return measure_text(subject, subject.battery.general, subject.settings.general_tokens)


def measure_domain(subject: Subject) -> dict[str, float]:
    """The loss on held-out text of the field."""
    return measure_text(subject, subject.battery.domain, subject.settings.domain_tokens)


def measure_text(subject: Subject, texts: list[str], max_tokens: int) -> dict[str, float]:
    """`text_loss` with the settings' limits, on windows from all of the texts; nothing where there are none."""
    length, batch_size = subject.settings.length, subject.settings.batch_size
    if not texts:
        return {}
    return text_loss(
        subject.model, subject.tokenizer, texts, length=length, max_tokens=max_tokens, batch_size=batch_size, spread=True
    )


def measure_divergence(subject: Subject) -> dict[str, Any]:
    """How far the model is from the original, layer by layer; nothing for the original itself."""
    if not subject.reference:
        return {}
    return state_divergence(model_states(subject.model, comparison_batches(subject)), subject.reference)


def measure_answers(subject: Subject) -> dict[str, Any]:
    """Answers without the text and with it, by split. The rows are kept in the subject."""
    report: dict[str, Any] = {}
    battery, settings = subject.battery, subject.settings
    closed = battery.questions, [None] * len(battery.questions)
    for book, (records, contexts) in {"closed": closed, "open": (battery.open_questions, battery.contexts)}.items():
        if not records:
            continue
        rows, num_cut = ask(
            subject.model, subject.tokenizer, records, contexts,
            max_new_tokens=settings.max_new_tokens, batch_size=settings.answer_batch_size,
        )  # fmt: skip
        if num_cut:
            say(f"  {num_cut} of {len(rows)} contexts were longer than the model's window and lost their beginning")
        num_unended = sum(bool(row["trace"]) and not row["given"] for row in rows)
        # A model that was taught nothing ends here and there in what it takes for a trace; one that always does needs room.
        if num_unended > (0 if subject.name in TAUGHT else len(rows) // 2):
            say(f"  {num_unended} of {len(rows)} answers did not get beyond their trace; set max_new_tokens higher")
        by_split = {split: [row for row in rows if row["split"] == split] for split in SPLITS}
        report[f"{book}_book"] = {split: answer_report(own) for split, own in by_split.items() if own}
        subject.answers += [{"model": subject.name, "book": book, **row} for row in rows]
    return report


def measure_choices(subject: Subject) -> dict[str, Any]:
    """Multiple choice by likelihood, for each set of questions."""
    per, batch_size = subject.settings.per, subject.settings.answer_batch_size
    return {
        name: choice_report(subject.model, subject.tokenizer, items, per=per, batch_size=batch_size)
        for name, items in subject.battery.choices.items()
        if items
    }


def measure_entities(subject: Subject) -> dict[str, Any]:
    """Entities read off the hidden states by a linear probe."""
    train, test, settings = subject.battery.train_sentences, subject.battery.test_sentences, subject.settings
    if not test:
        return {}
    return entity_f1(subject.model, subject.tokenizer, train, test, ridge=settings.ridge, length=settings.length)


def measure_properties(subject: Subject) -> dict[str, float]:
    """Values of properties, read from their sentences."""
    records, settings = subject.battery.properties, subject.settings
    if not records:
        return {}
    return property_report(
        subject.model, subject.tokenizer, records,
        max_new_tokens=settings.max_new_tokens, batch_size=settings.answer_batch_size,
    )  # fmt: skip


def measure_cost(subject: Subject) -> dict[str, float]:
    """Seconds, tokens a second, and memory."""
    tokens = {"prefill_tokens": subject.settings.prefill_tokens, "decode_tokens": subject.settings.decode_tokens}
    return {"load_seconds": subject.load_seconds, **running_cost(subject.model, **tokens, seed=subject.settings.seed)}


MEASURES: dict[str, Callable[[Subject], dict[str, Any]]] = {
    "general": measure_general,
    "domain": measure_domain,
    "divergence": measure_divergence,
    "answers": measure_answers,
    "choices": measure_choices,
    "entities": measure_entities,
    "properties": measure_properties,
    "cost": measure_cost,
}
