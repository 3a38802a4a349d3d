"""Measures of a language model, and the stage that takes them side by side."""

from quasitile.evaluate.answers import answer_report, exact_match, normalise, token_f1
from quasitile.evaluate.choices import choice_report, choices_from_questions, read_choices
from quasitile.evaluate.divergence import divergence
from quasitile.evaluate.entities import entity_scores, read_conll
from quasitile.evaluate.generation import generate_answers, prompt
from quasitile.evaluate.perplexity import text_loss
from quasitile.evaluate.probe import entity_f1
from quasitile.evaluate.properties import property_report
from quasitile.evaluate.quantities import same_value
from quasitile.evaluate.settings import EvaluateSettings
from quasitile.evaluate.stage import evaluate

__all__ = [
    "EvaluateSettings",
    "answer_report",
    "choice_report",
    "choices_from_questions",
    "divergence",
    "entity_f1",
    "entity_scores",
    "evaluate",
    "exact_match",
    "generate_answers",
    "normalise",
    "prompt",
    "property_report",
    "read_choices",
    "read_conll",
    "same_value",
    "text_loss",
    "token_f1",
]
