"""Alignment: the blocks of the compressed model learn to reproduce the original (paper 3.2.2)."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quasitile.align.cutoffs import CutOffs
from quasitile.align.layers import align_layers, one_layer_at_a_time
from quasitile.align.losses import hidden_loss, language_model_nats, logit_kl, top_k_kl
from quasitile.align.optimizer import make_trainable, optimizer_of, suited_rate
from quasitile.align.price import bit_price
from quasitile.align.processes import Processes
from quasitile.align.record import Targets
from quasitile.align.reporting import Reports
from quasitile.align.settings import AlignSettings
from quasitile.align.sharding import Shards
from quasitile.align.state import State
from quasitile.align.steps import batch_kept, enable_checkpointing, half_precision, held_out_nats, not_finite, rate_factor
from quasitile.align.teacher import LiveTeacher, Teacher, open_teacher
from quasitile.checkpoint import stored_bytes
from quasitile.compress.refit import pack_within
from quasitile.errors import InputError
from quasitile.folders import Stage, read_json, stage_folder
from quasitile.progress import Meter, say
from quasitile.runtime import device_of, is_compressed, load_trainable, save_model, tiled_matrices


def align(
    model: str | Path, out: str | Path, *, teacher: str | Path, text: str | Path, settings: AlignSettings | None = None
) -> dict[str, Any]:
    """Train a compressed model's blocks against the original.

    Under `torchrun` or `accelerate launch` every process takes its share of each batch; the first one writes.

    Args:
        model: A folder that `compress` wrote.
        out: The model folder to make; it takes no more bytes than `model`. A run that was killed goes on from its last
            state and ends in the same model.
        teacher: The original, or what `record` kept of it.
        text: Unlabelled general text, as for `compress`; a recording brings its own.
        settings: See `AlignSettings`.

    Returns:
        The summary: damage on held-out windows of the text before and after, among others.

    Raises:
        InputError: `model` is not compressed, the two do not fit together, or the loss is not finite; then its batch is
            kept beside `out`.
    """
    settings = settings or AlignSettings()
    if not is_compressed(model):
        raise InputError(f"{model} is not compressed; make it with `quasitile compress`")
    device = device_of(settings.device)
    student, tokenizer = load_trainable(model, device, decoded=not settings.layer_steps)
    original = open_teacher(teacher, tokenizer, text, settings.num_tokens, settings.seed, settings.precision == "bf16", device)
    check(student, original, settings, model, teacher, text)
    if settings.learning_rate is None:
        settings = settings.model_copy(update={"learning_rate": suited_rate(student)})
        say(f"  learning_rate={settings.learning_rate:g}, which suits this model")
    processes = Processes(settings.batch_size, settings.gradient_accumulation, device)
    if settings.shard:
        processes.check_shards("align")
    inputs = {"model": model, "teacher": teacher, "text": text}
    with batch_kept(out), processes.folder(out) as place:
        resume = settings.save_every > 0 and processes.num == 1
        with stage_folder(place, "align", settings, settings.seed, resume=resume, **inputs) as stage:
            limit = sum(matrix.payload.numel() for matrix in tiled_matrices(student).values())
            layers = layers_first(student, original, settings) if settings.layer_steps else {}
            if layers and not settings.num_steps:
                if processes.first:
                    factor = max((line["step_factor"] for line in layers["layers"]), default=1.0)
                    found = {"damage_after_nats": layers["damage_after_layers_nats"], "step_factor": factor}
                    conclude(stage, student, tokenizer, model, settings, {**layers, **found})
                return stage.summary
            stored = Path(model)
            if layers and settings.shard and processes.first:  # what the shards are of, to gather them in
                stored = stage.path / "layers"
                stored.mkdir()
                save_model(student, tokenizer, stored)
            run = Run(student, original, settings, processes, limit)
            run.train(stage, inputs if resume else None)
            if run.shards is not None:
                whole = whole_student(stored, settings, device) if processes.first else None
                run.shards.collect(whole)
                student = student if whole is None else whole
            if not processes.first:
                return {}
            student.eval()
            factor = pack_within(student, limit)
            after = run.held_out.damage(student)
            if stored != Path(model):
                shutil.rmtree(stored)
            damages = {"damage_before_nats": run.before, "damage_after_nats": after, "step_factor": factor}
            conclude(stage, student, tokenizer, model, settings, {**damages, **layers})
    return stage.summary


def layers_first(student: Any, teacher: Teacher, settings: AlignSettings) -> dict[str, Any]:
    """Align layer by layer, with the weights of one decoder layer in memory at a time; what the summary says of it."""
    held_out = HeldOut(teacher, settings)
    with one_layer_at_a_time(student):
        before = held_out.damage(student)
    lines = align_layers(student, teacher, window_order(len(teacher.windows), settings.layer_steps, settings), settings)
    with one_layer_at_a_time(student):
        return {"layers": lines, "damage_before_nats": before, "damage_after_layers_nats": held_out.damage(student)}


def conclude(
    stage: Stage, student: Any, tokenizer: Any, model: str | Path, settings: AlignSettings, found: dict[str, Any]
) -> None:
    """Store the model, packed, and what the summary says of it."""
    save_model(student, tokenizer, stage.path, trainable=True)
    source = Path(model) / "summary.json"
    sizes = read_json(source) if source.is_file() else {}
    known = ("original_bytes", "stored_parameters", "num_parameters")
    stage.summary |= {key: sizes[key] for key in known if key in sizes}
    stage.summary |= {
        "stored_bytes": stored_bytes(stage.path),
        "num_tokens": (settings.num_steps or settings.layer_steps) * settings.batch_size * settings.num_tokens,
        "learning_rate": settings.learning_rate,
        **found,
    }
    say(f"  damage on held-out text: {found['damage_before_nats']:.3f} -> {found['damage_after_nats']:.3f} nats a token")


def check(student: Any, teacher: Teacher, settings: AlignSettings, model: object, original: object, text: object) -> None:
    """Refuse what does not fit together.

    Raises:
        InputError: The vocabularies differ, or there is too little text.
    """
    if teacher.vocabulary_size != student.config.vocab_size:
        raise InputError(
            f"{original} has {teacher.vocabulary_size} tokens and {model} {student.config.vocab_size}; "
            "give the original of this model"
        )
    needed = settings.held_out_windows + settings.batch_size
    if len(teacher.windows) < needed:
        raise InputError(
            f"{text} gives {len(teacher.windows)} windows of {settings.num_tokens} tokens, fewer than the {needed} needed; "
            "give more text or lower align.batch_size"
        )


class HeldOut:
    """Windows of the text that are never trained on.

    Args:
        teacher: See `Teacher`.
        settings: `held_out_windows` counts.
    """

    def __init__(self, teacher: Teacher, settings: AlignSettings) -> None:
        self.windows = teacher.windows[: settings.held_out_windows]
        self.teacher_nats = teacher.nats(list(range(settings.held_out_windows)))

    def damage(self, student: Any) -> float:
        """By how much its loss is above the original's, nats a token."""
        return held_out_nats(student, self.windows) - self.teacher_nats


