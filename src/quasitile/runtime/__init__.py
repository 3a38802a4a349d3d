"""The compressed layer, Transformers' quantiser for it, and loading."""

from quasitile.runtime.linear import TiledEmbedding, TiledHead, TiledLinear, TiledMatrix, held_weights, tiled_matrices
from quasitile.runtime.load import is_compressed, load_model, load_tokenizer, load_trainable, save_model
from quasitile.runtime.plugin import QuasitileConfig, QuasitileQuantizer, convert

__all__ = [
    "QuasitileConfig",
    "QuasitileQuantizer",
    "TiledEmbedding",
    "TiledHead",
    "TiledLinear",
    "TiledMatrix",
    "convert",
    "held_weights",
    "is_compressed",
    "load_model",
    "load_tokenizer",
    "load_trainable",
    "save_model",
    "tiled_matrices",
]
