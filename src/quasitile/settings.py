"""The base of every stage's settings."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Settings of one stage: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)
