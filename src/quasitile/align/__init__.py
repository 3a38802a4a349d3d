"""Training the compressed model to behave like the original (paper 3.2.2)."""

from quasitile.align.train import AlignSettings, align

__all__ = ["AlignSettings", "align"]