class Run:
    """A training run end to end.

    Args:
        student: Compressed; becomes trainable.
        teacher: See `Teacher`.
        settings: See `AlignSettings`.
        processes: That share the batches.
        limit_bytes: For the payloads of all matrices.
    """

    def __init__(self, student: Any, teacher: Teacher, settings: AlignSettings, processes: Processes, limit_bytes: int) -> None:
        self.student, self.teacher, self.settings, self.processes = student, teacher, settings, processes
        self.device = next(student.parameters()).device
        self.held_out = HeldOut(teacher, settings)
        self.before = self.held_out.damage(student)
        make_trainable(student, settings)
        self.shards: Shards | None = None
        if settings.shard:
            self.shards = Shards(student, processes.num)
            if isinstance(teacher, LiveTeacher):
                Shards(teacher.model, processes.num)
        self.optimizer = optimizer_of(student, settings)
        matrices = list(tiled_matrices(student).values())
        priced = settings.price_bits or settings.cut_offs
        self.price = bit_price(matrices, limit_bytes, self.before, processes, self.shards) if priced else None
        self.order = window_order(len(teacher.windows), settings.num_steps, settings)
        if settings.checkpointing:
            enable_checkpointing(student)

    def train(self, stage: Stage, purpose: Mapping[str, object] | None) -> None:
        """All steps; from the last state on where a purpose says that states are kept."""
        settings = self.settings
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        state, first = None, 0
        if purpose is not None:
            state = State(stage, {**purpose, **settings.model_dump(mode="json")}, parameters, self.optimizer)
            found = state.restore()
            first = found["step"]
            if self.price is not None and "nats_per_bit" in found:
                self.price.nats_per_bit = found["nats_per_bit"]
        reports = Reports(settings.report_to if self.processes.first else (), self.student, settings.num_steps, stage.path)
        started, batch_tokens = time.monotonic(), settings.batch_size * settings.num_tokens
        self.student.train(settings.checkpointing)  # which Transformers does in training mode alone
        with Meter("align", settings.num_steps, first) as meter:
            for step in range(first, settings.num_steps):
                losses = self.step(step)
                seconds = time.monotonic() - started
                line = {"step": step + 1, "tokens": (step + 1) * batch_tokens, **losses, "seconds": round(seconds, 2)}
                stage.metric(**line)
                reports.log(step + 1, line)
                speed = (step + 1 - first) * batch_tokens / max(seconds, 1e-9)
                meter.advance(f"loss {losses['loss']:.3f}, {speed:,.0f} tokens/s")
                if state is not None and (step + 1) % settings.save_every == 0 and step + 1 < settings.num_steps:
                    state.save(step + 1, **({"nats_per_bit": self.price.nats_per_bit} if self.price else {}))
        reports.end()
        if state is not None:
            state.forget()

    def step(self, step: int) -> dict[str, float]:
        """One step of gradient descent; every loss as a number, the mean over all processes.

        Raises:
            InputError: The loss is not finite.
        """
        settings, price = self.settings, self.price
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rate_factor(step / settings.num_steps)
        if price is not None:
            price.follow_at(step, settings.num_steps)
        rows = self.order[step * settings.batch_size : (step + 1) * settings.batch_size]
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        for part in self.processes.parts(rows):
            targets = self.teacher.targets(part, settings.hidden_weight > 0).to(self.device)
            losses = losses_of(
                self.student, self.teacher.windows[part], targets, settings, projection(self.teacher, self.student)
            )
            loss = losses["loss"]
            if price is not None and settings.cut_offs:
                loss = loss + price.nats_per_bit * cut_off_bits(self.student)
            if not torch.isfinite(loss):
                raise not_finite(loss, f"step {step + 1} of alignment", "align", self.teacher.windows[part].tolist())
            (loss / settings.gradient_accumulation).backward()
            for name, value in losses.items():
                sums[name] = sums.get(name, torch.zeros(())) + value.detach() / settings.gradient_accumulation
        if self.shards is None:
            self.processes.average_gradients(self.optimizer)
        if price is not None and settings.price_bits:
            price.add_gradients()
        self.optimizer.step()
        return {name: self.processes.mean(value) for name, value in sums.items()}


