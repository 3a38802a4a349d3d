"""The settings of `align` and of `record`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from quasitile.align.losses import DIVERGENCES, READINGS
from quasitile.settings import AutoYesNo, ComputeSettings, TrainSettings


class AlignSettings(TrainSettings):
    """How the compressed model is aligned."""

    num_steps: int = Field(default=320, ge=0)
    batch_size: int = Field(
        default=4,
        ge=1,
        description="windows a step, of all processes together; fewer learn more from a token",
    )
    num_tokens: int = Field(default=256, ge=2, description="a window")
    learning_rate: float | None = Field(
        default=None, gt=0, description="rounding steps a step of Adam; nothing for what suits the model's bits and form"
    )
    momentum: float = Field(
        default=0.9, ge=0, lt=1, description="of gradients; more averages more noise away, and needs more steps"
    )
    scale_learning_rate: float = Field(default=0.005, ge=0, description="of the components' scales, relative")
    jitter: float = Field(
        default=0.45, ge=0, lt=0.5, description="how far coefficients start from their whole numbers, at random"
    )
    norm_learning_rate: float = Field(default=3e-3, ge=0, description="of norms and biases")
    hidden_weight: float = Field(default=0.0, ge=0, description="of the distance between hidden states (Eq. 5)")
    divergence: Literal[*DIVERGENCES] = "kl"  # type: ignore[valid-type]
    reading: Literal[*READINGS] = Field(default="features", description="of a hidden state as a distribution")  # type: ignore[valid-type]
    layers: tuple[int, ...] | None = Field(default=None, description="whose states count, 0 the embedding's; nothing for all")
    temperature: float = Field(default=1.0, gt=0, description="of the next-token distributions")
    logit_weight: float = Field(default=1.0, ge=0, description="of the KL between next-token distributions")
    language_model_weight: float = Field(default=0.0, ge=0)
    price_bits: bool = Field(default=True, description="a price on bits that follows the size, so that steps need not grow")
    cut_offs: bool = Field(default=False, description="learn where the spectrum of each component of the factors ends")
    cut_off_learning_rate: float = Field(default=0.3, ge=0, description="frequencies a step of Adam")
    layer_steps: int = Field(default=0, ge=0, description="steps a decoder layer by itself, before all of them together")
    held_out_windows: int = Field(default=16, ge=1, description="windows of the text never trained on, for the curve")
    save_every: int = Field(default=200, ge=0, description="steps between states that a stopped run goes on from; 0 for none")
    seed: int = 0

    @model_validator(mode="after")
    def _cut_offs_are_whole(self) -> AlignSettings:
        if self.shard and self.cut_offs:
            raise ValueError("cut_offs look at whole factors, of which shard leaves parts; leave one of the two out")
        return self


class RecordSettings(ComputeSettings):
    """What is kept of the original's states."""

    num_windows: int = Field(default=4096, ge=1)
    num_tokens: int = Field(default=256, ge=2, description="a window")
    batch_size: int = Field(default=8, ge=1, description="windows in a file")
    top_k: int = Field(default=64, ge=1, description="most likely next tokens kept of each; the rest is one number")
    hidden: bool = Field(default=True, description="keep hidden states too, in bf16")
    stream: AutoYesNo = Field(
        default="auto", description="one decoder layer at a time from disk; auto: where the model would fill the memory"
    )
    seed: int = 0
