"""Reading: the compressed model learns a corpus section by section (paper 3.3)."""

from quasitile.adapt.settings import AdaptSettings
from quasitile.adapt.train import adapt

__all__ = ["AdaptSettings", "adapt"]
