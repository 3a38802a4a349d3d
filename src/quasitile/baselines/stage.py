"""Baselines with number formats of their own: from a model folder to a dense model folder whose bytes are counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from quasitile.baselines.gptq import BITS_OF_GROUP, gptq
from quasitile.baselines.svd_llm import svd_llm
from quasitile.compress.calibrate import Moments, calibrate
from quasitile.compress.pipeline import BITS_OF_BF16, bytes_beside, open_original
from quasitile.compress.settings import CalibrationSettings
from quasitile.compress.size import parse_size
from quasitile.compress.windows import calibration_windows, usable_reading
from quasitile.errors import InputError
from quasitile.folders import stage_folder
from quasitile.progress import human_bytes, say, track
from quasitile.settings import Settings

BITS_OF_FACTOR = 16
Weights = dict[str, Tensor]


def gptq_within(weights: Weights, moments: dict[str, Moments], num_bits: float, group: int) -> tuple[Weights, float]:
    """GPTQ of every matrix at the most bits a weight, whole and the same for all, that fit into so many bits.

    Returns:
        The rounded matrices, and the bits that they take, grids included.

    Raises:
        InputError: Not even one bit a weight fits.
    """
    size = sum(weight.numel() for weight in weights.values())
    grids = sum(BITS_OF_GROUP * len(weight) * -(-weight.shape[1] // group) for weight in weights.values())
    bits = min(8, int((num_bits - grids) / size))
    if bits < 1:
        least, most = (size + grids) / size, num_bits / size
        raise InputError(f"gptq takes at least {least:.2f} bits a weight, grids included, where {most:.2f} fit; raise --size")
    rounded: Weights = {}
    for name, weight in track(weights.items(), "round", len(weights)):
        rounded[name], _ = gptq(weight, moments[name].inputs, bits, group)
    return rounded, bits * size + grids


def svd_llm_within(weights: Weights, moments: dict[str, Moments], num_bits: float, group: int) -> tuple[Weights, float]:
    """SVD-LLM of every matrix, at the share of numbers that fits into so many bits at 16 bits each."""
    share = max(0.0, num_bits / BITS_OF_FACTOR / sum(weight.numel() for weight in weights.values()))
    results = {name: svd_llm(w, moments[name].inputs, share) for name, w in track(weights.items(), "factorise", len(weights))}
    return {name: product for name, (product, _) in results.items()}, BITS_OF_FACTOR * sum(n for _, n in results.values())


# A baseline is a function `(weights, moments, bits that fit, group) -> dense weights, bits taken`.
BASELINES: dict[str, Callable[[Weights, dict[str, Moments], float, int], tuple[Weights, float]]] = {
    "gptq": gptq_within,
    "svd-llm-16bit": svd_llm_within,
}


class BaselineSettings(Settings):
    """A method in its own number format."""

    name: Literal["none", *BASELINES] = "none"  # type: ignore[valid-type]
    size: str = Field(default="25%", description="share of bf16 bytes (25%) or bytes (4GB), as the method counts its own")
    group: int = Field(default=64, ge=1, description="columns that share a grid (gptq)")
    calibration: CalibrationSettings = CalibrationSettings()
    seed: int = 0


def baseline(model: str | Path, out: str | Path, *, text: str | Path, settings: BaselineSettings) -> dict[str, Any]:
    """What a method with a number format of its own makes of a model, as a dense float32 checkpoint.

    The folder is as large as any dense one; `counted_bytes` is what the method's own format takes,
    the nearest below the size that it can meet. Every matrix is treated, the embedding too.

    Args:
        model: As for `quasitile.compress`.
        out: The model folder to make.
        text: Calibration text.
        settings: See `BaselineSettings`.

    Returns:
        The summary.

    Raises:
        InputError: The model cannot be used, or the size cannot be met.
    """
    if settings.name == "none":
        raise InputError(f"baseline.name=none does nothing; choose one of {', '.join(BASELINES)}")
    usable_reading(None, settings.calibration)
    dense, tokenizer, layers, _ = open_original(model)
    num_parameters = sum(parameter.numel() for parameter in dense.parameters())
    original_bytes = num_parameters * BITS_OF_BF16 // 8
    target = parse_size(settings.size, original_bytes).num_bytes
    if target is None:
        raise InputError(f"size={settings.size!r} counts parameters, {settings.name} counts bytes; write 25% or 900MB")
    with stage_folder(out, "baseline", settings, settings.seed, model=model, text=text) as stage:
        amount = settings.calibration
        windows = calibration_windows(tokenizer, text, amount, settings.seed)
        moments = calibrate(dense, windows, amount.batch_size, settings.seed)
        beside = bytes_beside(dense, layers, target)
        weights = {name: layer.weight.detach().float() for name, layer in layers.items()}
        rounded, num_bits = BASELINES[settings.name](weights, moments, 8 * (target - beside), settings.group)
        for name, weight in rounded.items():
            layers[name].weight.data.copy_(weight)
        dense.save_pretrained(stage.path)
        tokenizer.save_pretrained(stage.path)
        counted = beside + -(-round(num_bits) // 8)
        stage.summary |= {
            "method": settings.name,
            "original_bytes": original_bytes,
            "target_bytes": target,
            "counted_bytes": counted,
            "num_parameters": num_parameters,
            "bits_per_weight": 8 * counted / num_parameters,
            "calibration_tokens": windows.numel(),
        }
    share = 100 * counted / target
    say(f"  {settings.name} would take {human_bytes(counted)}, {share:.1f} % of the size asked; the folder itself is dense")
    return stage.summary
