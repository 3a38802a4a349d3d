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
from quasitile.reading.curate.serve import curate
from quasitile.reading.exports import export_questions
from quasitile.recipe import Recipe, load_recipe
from quasitile.report import report
from quasitile.run import run
from quasitile.runtime import execution, load_model, set_execution
from quasitile.runtime.chat import chat
from quasitile.runtime.export import ExportSettings, export

__version__ = "0.1.0"
__all__ = [
    "AdaptSettings",
    "AlignSettings",
    "BaselineSettings",
    "CompressSettings",
    "EvaluateSettings",
    "ExportSettings",
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
    "chat",
    "compress",
    "curate",
    "evaluate",
    "execution",
    "export",
    "export_questions",
    "inspect",
    "load_model",
    "load_recipe",
    "read",
    "record",
    "report",
    "run",
    "sample",
    "set_execution",
    "tune",
]
