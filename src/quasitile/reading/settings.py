"""Settings of the reading stage."""

from __future__ import annotations

from typing import Self

from pydantic import Field, field_validator, model_validator

from quasitile.reading.questions.client import ModelSettings
from quasitile.reading.questions.rules import RULES
from quasitile.settings import Settings


class ReadSettings(Settings):
    """How papers become sections and questions.

    `kind` keeps only documents of one kind (`article`, `textbook`, `lecture`) of sectioned JSON lines.
    Lengths are in characters; a section and a question must fit the model's context together.
    `files` keeps only files whose path in the folder matches one of the patterns (`train*.jsonl`); empty
    keeps all. `test_documents`, `test_files` (patterns) and `test_share` (drawn with `seed`) add to
    `split.json`.
    """

    seed: int = 0
    kind: str = ""
    files: tuple[str, ...] = ()
    min_section_characters: int = Field(default=250, ge=0)
    max_section_characters: int = Field(default=1500, ge=100)
    min_facts: int = Field(default=2, ge=1)
    max_facts: int = Field(default=5, ge=1)
    max_phrasings: int = Field(default=4, ge=1)
    hold_out_phrasings: bool = True
    rules: tuple[str, ...] = tuple(RULES)
    model: ModelSettings = ModelSettings()
    test_documents: tuple[str, ...] = ()
    test_files: tuple[str, ...] = ()
    test_share: float = Field(default=0.0, ge=0.0, lt=1.0)

    @field_validator("rules")
    @classmethod
    def _known_rules(cls, rules: tuple[str, ...]) -> tuple[str, ...]:
        for rule in rules:
            if rule not in RULES:
                raise ValueError(f"rules names {rule!r}; known rules are {', '.join(RULES)}")
        return rules

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_facts > self.max_facts:
            raise ValueError(f"min_facts={self.min_facts} must not exceed max_facts={self.max_facts}")
        if self.min_section_characters > self.max_section_characters:
            raise ValueError(
                f"min_section_characters={self.min_section_characters} must not exceed "
                f"max_section_characters={self.max_section_characters}"
            )
        return self
