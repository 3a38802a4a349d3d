"""Section-wise adaptation: ask, log, teach, watch what it costs, and undo what costs too much."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from quasitile.adapt.curriculum import ORDERS, Lesson, Record, read_lessons, spread
from quasitile.adapt.examples import IGNORED, answer_tokens, padded
from quasitile.adapt.select import SELECTIONS, rank_blocks, usage
from quasitile.adapt.settings import AdaptSettings
from quasitile.align.losses import language_model_nats, logit_kl
from quasitile.align.train import half_precision, held_out_nats
from quasitile.checkpoint import stored_bytes
from quasitile.compress.refit import pack_within
from quasitile.compress.text import read_texts, token_windows
from quasitile.errors import InputError
from quasitile.evaluate.answers import answer_report, ask
from quasitile.folders import read_json, stage_folder, write_jsonl
from quasitile.progress import say, track
from quasitile.runtime import held_weights, is_compressed, load_model, load_trainable, save_model, tiled_matrices
from quasitile.runtime.linear import RankBlock


@dataclass
class Reader:
    """The model that reads, with what it needs at every section."""

    model: Any
    tokenizer: Any
    teacher: Any
    replay: Tensor
    watched: Tensor
    settings: AdaptSettings
    blocks: list[RankBlock]
    background: dict[RankBlock, float]
    optimizer: torch.optim.Optimizer
    rng: random.Random


def adapt(
    model: str | Path,
    reading: str | Path,
    out: str | Path,
    *,
    teacher: str | Path | None = None,
    text: str | Path,
    settings: AdaptSettings | None = None,
) -> dict[str, Any]:
    """Teach a compressed model the sections of a reading folder, one after another (paper 3.3).

    For each section: the model is asked, and its answers, traces and scores are logged; then a few
    gradient steps on the blocks that matter for this section, on its questions in several
    phrasings, on questions of earlier sections, on its text, and on replayed general text; then the
    general loss is looked at, and the section undone if it rose by more than the gate allows.

    Args:
        model: A compressed model folder, aligned or not.
        reading: A folder that `read` wrote.
        out: The model folder to make; it takes no more bytes than `model`.
        teacher: The original: replayed text keeps the model close to it. Without it, the replayed
            text itself is learned.
        text: General text for replay and for the gate, as for `align`.
        settings: See `AdaptSettings`.

    Returns:
        The summary.

    Raises:
        InputError: A folder does not hold what is needed, or the loss is not finite.
    """
    settings = settings or AdaptSettings()
    if not is_compressed(model):
        raise InputError(f"{model} is not compressed; make it with `quasitile compress`")
    lessons = spread(read_lessons(reading), settings.max_sections)
    reader = open_reader(model, teacher, text, settings)
    limit = sum(matrix.payload.numel() for matrix in tiled_matrices(reader.model).values())
    num_undone, num_tokens, answers, step = 0, 0, [], 0
    with stage_folder(out, "adapt", settings, settings.seed, model=model, reading=reading, teacher=teacher, text=text) as stage:
        general = before = held_out_nats(reader.model, reader.watched)
        prepare(reader)
        started, taught = time.monotonic(), []
        plan = [(number, lesson) for number in range(settings.rounds) for lesson in ORDERS[settings.order](lessons, reader.rng)]
        for number, lesson in track(plan, "read section by section"):
            asked = lesson.asked(settings.num_asked)
            rows, _ = ask(reader.model, reader.tokenizer, asked, [None] * len(asked), max_new_tokens=settings.max_new_tokens)
            answers += [{"step": step, "round": number, **row} for row in rows]
            chosen = choose(reader, lesson)
            saved = [[values.detach().clone() for values in block.coefficients()] for block in reader.blocks]
            losses = teach(reader, lesson, taught, chosen, replay_pressure(general - before, settings.forget_nats))
            num_tokens += int(losses.pop("tokens"))
            step += settings.steps_per_section
            now = held_out_nats(reader.model, reader.watched)
            undone = costs_too_much(now, general, before, settings)
            if undone:
                restore(reader.blocks, saved)
                reader.optimizer.state.clear()  # or its momentum would take the same way again
                num_undone += 1
            else:
                general = now
            taught += [] if number else lesson.records
            stage.metric(
                step=step,
                document=lesson.document,
                section=lesson.section,
                section_title=lesson.title,
                tokens=num_tokens,
                **losses,
                asked=answer_report(rows) if rows else None,
                general_nats=now,
                undone=undone,
                num_blocks_trained=len(chosen),
                num_blocks=len(reader.blocks),
                seconds=round(time.monotonic() - started, 2),
            )
        factor = pack_within(reader.model, limit)
        after = held_out_nats(reader.model, reader.watched)
        save_model(reader.model, reader.tokenizer, stage.path)
        write_jsonl(stage.path / "answers.jsonl", answers)
        source = Path(model) / "summary.json"
        sizes = read_json(source) if source.is_file() else {}
        stage.summary |= {key: sizes[key] for key in ("original_bytes", "stored_parameters", "num_parameters") if key in sizes}
        stage.summary |= {
            "stored_bytes": stored_bytes(stage.path),
            "num_sections": len(lessons),
            "num_steps": step,
            "num_tokens": num_tokens,
            "num_undone": num_undone,
            "general_before_nats": before,
            "general_after_nats": after,
            "step_factor": factor,
        }
    say(f"  {len(lessons)} sections read, {num_undone} undone; general loss {before:.3f} -> {after:.3f} nats a token")
    return stage.summary


def open_reader(model: str | Path, teacher: str | Path | None, text: str | Path, settings: AdaptSettings) -> Reader:
    """Load the models and the general text."""
    student, tokenizer = load_trainable(model)
    original = load_model(teacher)[0] if teacher is not None else None
    windows = token_windows(tokenizer, read_texts(text), settings.replay_tokens, 10**9, settings.seed)
    if len(windows) <= settings.gate_windows:
        raise InputError(
            f"{text} gives {len(windows)} windows of {settings.replay_tokens} tokens, the gate alone needs "
            f"{settings.gate_windows}; give more text"
        )
    watched, replay = windows[: settings.gate_windows], windows[settings.gate_windows :]
    placeholder = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    rng = random.Random(settings.seed)
    return Reader(student, tokenizer, original, replay, watched, settings, [], {}, placeholder, rng)


def prepare(reader: Reader) -> None:
    """Make the blocks trainable and note how much background text uses each of them."""
    for parameter in reader.model.parameters():
        parameter.requires_grad_(False)
    generator = torch.Generator().manual_seed(reader.settings.seed)
    for matrix in tiled_matrices(reader.model).values():
        matrix.make_trainable(generator, reader.settings.jitter)
    reader.blocks = rank_blocks(reader.model)
    reader.background = usage(reader.model, reader.watched)
    parameters = [values for block in reader.blocks for values in block.coefficients()]
    reader.optimizer = torch.optim.AdamW(
        parameters, lr=reader.settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, foreach=True
    )


def choose(reader: Reader, lesson: Lesson) -> list[RankBlock]:
    """Select the blocks that will learn from a section, and freeze the others."""
    settings = reader.settings
    here = usage(reader.model, text_tokens(reader, lesson, settings.text_tokens))
    count = max(1, round(settings.select_share * len(reader.blocks)))
    select = SELECTIONS[settings.select]
    used, usual = [here[b] for b in reader.blocks], [reader.background[b] for b in reader.blocks]
    chosen = select(reader.blocks, used, usual, count, reader.rng)
    kept = set(chosen)
    for block in reader.blocks:
        for values in block.coefficients():
            values.requires_grad_(block in kept)
    return chosen


def replay_pressure(rise_nats: float, forget_nats: float) -> float:
    """How many times more replay weighs than at the start: 1, 2 where half of the allowance is used up, at most 10."""
    return 1 / max(0.1, 1 - max(0.0, rise_nats) / forget_nats)


def costs_too_much(now: float, previous: float, start: float, settings: AdaptSettings) -> bool:
    """Whether a section is undone: for its own cost, or because it adds to a total beyond the allowance.

    Args:
        now: General loss after the section, in nats a token.
        previous: Before the section.
        start: Before the first section.
        settings: `gate_nats` and `forget_nats`.
    """
    return now - previous > settings.gate_nats or now > max(previous, start + settings.forget_nats)


def teach(
    reader: Reader, lesson: Lesson, earlier: list[Record], chosen: list[RankBlock], pressure: float = 1.0
) -> dict[str, float]:
    """The gradient steps of one section.

    Args:
        reader: The model and what it needs.
        lesson: The section.
        earlier: Questions of sections read before.
        chosen: The blocks that learn.
        pressure: Replay weighs so many times more than the settings say.

    Returns:
        Mean losses over the steps, and the number of `tokens` that went through the model.
    """
    settings, sums, num_tokens = reader.settings, {"loss_nats": 0.0, "text_nats": 0.0, "replay_nats": 0.0}, 0
    for _ in range(settings.steps_per_section):
        records = draw(lesson.records, settings.num_questions, reader.rng) + draw(earlier, settings.num_revisited, reader.rng)
        with half_precision(), held_weights(reader.model):
            losses, counted = step_losses(reader, records, text_tokens(reader, lesson, settings.text_tokens))
        replay_weight = pressure * settings.replay_weight
        total = losses["loss_nats"] + settings.text_weight * losses["text_nats"] + replay_weight * losses["replay_nats"]
        if not torch.isfinite(total):
            raise InputError(
                f"the loss at {lesson.document}, section {lesson.section}, is {total.item()}; lower adapt.learning_rate"
            )
        reader.optimizer.zero_grad(set_to_none=True)
        total.backward()
        reader.optimizer.step()
        sums = {name: value + losses[name].item() / settings.steps_per_section for name, value in sums.items()}
        num_tokens += counted
    return {**sums, "tokens": num_tokens}


def step_losses(reader: Reader, records: list[Record], text: Tensor) -> tuple[dict[str, Tensor], int]:
    """Losses of one step, each a mean over its tokens: answers, the section's text, replay."""
    settings, model, zero = reader.settings, reader.model, torch.zeros(())
    pad = reader.tokenizer.pad_token_id if reader.tokenizer.pad_token_id is not None else 0
    rows = [answer_tokens(reader.tokenizer, record, settings.trace) for record in records]
    tokens, mask, labels = padded(rows, pad, reader.model.config.max_position_embeddings)
    logits = model(tokens, attention_mask=mask, use_cache=False).logits
    answers = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
    losses, counted = {"loss_nats": answers, "text_nats": zero, "replay_nats": zero}, int(mask.sum())
    if settings.text_weight:
        losses["text_nats"] = language_model_nats(model(text, use_cache=False).logits, text)
        counted += text.numel()
    if settings.replay_weight and settings.replay_windows:
        window = reader.replay[[reader.rng.randrange(len(reader.replay)) for _ in range(settings.replay_windows)]]
        logits = model(window, use_cache=False).logits
        if reader.teacher is None:
            losses["replay_nats"] = language_model_nats(logits, window)
        else:
            with torch.inference_mode():
                target = reader.teacher(window, use_cache=False).logits
            losses["replay_nats"] = logit_kl(logits, target)
        counted += window.numel()
    return losses, counted


def text_tokens(reader: Reader, lesson: Lesson, limit: int) -> Tensor:
    """A random stretch of a section's text, (1, at most `limit`) token ids."""
    ids = reader.tokenizer(f"{lesson.title}\n\n{lesson.text}", add_special_tokens=False)["input_ids"]
    start = reader.rng.randrange(max(1, len(ids) - limit + 1))
    return torch.tensor(ids[start : start + limit])[None]


def draw(records: list[Record], count: int, rng: random.Random) -> list[Record]:
    """At most `count` records without repetition."""
    return rng.sample(records, min(count, len(records)))


@torch.no_grad()
def restore(blocks: list[RankBlock], saved: list[list[Tensor]]) -> None:
    """Put coefficients back to what they were."""
    for block, before in zip(blocks, saved, strict=True):
        for values, old in zip(block.coefficients(), before, strict=True):
            values.copy_(old)
