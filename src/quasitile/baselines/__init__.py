"""What quasitile is measured against, on the same data at equal bytes or tokens."""

from quasitile.baselines.gptq import gptq

__all__ = ["gptq"]
