"""What a user would try instead of section-wise reading, trained by Transformers' own `Trainer` (paper 3.3's rivals).

All of it sees the same sections as `adapt`: one pass over all questions, or over the raw text, in random
order; what learns is everything, or LoRA adapters alone.
"""

from __future__ import annotations

import math
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from quasitile.adapt.curriculum import Lesson, read_lessons, spread
from quasitile.adapt.draw import draw_back
from quasitile.adapt.examples import IGNORED, answer_tokens, padded
from quasitile.adapt.reader import pad_of
from quasitile.align.steps import held_out_nats
from quasitile.baselines.lora import add_lora
from quasitile.compress.refit import pack_within
from quasitile.compress.text import read_texts, token_windows
from quasitile.compress.windows import QUESTIONS
from quasitile.errors import InputError
from quasitile.folders import stage_folder, write_jsonl
from quasitile.runtime import device_of, is_compressed, load_model, load_trainable, save_model, tiled_matrices, weight_bytes
from quasitile.runtime.lora import adapter_bytes, known_layers, optional
from quasitile.settings import ComputeSettings

Row = tuple[list[int], list[int]]
Batch = dict[str, Tensor]


class TuneSettings(ComputeSettings):
    """A baseline of reading."""

    train: Literal["lora", "full"] = Field(default="lora", description="adapters alone, or everything")
    data: Literal["questions", "text"] = "questions"
    num_steps: int = Field(default=40, ge=1)
    num_tokens: int = Field(default=40_000, ge=2, description="in all steps together")
    text_tokens: int = Field(default=256, ge=2, description="a window of raw or of general text")
    replay_share: float = Field(
        default=0.0, ge=0, lt=1, description="of a step's tokens that are general text, learned as it is"
    )
    forget_nats: float = Field(
        default=0.0,
        ge=0,
        description="what it may cost general text; beyond it is drawn back as in adapt; 0 for whatever it costs",
    )
    judged_windows: int = Field(default=32, ge=1, description="of general text that decide how much is kept")
    group_by_length: bool = Field(default=False, description="rows of like length in a step, as Transformers names it")
    max_sections: int = Field(default=0, ge=0, description="as for adapt")
    learning_rate: float = Field(default=1e-3, gt=0, description="of a compressed model's codes in rounding steps")
    lora_rank: int = Field(default=8, ge=1)
    lora_alpha: float = Field(default=16, gt=0)
    jitter: float = Field(default=0.45, ge=0, lt=0.5, description="as for adapt")
    report_to: tuple[str, ...] = Field(default=(), description="Transformers' callbacks: tensorboard, trackio, wandb, mlflow")
    seed: int = 0


def tune(
    model: str | Path,
    reading: str | Path,
    out: str | Path,
    settings: TuneSettings | None = None,
    *,
    text: str | Path | None = None,
) -> dict[str, Any]:
    """Train a model on a reading folder with Transformers' `Trainer`: the baseline of `adapt`.

    Args:
        model: Dense or compressed.
        reading: A folder that `read` wrote.
        out: The folder to make: a model, or for `lora` PEFT's adapter, which `load_model` opens on top of `model`.
        settings: See `TuneSettings`.
        text: General text for `replay_share` and `forget_nats`.

    Returns:
        The summary.

    Raises:
        InputError: The reading folder holds nothing to train on, there is no text to replay, or PEFT is needed and not
            installed.
    """
    settings = settings or TuneSettings()
    for name in ("replay_share", "forget_nats"):
        if getattr(settings, name) and text is None:
            raise InputError(f"tune.{name} needs general text; give --text")
    lessons = spread(read_lessons(reading), settings.max_sections)
    compressed = is_compressed(model)
    with stage_folder(out, "tune", settings, settings.seed, model=model, reading=reading, text=text) as stage:
        device = device_of(settings.device)
        loaded, tokenizer = (load_trainable if compressed else load_model)(model, device=device)
        limit = sum(matrix.payload.numel() for matrix in tiled_matrices(loaded).values())
        judged, replay = general_windows(tokenizer, read_texts(text), settings) if text is not None else (None, [])
        write_jsonl(stage.path / QUESTIONS, [record for lesson in lessons for record in lesson.records])
        trained, seconds, num_tokens, kept = train(loaded, tokenizer, lessons, settings, replay, judged)
        if settings.train == "lora":
            if Path(model).is_dir():  # so that it is found from anywhere
                trained.peft_config["default"].base_model_name_or_path = str(Path(model).resolve())
            trained.save_pretrained(stage.path)
        elif compressed:
            stage.summary["step_factor"] = pack_within(loaded, limit)
            save_model(loaded, tokenizer, stage.path)
        else:
            loaded.save_pretrained(stage.path)
            tokenizer.save_pretrained(stage.path)
        beside = weight_bytes(model) if settings.train == "lora" else 0  # an adapter is stored beside its model
        stage.summary |= {
            "stored_bytes": beside + adapter_bytes(stage.path),
            "num_steps": settings.num_steps,
            "num_tokens": num_tokens,
            "kept_share": kept,
            "train_seconds": round(seconds, 2),
        }
    return stage.summary


