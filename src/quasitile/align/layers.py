"""Alignment block by block: each decoder layer learns to give what the original's gives, before all of them learn together.

Only one layer of the student is trainable, and its gradients are the only ones, at a time; the others stay
packed, those that have learned in files. The original need not be there: what `record` kept of it is enough.

B batch, T tokens, D hidden.
"""

from __future__ import annotations

import ctypes
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quasitile.align.losses import hidden_error
from quasitile.align.optimizer import make_trainable, optimizer_of
from quasitile.align.price import bit_price
from quasitile.align.settings import AlignSettings
from quasitile.align.steps import half_precision, not_finite, rate_factor
from quasitile.align.teacher import Teacher
from quasitile.compress.refit import pack_within
from quasitile.compress.stack import Stack
from quasitile.compress.states import StateWriter, read_states
from quasitile.progress import Meter
from quasitile.runtime import tiled_matrices


def align_layers(student: Any, teacher: Teacher, rows: list[int], settings: AlignSettings) -> list[dict[str, Any]]:
    """Train one layer after another on what the layers before it, trained already, give it.

    Each layer's goal is what the original's layer gives in the original (squared error over power). The
    last layer learns end to end only: its states are known after the final norm alone. Each layer
    is stored within its bytes before the next one begins.

    Args:
        student: Compressed, packed; so it is again afterwards.
        teacher: See `Teacher`; one that is recorded takes no memory.
        rows: Windows of the teacher to learn from, in the order of the steps.
        settings: `layer_steps`, `batch_size` and the rates count.

    Returns:
        Of each layer its number, its mean error over the first and the last quarter of the steps, and by how much
        its rounding steps grew to be stored.
    """
    stack, lines = Stack(student), []
    settings = settings.model_copy(update={"cut_offs": False})  # which are learned together
    rows = list(dict.fromkeys(rows[: settings.layer_steps * settings.batch_size]))  # each is kept once, and read again
    windows = teacher.windows[rows]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        spill(teacher, rows, len(stack.layers), place, settings.batch_size)
        write(place / "given", windows, settings.batch_size, lambda _, batch: stack.given(batch))
        with Meter("align layer by layer", (len(stack.layers) - 1) * settings.layer_steps) as meter:
            for index in range(len(stack.layers) - 1):
                layer = stack.layers[index]
                release(student)
                limit = sum(matrix.payload.numel() for matrix in tiled_matrices(layer).values())
                errors = train_layer(stack, index, windows, place, settings, limit, meter)
                factor = pack_within(layer, limit)
                to_disk(layer)
                trim_memory()
                quarter = max(1, len(errors) // 4)
                first, last = sum(errors[:quarter]) / quarter, sum(errors[-quarter:]) / quarter
                sizes = {"relative_error_before": first, "relative_error_after": last, "step_factor": factor}
                lines.append({"layer": index, **sizes})

                def next_states(start: int, batch: Tensor, index: int = index) -> Tensor:
                    given = read_states(place / "given", start, batch, len(windows))
                    return stack.layer(index, batch, given.to(next(student.parameters()).device))

                write(place / "next", windows, settings.batch_size, next_states)
                (place / "next").replace(place / "given")
                (place / f"goal-{index}").unlink()
    for parameter in student.parameters():
        parameter.requires_grad_(False)
    return lines


def train_layer(
    stack: Stack, index: int, windows: Tensor, place: Path, settings: AlignSettings, limit_bytes: int, meter: Meter
) -> list[float]:
    """The steps of a layer; its error at each of them.

    Raises:
        InputError: The loss is not finite.
    """
    layer, errors, device = stack.layers[index], [], next(stack.model.parameters()).device
    matrices = list(tiled_matrices(layer).values())
    make_trainable(layer, settings)
    optimizer, price = optimizer_of(layer, settings), None
    for step in range(settings.layer_steps):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate_factor(step / settings.layer_steps)
        start = (step * settings.batch_size) % max(1, len(windows) - settings.batch_size + 1)
        batch = windows[start : start + settings.batch_size]
        given, goal = (read_states(place / name, start, batch, len(windows)).to(device) for name in ("given", f"goal-{index}"))
        with torch.enable_grad(), half_precision(stack.model, settings.precision == "bf16"):
            error = hidden_error(stack.layer(index, batch, given), goal)
        if not torch.isfinite(error):
            raise not_finite(error, f"layer {index}", "align", batch.tolist())
        if step == 0 and settings.price_bits:
            price = bit_price(matrices, limit_bytes, error.item())
        optimizer.zero_grad(set_to_none=True)
        error.backward()
        if price is not None:
            price.follow_at(step, settings.layer_steps)
            price.add_gradients()
        optimizer.step()
        errors.append(error.item())
        meter.advance(f"layer {index}, relative error {errors[-1]:.4f}")
    return errors


@contextmanager
def one_layer_at_a_time(model: Any) -> Iterator[None]:
    """Forward passes decode a decoder layer's weights when it is its turn, and forget them afterwards."""
    release(model)
    hooks = [layer.register_forward_hook(lambda module, *_: release(module)) for layer in Stack(model).layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        release(model)


def release(model: Any) -> None:
    """Forget decoded weights; each is decoded again when it is used."""
    for matrix in tiled_matrices(model).values():
        if not matrix.trainable:
            matrix.dense = matrix.dense.new_empty(0)


def to_disk(layer: Any) -> None:
    """Move what a layer stores, and what rounding took away from it, out of memory, so that neither adds up over layers."""
    for matrix in tiled_matrices(layer).values():
        matrix.payload = on_disk(matrix.payload)
        if matrix.remainders is not None:
            matrix.remainders = on_disk(matrix.remainders)


def trim_memory() -> None:
    """Give freed memory back to the system, where glibc is: it lies scattered, and would grow with every layer."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def on_disk(values: Tensor) -> Tensor:
    """The same values, mapped from a file that lives as long as they do; as they are where they are not on the CPU."""
    if not values.numel() or values.device.type != "cpu":
        return values
    with tempfile.NamedTemporaryFile() as file:
        values.contiguous().numpy().tofile(file)
        file.flush()
        return torch.from_file(file.name, shared=True, size=values.numel(), dtype=values.dtype).view(values.shape)


@torch.no_grad()
def spill(teacher: Teacher, rows: list[int], num_layers: int, place: Path, batch_size: int) -> None:
    """Write what the original's layers give, but the last one, a file a layer."""
    writers = [StateWriter(place / f"goal-{index}") for index in range(num_layers - 1)]
    for start in range(0, len(rows), batch_size):
        hidden = teacher.targets(rows[start : start + batch_size], True).hidden
        assert hidden is not None
        for writer, states in zip(writers, hidden[1:-1], strict=True):
            writer.write(states)
    for writer in writers:
        writer.finish()


@torch.no_grad()
def write(path: Path, windows: Tensor, batch_size: int, states: Any) -> None:
    """Write `states(first window, batch)` of all windows."""
    writer = StateWriter(path)
    for start in range(0, len(windows), batch_size):
        writer.write(states(start, windows[start : start + batch_size]))
    writer.finish()
