"""The settings of `adapt`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from quasitile.adapt.curriculum import ORDERS
from quasitile.adapt.select import PARTS, SELECTIONS
from quasitile.settings import TrainSettings


class AdaptSettings(TrainSettings):
    """How sections are read."""

    order: Literal[*ORDERS] = "cyclic"  # type: ignore[valid-type]
    rounds: int = Field(default=1, ge=1, description="times the corpus is read from the first section to the last")
    steps_per_section: int = Field(default=8, ge=1)
    max_sections: int = Field(default=0, ge=0, description="read only so many, evenly spread; 0 for all")
    trains: Literal[*PARTS] = Field(default="all", description="of a block: also only its factors' spectra or its residual")  # type: ignore[valid-type]
    num_asked: int = Field(default=3, ge=0, description="questions the model is asked before it is taught a section")
    num_questions: int = Field(default=16, ge=1, description="of the section in a gradient step, all phrasings counted")
    num_revisited: int = Field(default=16, ge=0, description="of earlier sections in a gradient step")
    trace: Literal["none", "before", "after"] = Field(default="none", description="where the reasoning trace is trained")
    text_weight: float = Field(default=0.25, ge=0, description="of the section's own text")
    text_tokens: int = Field(default=256, ge=2, description="of the section's text in a step")
    replay_weight: float | None = Field(
        default=None,
        ge=0,
        description="of staying close to the original on general text; nothing for 10, or 1 where it is not given",
    )
    replay_windows: int = Field(default=4, ge=0, description="of general text in a step")
    replay_tokens: int = Field(default=128, ge=2, description="a window")
    select: Literal[*SELECTIONS] = Field(default="all", description="which blocks learn from a section")  # type: ignore[valid-type]
    select_share: float = Field(default=0.5, gt=0, le=1, description="of the blocks that learn from a section")
    learning_rate: float | None = Field(
        default=None, gt=0, description="rounding steps a step of Adam; nothing for what suits the model's bits: 0.01 at 4"
    )
    jitter: float = Field(
        default=0.45, ge=0, lt=0.5, description="how far coefficients start from their whole numbers, at random"
    )
    gate_nats: float = Field(default=0.02, gt=0, description="a section that costs more general loss than this is undone")
    forget_nats: float = Field(default=0.02, gt=0, description="what the whole reading may cost general loss")
    overshoot: float = Field(
        default=5.0,
        ge=1,
        description="times forget_nats that it may cost on the way; at the end what was learned is drawn back to forget_nats",
    )
    gate_windows: int = Field(default=8, ge=1, description="of general text that the gate watches")
    judged_windows: int = Field(
        default=32, ge=1, description="of general text that decide how much is kept at the end; at most half of the text"
    )
    save_every: int = Field(default=20, ge=0, description="sections between states that a stopped run goes on from; 0 for none")
    follow_ups: int = Field(
        default=0, ge=0, description="rounds in which answers that are still wrong are asked again and taught alone"
    )
    guidance_weight: float = Field(
        default=0.0, ge=0, description="of staying close to the teacher that has the section before it when it answers"
    )
    guidance_tokens: int = Field(default=384, ge=2, description="of the section that the teacher sees")
    max_new_tokens: int | None = Field(
        default=None, ge=1, description="of an answer; left out, as many as the longest expected one takes and eight more"
    )
    seed: int = 0
