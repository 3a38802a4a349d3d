"""quasitile: make a large language model small, then teach it a field by reading papers.

Importing the package registers its quantiser with Transformers, after which
`AutoModelForCausalLM.from_pretrained` opens the folders that it writes.
"""

from quasitile.adapt import AdaptSettings, adapt
from quasitile.align import AlignSettings, RecordSettings, align, record
from quasitile.baselines import BaselineSettings, TuneSettings, baseline, tune
from quasitile.compress import CompressSettings, InspectSettings, SampleSettings, compress, inspect, sample
from quasitile.errors import InputError
from quasitile.evaluate import EvaluateSettings, evaluate
from quasitile.reading import ReadSettings, read
from quasitile.recipe import Recipe, load_recipe
from quasitile.report import report
from quasitile.run import run
from quasitile.runtime import load_model

__version__ = "0.1.0"
__all__ = [
    "AdaptSettings",
    "AlignSettings",
    "BaselineSettings",
    "CompressSettings",
    "EvaluateSettings",
    "InputError",
    "InspectSettings",
    "ReadSettings",
    "Recipe",
    "RecordSettings",
    "SampleSettings",
    "TuneSettings",
    "__version__",
    "adapt",
    "align",
    "baseline",
    "compress",
    "evaluate",
    "inspect",
    "load_model",
    "load_recipe",
    "read",
    "record",
    "report",
    "run",
    "sample",
    "tune",
]
