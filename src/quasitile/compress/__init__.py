"""From a model folder to a compressed model folder; read `pipeline.py` first."""

from quasitile.compress.pipeline import compress
from quasitile.compress.plan import InspectSettings, inspect
from quasitile.compress.settings import CompressSettings
from quasitile.compress.text import SampleSettings, sample, token_windows

__all__ = ["CompressSettings", "InspectSettings", "SampleSettings", "compress", "inspect", "sample", "token_windows"]
