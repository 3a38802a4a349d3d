"""Reading papers: sections, questions with their evidence, and splits."""

from quasitile.reading.pipeline import read
from quasitile.reading.settings import ReadSettings

__all__ = ["ReadSettings", "read"]