def train(
    model: Any, tokenizer: Any, lessons: list[Lesson], settings: TuneSettings, replay: list[Row], judged: Tensor | None
) -> tuple[Any, float, int, float]:
    """Train in memory, and draw back what costs `judged` too much.

    Returns:
        The model, inside PEFT's for `lora`; seconds; tokens that went through it; and the share of the way that is kept.
    """
    transformers = optional("transformers")
    optional("accelerate")
    batches = list(batches_of(tokenizer, lessons, settings, model.config.max_position_embeddings, replay))
    compressed = bool(tiled_matrices(model))
    if settings.train == "lora":
        model = add_lora(model, settings.lora_rank, settings.lora_alpha, settings.seed)
    else:
        train_everything(model, settings)
    watched = judged if settings.forget_nats > 0 else None
    # An adapter is a product of two matrices, of which one starts at 0: drawing that one back draws the product back.
    moving = (
        [p for name, p in model.named_parameters() if p.requires_grad and "lora_A" not in name] if watched is not None else []
    )
    start = [p.detach().clone() for p in moving]
    before = held_out_nats(model, watched) if watched is not None else 0.0
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            max_steps=len(batches),
            per_device_train_batch_size=1,  # of batches that are ready
            learning_rate=settings.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=max(1, len(batches) // 20),
            bf16=True,
            use_cpu=next(model.parameters()).device.type == "cpu",
            save_strategy="no",
            logging_strategy="no",
            report_to=list(settings.report_to) or "none",
            remove_unused_columns=False,
            disable_tqdm=True,
            seed=settings.seed,
        )
        trainer = transformers.Trainer(
            model=model, args=arguments, train_dataset=batches, data_collator=lambda rows: rows[0], callbacks=[]
        )
        trainer.remove_callback(transformers.PrinterCallback)
        started = time.monotonic()
        with known_layers():
            trainer.train()
        seconds = time.monotonic() - started
    model.eval()
    kept = 1.0
    if watched is not None:
        kept = draw_back(moving, start, lambda: held_out_nats(model, watched) - before, settings.forget_nats)
    if compressed and settings.train == "full":
        for parameter in model.parameters():
            parameter.requires_grad_(False)
    return model, seconds, sum(int(batch["attention_mask"].sum()) for batch in batches), kept


def train_everything(model: nn.Module, settings: TuneSettings) -> None:
    """Everything learns: all weights, or of a compressed model all coefficients, as in `adapt`."""
    matrices = tiled_matrices(model)
    for parameter in model.parameters():
        parameter.requires_grad_(not matrices)
    generator = torch.Generator().manual_seed(settings.seed)
    for matrix in matrices.values():
        matrix.make_trainable(generator, settings.jitter)
        for block in matrix.rank_blocks():
            block.gain.requires_grad_(False)


