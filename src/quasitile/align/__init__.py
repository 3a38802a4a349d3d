"""Training the compressed model to behave like the original (paper 3.2.2)."""

from quasitile.align.record import record
from quasitile.align.settings import AlignSettings, RecordSettings
from quasitile.align.train import align

__all__ = ["AlignSettings", "RecordSettings", "align", "record"]
