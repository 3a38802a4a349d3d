"""Methods to compare with, in number formats of their own."""

from quasitile.baselines.gptq import gptq
from quasitile.baselines.stage import BASELINES, BaselineSettings, baseline
from quasitile.baselines.svd_llm import svd_llm

__all__ = ["BASELINES", "BaselineSettings", "baseline", "gptq", "svd_llm"]
