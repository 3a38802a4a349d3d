"""The base of every stage's settings."""

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """Settings of one stage: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ComputeSettings(Settings):
    """Settings of a stage that runs models."""

    device: str = Field(
        default="auto", description="where models compute: cpu, cuda, cuda:1, ...; auto takes a GPU where there is one"
    )