def batches_of(
    tokenizer: Any, lessons: list[Lesson], settings: TuneSettings, limit: int, replay: Sequence[Row] = ()
) -> Iterator[Batch]:
    """As many batches as there are steps, of about the same number of tokens; a pass over the data after another.

    Args:
        tokenizer: Of the model.
        lessons: What is learned.
        settings: The amounts.
        limit: Tokens that a row may have.
        replay: General text, of which every batch gets its share.

    Raises:
        InputError: A step has no room for a single row.
    """
    rng = random.Random(settings.seed)
    rows = text_rows(tokenizer, lessons, settings.text_tokens) if settings.data == "text" else question_rows(tokenizer, lessons)
    per_step, pad = settings.num_tokens / settings.num_steps, pad_of(tokenizer)
    if per_step < 2:
        raise InputError(f"num_tokens={settings.num_tokens} in {settings.num_steps} steps leaves none a step; raise it")
    run = 1
    if settings.group_by_length:  # of fifty batches, as there
        run = max(1, round(50 * per_step * len(rows) / sum(len(tokens) for tokens, _ in rows)))
    sources = [Source(rows, 1 - settings.replay_share if replay else 1.0, rng, run)]
    if replay:
        sources.append(Source(replay, settings.replay_share, rng))
    for step in range(settings.num_steps):
        chosen = [row for source in sources for row in source.take(per_step * (step + 1), limit)]
        tokens, mask, labels = padded(chosen, pad, limit)
        yield {"input_ids": tokens, "attention_mask": mask, "labels": labels}


class Source:
    """Rows in random order, a pass after another; all batches together get their share of the tokens.

    `run` rows at a time go by length, the longest first.
    """

    def __init__(self, rows: Sequence[Row], share: float, rng: random.Random, run: int = 1) -> None:
        self.rows, self.share, self.rng, self.run = rows, share, rng, run
        self.waiting: list[Row] = []
        self.taken = 0

    def take(self, num_tokens: float, limit: int) -> list[Row]:
        """One row at least, and as many as `num_tokens` of all batches so far need."""
        chosen: list[Row] = []
        while not chosen or self.taken < num_tokens * self.share:
            self.waiting = self.waiting or self.shuffled()
            chosen.append(self.waiting.pop())
            self.taken += min(limit, len(chosen[-1][0]))
        return chosen

    def shuffled(self) -> list[Row]:
        """All rows, the next one last."""
        rows = self.rng.sample(self.rows, len(self.rows))
        runs = [rows[start : start + self.run] for start in range(0, len(rows), self.run)]
        return [row for run in runs for row in sorted(run, key=lambda row: len(row[0]))]


def question_rows(tokenizer: Any, lessons: list[Lesson]) -> list[Row]:
    """Every question with its answer, which alone is learned."""
    return [answer_tokens(tokenizer, record, "none") for lesson in lessons for record in lesson.records]


def text_rows(tokenizer: Any, lessons: list[Lesson], length: int) -> list[Row]:
    """The sections' running text in windows; all of it is learned."""
    stream: list[int] = []
    for lesson in lessons:
        stream += tokenizer(f"{lesson.title}\n\n{lesson.text}\n\n", add_special_tokens=False)["input_ids"]
    windows = [stream[start : start + length] for start in range(0, len(stream), length)]
    return [learned(window) for window in windows if len(window) > 1]


def general_windows(tokenizer: Any, texts: list[str], settings: TuneSettings) -> tuple[Tensor, list[Row]]:
    """General text in windows: those that decide how much is kept, and as many to replay as a run can use."""
    length = settings.text_tokens
    needed = math.ceil(settings.num_tokens / length) + settings.num_steps if settings.replay_share else 0
    windows = token_windows(tokenizer, texts, length, settings.judged_windows + needed, settings.seed, True)
    judged = min(settings.judged_windows, len(windows) // 2 if needed else len(windows))
    return windows[:judged], [learned(row) for row in windows[judged:].tolist()]


def learned(window: list[int]) -> Row:
    """A window of which every token but the first is predicted."""
    return window, [IGNORED, *window[1:]]
