"""Reading a property's value out of a sentence: the model is asked, the value is compared with its unit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quasitile.evaluate.batches import window_length
from quasitile.evaluate.entities import scores
from quasitile.evaluate.generation import answer_limit, fitted_prompt, generate_answers
from quasitile.evaluate.quantities import first_value, quantities, same_value, unknown_symbols

REQUIRED = ("material", "property", "value", "evidence")


def property_report(
    model: Any, tokenizer: Any, records: Sequence[dict[str, Any]], *, max_new_tokens: int | None = None, batch_size: int = 32
) -> dict[str, float]:
    """Ask for each record's value with its evidence as context (open book), and score the answers.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        records: Rows of `properties.jsonl`; `unit` may be missing.
        max_new_tokens: The longest answer; `None` for as many as the longest value takes, and some more.
        batch_size: Questions in one batch.

    Returns:
        `f1`, `precision` (of the answers that state a value), `recall` (of all records) and
        `num_records`.

    Raises:
        ValueError: There is no record.
    """
    if not records:
        raise ValueError("records is empty; give at least one property record")
    if max_new_tokens is None:
        values = (f"{record['value']} {record.get('unit') or ''}" for record in records)
        max_new_tokens = answer_limit(model, tokenizer, values)
    room = window_length(model) - max_new_tokens
    prompts = [fitted_prompt(tokenizer, property_question(record), record["evidence"], room)[0] for record in records]
    answers = generate_answers(model, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size)
    return property_scores(records, [answer.text for answer in answers])


def property_question(record: dict[str, Any]) -> str:
    """The question for a record's value."""
    return f"What is the {record['property']} of {record['material']}?"


def property_scores(records: Sequence[dict[str, Any]], given: Sequence[str]) -> dict[str, float]:
    """Scores of one answer a record, compared by `same_value`."""
    num_right = num_found = 0
    for record, answer in zip(records, given, strict=True):
        value, unit = str(record["value"]), str(record.get("unit") or "")
        num_right += same_value(answer, value, unit)
        num_found += states_value(answer, value, unit)
    counted = scores(num_right, num_found, len(records))
    return {key: counted[key] for key in ("f1", "precision", "recall")} | {"num_records": len(records)}


def states_value(answer: str, value: str, unit: str = "") -> bool:
    """Whether an answer states a value at all: a number where one is expected, otherwise any word."""
    if first_value(value, unit) is None:
        return bool(answer.strip())
    return next(quantities(answer, unknown_symbols(unit)), None) is not None
