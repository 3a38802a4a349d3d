"""The compressed layer, Transformers' quantiser for it, and loading."""

from quasitile.runtime.device import device_of
from quasitile.runtime.execution import Execution, execution, resident_bytes, set_execution
from quasitile.runtime.held import gathered_gradients, held_weights, inference_mode
from quasitile.runtime.layers import Place, compressible_layers
from quasitile.runtime.linear import (
    TiledEmbedding,
    TiledHead,
    TiledLinear,
    TiledMatrix,
    tiled_matrices,
)
from quasitile.runtime.load import (
    check_vocabulary,
    is_compressed,
    is_compressed_config,
    load_config,
    load_model,
    load_tokenizer,
    load_trainable,
    meta_model,
    model_folder,
    save_model,
    storage_dtypes,
    uncoded,
    weight_bytes,
)
from quasitile.runtime.plugin import QuasitileConfig, QuasitileQuantizer, convert, finish_folder
from quasitile.runtime.substitute import coded_parameters

__all__ = [
    "Execution",
    "Place",
    "QuasitileConfig",
    "QuasitileQuantizer",
    "TiledEmbedding",
    "TiledHead",
    "TiledLinear",
    "TiledMatrix",
    "check_vocabulary",
    "coded_parameters",
    "compressible_layers",
    "convert",
    "device_of",
    "execution",
    "finish_folder",
    "gathered_gradients",
    "held_weights",
    "inference_mode",
    "is_compressed",
    "is_compressed_config",
    "load_config",
    "load_model",
    "load_tokenizer",
    "load_trainable",
    "meta_model",
    "model_folder",
    "resident_bytes",
    "save_model",
    "set_execution",
    "storage_dtypes",
    "tiled_matrices",
    "uncoded",
    "weight_bytes",
]
