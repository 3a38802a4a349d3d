"""Alignment end to end: the blocks of the compressed model learn to reproduce the original."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from quasitile.align.losses import DIVERGENCES, READINGS, hidden_loss, language_model_nats, logit_kl
from quasitile.checkpoint import stored_bytes
from quasitile.compress.refit import pack_within
from quasitile.compress.text import read_texts, token_windows
from quasitile.errors import InputError
from quasitile.folders import read_json, stage_folder
from quasitile.progress import say, track
from quasitile.runtime import is_compressed, load_model, load_trainable, save_model, tiled_matrices
from quasitile.settings import Settings


class AlignSettings(Settings):
    """How the compressed model is aligned."""

    num_steps: int = Field(80, ge=0)
    batch_size: int = Field(16, ge=1)
    num_tokens: int = Field(256, ge=2, description="a window")
    learning_rate: float = Field(0.005, gt=0, description="rounding steps a step of Adam")
    scale_learning_rate: float = Field(0.005, ge=0, description="of the components' scales, relative")
    jitter: float = Field(0.45, ge=0, lt=0.5, description="how far coefficients start from their whole numbers, at random")
    norm_learning_rate: float = Field(3e-3, ge=0, description="of norms and biases")
    hidden_weight: float = Field(1.0, ge=0, description="of the distance between hidden states (Eq. 5)")
    divergence: Literal[*DIVERGENCES] = "kl"  # type: ignore[valid-type]
    reading: Literal[*READINGS] = Field("features", description="of a hidden state as a distribution")  # type: ignore[valid-type]
    layers: tuple[int, ...] | None = Field(None, description="whose states count, 0 the embedding's; nothing for all")
    temperature: float = Field(1.0, gt=0, description="of the next-token distributions")
    logit_weight: float = Field(1.0, ge=0, description="of the KL between next-token distributions")
    language_model_weight: float = Field(0.0, ge=0)
    held_out_windows: int = Field(16, ge=1, description="windows of the text never trained on, for the curve")
    seed: int = 0


def align(
    model: str | Path, out: str | Path, *, teacher: str | Path, text: str | Path, settings: AlignSettings | None = None
) -> dict[str, Any]:
    """Train a compressed model's blocks against the original.

    Args:
        model: A folder that `compress` wrote.
        out: The model folder to make; it takes no more bytes than `model`.
        teacher: The original.
        text: Unlabelled general text, as for `compress`.
        settings: See `AlignSettings`.

    Returns:
        The summary: damage on held-out windows of the text before and after, among others.

    Raises:
        InputError: `model` is not compressed, or the two do not fit together.
    """
    settings = settings or AlignSettings()
    if not is_compressed(model):
        raise InputError(f"{model} is not compressed; make it with `quasitile compress`")
    original = load_model(teacher)[0].requires_grad_(False)
    student, tokenizer = load_trainable(model)
    if original.config.vocab_size != student.config.vocab_size:
        raise InputError(
            f"{teacher} has {original.config.vocab_size} tokens and {model} {student.config.vocab_size}; "
            "give the original of this model"
        )
    windows = token_windows(tokenizer, read_texts(text), settings.num_tokens, 10**9, settings.seed)
    if len(windows) < settings.held_out_windows + settings.batch_size:
        raise InputError(
            f"{text} gives {len(windows)} windows of {settings.num_tokens} tokens, fewer than the "
            f"{settings.held_out_windows + settings.batch_size} needed; give more text or lower align.batch_size"
        )
    held_out, windows = windows[: settings.held_out_windows], windows[settings.held_out_windows :]
    limit = sum(matrix.payload.numel() for matrix in tiled_matrices(student).values())
    with stage_folder(out, "align", settings, settings.seed, model=model, teacher=teacher, text=text) as stage:
        teacher_nats = held_out_nats(original, held_out)
        before = held_out_nats(student, held_out) - teacher_nats
        optimizer = make_trainable(student, settings)
        generator = torch.Generator().manual_seed(settings.seed)
        order = torch.cat([torch.randperm(len(windows), generator=generator) for _ in range(epochs(settings, len(windows)))])
        started, num_tokens = time.monotonic(), 0
        for step in track(range(settings.num_steps), "align"):
            set_rate(optimizer, step / settings.num_steps)
            batch = windows[order[step * settings.batch_size : (step + 1) * settings.batch_size]]
            losses = train_step(student, original, batch, optimizer, settings)
            num_tokens += batch.numel()
            stage.metric(step=step + 1, tokens=num_tokens, **losses, seconds=round(time.monotonic() - started, 2))
        student.eval()
        factor = pack_within(student, limit)
        after = held_out_nats(student, held_out) - teacher_nats
        save_model(student, tokenizer, stage.path, trainable=True)
        source = Path(model) / "summary.json"
        sizes = read_json(source) if source.is_file() else {}
        stage.summary |= {key: sizes[key] for key in ("original_bytes", "stored_parameters", "num_parameters") if key in sizes}
        stage.summary |= {
            "stored_bytes": stored_bytes(stage.path),
            "num_tokens": num_tokens,
            "damage_before_nats": before,
            "damage_after_nats": after,
            "step_factor": factor,
        }
    say(f"  damage on held-out sampled text: {before:.3f} -> {after:.3f} nats a token")
    return stage.summary


def epochs(settings: AlignSettings, num_windows: int) -> int:
    """Passes over the text that the steps need, rounded up."""
    return settings.num_steps * settings.batch_size // num_windows + 1


def make_trainable(student: nn.Module, settings: AlignSettings) -> torch.optim.Optimizer:
    """Put every matrix into its trainable state; AdamW over coefficients, norms and biases."""
    for parameter in student.parameters():
        parameter.requires_grad_(settings.norm_learning_rate > 0)
    small = [p for p in student.parameters() if p.requires_grad]
    codes, gains = [], []
    generator = torch.Generator().manual_seed(settings.seed)
    for matrix in tiled_matrices(student).values():
        matrix.make_trainable(generator, settings.jitter)
        for block in matrix.rank_blocks():
            codes += block.coefficients()
            gains += [block.gain] if block.gain.numel() else []
    rates = ((codes, settings.learning_rate), (gains, settings.scale_learning_rate), (small, settings.norm_learning_rate))
    groups = [{"params": parameters, "lr": rate} for parameters, rate in rates if parameters and rate]
    for group in groups:
        group["peak"] = group["lr"]
    return torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.0, foreach=True)


def set_rate(optimizer: torch.optim.Optimizer, fraction: float) -> None:
    """Warm up over 5 % of the steps, then fall linearly to 5 %."""
    factor = min(1.0, (fraction + 0.01) / 0.05) * max(0.05, 1 - fraction)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def train_step(
    student: Any, teacher: Any, batch: Tensor, optimizer: torch.optim.Optimizer, settings: AlignSettings
) -> dict[str, float]:
    """One step of gradient descent on a weighted sum of losses.

    Args:
        student: Trainable.
        teacher: The original.
        batch: (B, T) token ids.
        optimizer: Over the student's parameters.
        settings: The weights.

    Returns:
        Every loss, as numbers.

    Raises:
        InputError: The loss is not finite.
    """
    hidden = settings.hidden_weight > 0
    with torch.no_grad(), half_precision():
        target = teacher(batch, output_hidden_states=hidden, use_cache=False)
    with half_precision():
        output = student(batch, output_hidden_states=hidden, use_cache=False)
    losses = {"logit_kl_nats": logit_kl(output.logits, target.logits, settings.temperature)}
    loss = settings.logit_weight * losses["logit_kl_nats"]
    if hidden:
        name = f"hidden_{settings.divergence}" + ("_nats" if settings.divergence in ("kl", "js") else "")
        losses[name] = hidden_loss(
            output.hidden_states,
            target.hidden_states,
            settings.divergence,
            settings.reading,
            lambda states: through_head(teacher, states, target.hidden_states[-1]),
            settings.layers,
        )
        loss = loss + settings.hidden_weight * losses[name]
    if settings.language_model_weight > 0:
        losses["language_model_nats"] = language_model_nats(output.logits, batch)
        loss = loss + settings.language_model_weight * losses["language_model_nats"]
    if not torch.isfinite(loss):
        raise InputError(f"the alignment loss is {loss.item()}; lower align.learning_rate")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return {"loss": loss.item(), **{name: value.item() for name, value in losses.items()}}


def through_head(teacher: Any, states: Tensor, last: Tensor) -> Tensor:
    """What the teacher's output head makes of hidden states (..., D): logits (..., V).

    Each token's state is brought to the power of the head's usual input, `last`, which stands for the
    final norm; states after that norm pass unchanged.
    """
    power = [values.float().square().mean(-1, keepdim=True).clamp_min(1e-12).sqrt() for values in (last, states)]
    return teacher.get_output_embeddings()((states * (power[0] / power[1])).to(states.dtype))


def half_precision() -> torch.autocast:
    """bf16 where products are concerned, float32 elsewhere; the coefficients stay float32."""
    return torch.autocast("cpu", dtype=torch.bfloat16)


@torch.inference_mode()
def held_out_nats(model: Any, windows: Tensor) -> float:
    """Nats a token of next-token prediction."""
    total = [language_model_nats(model(batch, use_cache=False).logits, batch) * len(batch) for batch in windows.split(16)]
    return float(torch.stack(total).sum()) / len(windows)
