"""Which of two forms a model of very few bits is stored in: every entry rounded, or one product of two factors a matrix.

The damage model cannot tell: it promises products a third of the damage of entries where both lose about the same
(docs/mathematics.md). So both are made, and the one that predicts text better is kept.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from quasitile.codec.coding import Coding
from quasitile.codec.tiling import TILINGS
from quasitile.compress.allocate import Job
from quasitile.compress.settings import CompressSettings

PRODUCT_BITS = 0.4  # a weight; above it entries have lost less wherever both were measured


def tries_products(settings: CompressSettings, coding: Coding, bits: float) -> bool:
    """Whether products are worth a try: few bits, and nothing that says how matrices are coded but the default."""
    own = settings.calibration.propagate != "original" and settings.structure == "none" and settings.axes.kind == "none"
    return settings.products and own and coding.entries_only and bits <= PRODUCT_BITS


def as_products(jobs: list[Job], coding: Coding) -> tuple[list[Job], Coding]:
    """The same matrices, each as one product in its own columns, every component at its own precision."""
    whole = [replace(job, tiling=TILINGS["whole"](*job.tiling.shape, 1, 0)) for job in jobs]
    return whole, replace(coding, residual=None, transform="identity", threshold=0.55, num_states=1)


@torch.inference_mode()
def text_nats(model: Any, windows: Tensor, batch_size: int) -> float:
    """Nats a token of next-token prediction, in float32.

    Args:
        model: Causal.
        windows: (B, T) token ids.
        batch_size: Windows at a time.
    """
    parts = windows.to(next(model.parameters()).device).split(batch_size)
    return sum(float(model(input_ids=part, labels=part, use_cache=False).loss) * len(part) for part in parts) / len(windows)
