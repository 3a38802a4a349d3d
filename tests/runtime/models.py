"""Small stored models, coded as if inputs were uncorrelated."""

import torch
from tests.compress.architectures import build

from quasitile.codec.coding import Coding
from quasitile.codec.matrix import encode_matrix
from quasitile.codec.tiling import TILINGS
from quasitile.runtime import compressible_layers, convert, save_model

TOKENS = torch.arange(8, 40).view(2, 16)


def stored_folder(name, tokenizer, path, coding=None, tiling="fibonacci", step=0.02):
    """One of `tests.compress.architectures`, every matrix coded alike, as a folder."""
    path.mkdir(parents=True, exist_ok=True)
    model = build(name, len(tokenizer))
    layers, tied = compressible_layers(model)
    coding, matrices = coding or Coding(residual="identity", max_rank=2), {}
    for layer, place in layers.items():
        weight = place.weight.detach()
        tiles = TILINGS[tiling](*weight.shape, 16, 0)
        matrices[layer] = encode_matrix(weight, tiles, torch.eye(weight.shape[1]), torch.ones(len(weight)), step, coding)[0]
    save_model(convert(model, matrices, tied).eval(), tokenizer, path)
    return path