def window_order(num_windows: int, num_steps: int, settings: AlignSettings) -> list[int]:
    """The windows that steps take, none of those held out: the same whichever stage asks, so that both read the same text."""
    generator, num = torch.Generator().manual_seed(settings.seed), num_windows - settings.held_out_windows
    epochs = num_steps * settings.batch_size // num + 1
    order = torch.cat([torch.randperm(num, generator=generator) for _ in range(epochs)])
    return (order + settings.held_out_windows).tolist()


def whole_student(model: Path, settings: AlignSettings, device: torch.device) -> Any:
    """The model again, trainable and without shards."""
    student, _ = load_trainable(model, device)
    make_trainable(student, settings)
    return student


def losses_of(
    student: Any, batch: Tensor, targets: Targets, settings: AlignSettings, project: Callable[[Tensor, Tensor], Tensor]
) -> dict[str, Tensor]:
    """Every loss of a batch, and their weighted sum as `loss`.

    Args:
        student: Trainable.
        batch: (B, T) token ids.
        targets: What the original makes of them.
        settings: The weights.
        project: Hidden states and the last layer's to logits.
    """
    hidden = settings.hidden_weight > 0
    with half_precision(student, settings.precision == "bf16"):
        output = student(batch, output_hidden_states=hidden, use_cache=False)
        losses: dict[str, Tensor] = {}
        if targets.logits is not None:
            losses["logit_kl_nats"] = logit_kl(output.logits, targets.logits, settings.temperature)
        else:
            assert targets.ids is not None
            assert targets.log_probabilities is not None
            known = targets.ids, targets.log_probabilities
            losses["logit_kl_nats"] = top_k_kl(output.logits, *known, settings.temperature)
        loss = settings.logit_weight * losses["logit_kl_nats"]
        if hidden:
            assert targets.hidden is not None
            name = f"hidden_{settings.divergence}" + ("_nats" if settings.divergence in ("kl", "js") else "")
            last = targets.hidden[-1]
            losses[name] = hidden_loss(
                output.hidden_states,
                targets.hidden,
                settings.divergence,
                settings.reading,
                lambda states: project(states, last),
                settings.layers,
            )
            loss = loss + settings.hidden_weight * losses[name]
        if settings.language_model_weight > 0:
            losses["language_model_nats"] = language_model_nats(output.logits, batch)
            loss = loss + settings.language_model_weight * losses["language_model_nats"]
    return {"loss": loss, **losses}


def projection(teacher: Teacher, student: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """Through the original's output head; of a recording, through the student's as it is."""
    head = getattr(teacher, "model", student).get_output_embeddings()

    def project(states: Tensor, last: Tensor) -> Tensor:
        weight = head.weight.detach()
        return nn.functional.linear(at_power_of(states, last).to(weight.dtype), weight)

    return project


def at_power_of(states: Tensor, last: Tensor) -> Tensor:
    """Each token's state (..., D) brought to the power of the head's usual input, `last`, which stands for the final norm."""
    power = [values.float().square().mean(-1, keepdim=True).clamp_min(1e-12).sqrt() for values in (last, states)]
    return states * (power[0] / power[1])


def cut_off_bits(student: nn.Module) -> Tensor:
    """What the gates of all factors keep, in bits."""
    total = torch.zeros(())
    for matrix in tiled_matrices(student).values():
        for block in matrix.rank_blocks():
            for gate, values in zip(block.cut_offs, (block.left, block.right), strict=False):
                assert isinstance(gate, CutOffs)
                total = total + gate.bits(values)
    return total
