"""Methods to compare with: number formats of their own, and other ways of learning from papers."""

from quasitile.baselines.gptq import gptq
from quasitile.baselines.stage import BASELINES, BaselineSettings, baseline
from quasitile.baselines.svd_llm import svd_llm
from quasitile.baselines.tuning import TuneSettings, tune

__all__ = ["BASELINES", "BaselineSettings", "TuneSettings", "baseline", "gptq", "svd_llm", "tune"]
