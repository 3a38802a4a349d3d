"""The base of every stage's settings."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def yes_is_a_word(value: object) -> object:
    """YAML reads yes as true."""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value


AutoYesNo = Annotated[Literal["auto", "yes", "no"], BeforeValidator(yes_is_a_word)]


class Settings(BaseModel):
    """Settings of one stage: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ComputeSettings(Settings):
    """Settings of a stage that runs models."""

    device: str = Field(
        default="auto", description="where models compute: cpu, cuda, cuda:1, ...; auto takes a GPU where there is one"
    )


class TrainSettings(ComputeSettings):
    """Settings of a stage that trains blocks."""

    gradient_accumulation: int = Field(
        default=1, ge=1, description="parts that a step's batch, or questions and replay, come in"
    )
    checkpointing: bool = Field(default=False, description="compute activations again instead of keeping them")
    shard: bool = Field(
        default=False, description="with several processes, each keeps its part of parameters, gradients and states (FSDP2)"
    )
    precision: Literal["bf16", "float32"] = Field(default="bf16", description="of products; what is trained is float32")
    report_to: tuple[str, ...] = Field(default=(), description="Transformers' callbacks: tensorboard, trackio, wandb, mlflow")
