"""What every training loop here shares: precision, the rate over time, held-out loss, and losses that are not finite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quasitile.align.losses import language_model_nats
from quasitile.errors import InputError
from quasitile.folders import write_json
from quasitile.runtime import inference_mode


class NotFinite(InputError):
    """A loss is NaN or infinite. `batch` is what it was computed from, as JSON can hold it."""

    batch: Any = None


def not_finite(loss: Tensor, place: str, stage: str, batch: Any) -> NotFinite:
    """The error to raise.

    Args:
        loss: That is not finite.
        place: In words.
        stage: Whose `learning_rate` should be lower.
        batch: Token ids, or texts.
    """
    error = NotFinite(f"the loss at {place} is {loss.item()}; lower {stage}.learning_rate")
    error.batch = batch
    return error


@contextmanager
def batch_kept(out: str | Path) -> Iterator[None]:
    """Where a loss is not finite, write its batch to `OUT-failed.json`, and say so in the error."""
    try:
        yield
    except NotFinite as error:
        path = Path(out).with_name(f"{Path(out).name}-failed.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"error": str(error), "batch": error.batch})
        raise InputError(f"{error} (its batch is in {path})") from error


def rate_factor(fraction: float) -> float:
    """Of the learning rate: up over the first 5 % of the steps, then down linearly to 5 %."""
    return min(1.0, (fraction + 0.01) / 0.05) * max(0.05, 1 - fraction)


def half_precision(model: Any, enabled: bool = True) -> torch.autocast:
    """bf16 where a model's products are concerned, float32 elsewhere; the coefficients stay float32."""
    return torch.autocast(next(model.parameters()).device.type, dtype=torch.bfloat16, enabled=enabled)


def enable_checkpointing(model: Any) -> None:
    """Compute activations again in the backward pass, in training mode."""
    newer = getattr(model, "activation_checkpointing_enable", None)  # the older name goes away
    (newer or model.gradient_checkpointing_enable)({"use_reentrant": False})


def held_out_nats(model: Any, windows: Tensor) -> float:
    """Nats a token of next-token prediction."""
    with inference_mode(model):
        total = [language_model_nats(model(batch, use_cache=False).logits, batch) * len(batch) for batch in windows.split(16)]
    return float(torch.stack(total).sum()) / len(windows)


def expected_nats(model: Any, teacher: Any, windows: Tensor) -> float:
    """Nats a token of next-token prediction, expected over the teacher's predictions instead of the tokens that came.

    Args:
        model: Whose loss it is.
        teacher: With the same vocabulary.
        windows: (B, T) token ids.
    """
    total = 0.0
    with inference_mode(model):
        for batch in windows.split(16):
            target = teacher(batch, use_cache=False).logits[:, :-1].float().softmax(-1)
            logits = model(batch, use_cache=False).logits[:, :-1].float()
            total -= float((target * logits.log_softmax(-1)).sum(-1).mean()) * len(batch)
    return total / len(windows)
