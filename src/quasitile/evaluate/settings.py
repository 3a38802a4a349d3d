"""The settings of `evaluate`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from quasitile.settings import ComputeSettings


class EvaluateSettings(ComputeSettings):
    """How much of each measure's data is used, and how. The defaults suit a small model on two cores."""

    seed: int = 0
    """Draws samples, wrong options and their order; every model gets the same."""
    length: PositiveInt = 512
    """Tokens of a window of running text."""
    batch_size: PositiveInt = 8
    """Windows in one forward pass."""
    general_tokens: PositiveInt = 4096
    """The most tokens of held-out general text, in windows spread evenly over all of it."""
    domain_tokens: PositiveInt = 2048
    """The most tokens of held-out text of the field, alike."""
    divergence_tokens: PositiveInt = 512
    """The most tokens on which hidden states and logits are compared, alike."""
    num_questions: PositiveInt = 24
    """The most questions of each split, asked without the text."""
    num_open_questions: PositiveInt = 4
    """The most of them that are asked again with their section before them, which costs a section each."""
    max_new_tokens: PositiveInt | None = None
    """The longest answer, trace included; left out, as many as the longest expected answer takes and eight more."""
    answer_batch_size: PositiveInt = 16
    """Questions, or options, in one batch."""
    num_choices: PositiveInt = 24
    """The most multiple-choice questions of each set."""
    per: Literal["characters", "tokens", "nothing"] = "characters"
    """What the log-probability of an option is divided by."""
    train_sentences: PositiveInt = 400
    """The most sentences that the entity probe learns from."""
    test_sentences: PositiveInt = 400
    """The most sentences that it is scored on."""
    ridge: float = Field(default=0.01, gt=0)
    """The probe's penalty, as a share of a feature's variance."""
    num_properties: PositiveInt = 16
    """The most property records."""
    prefill_tokens: PositiveInt = 256
    """The prompt on which reading speed is timed."""
    decode_tokens: PositiveInt = 16
    """Tokens of which writing speed is timed."""
    num_examples: PositiveInt = 3
    """Continuations of each model."""
    example_prompt_words: PositiveInt = 12
    """Words that an example starts from."""
    example_tokens: PositiveInt = 32
    """Tokens that each model adds."""
