"""The model that reads, and what it needs at every section."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quasitile.adapt.curriculum import Lesson, Record
from quasitile.adapt.examples import Expected, Row, answer_loss, answer_tokens, num_wanted, padded
from quasitile.adapt.select import SELECTIONS, gradient_power, gradient_powers, learning_parts, rank_blocks, usage
from quasitile.adapt.settings import AdaptSettings
from quasitile.align.losses import language_model_nats
from quasitile.align.optimizer import bits_with_residual
from quasitile.align.processes import Processes
from quasitile.align.sharding import Shards, local
from quasitile.align.steps import enable_checkpointing, expected_nats, half_precision, held_out_nats
from quasitile.compress.text import read_texts, token_windows
from quasitile.errors import InputError
from quasitile.evaluate.batches import like_lengths
from quasitile.progress import say
from quasitile.runtime import device_of, load_model, load_trainable, tiled_matrices
from quasitile.runtime.linear import RankBlock

PASS_TOKENS = {"cpu": 128, "gpu": 1024}  # what a pass costs beside its tokens, in tokens; on one core measured, else estimated

# Staying close to the original pulls nowhere until something is forgotten; learning replayed text does from the first step.
REPLAY_WEIGHT, TEXT_WEIGHT = 10.0, 1.0
RATE, RATE_BITS = 0.01, 4  # at so many bits a weight
LEAST_BITS, MOST_BITS = 2, 8  # below, a smaller rate teaches less; above, none was tried


@dataclass
class Reader:
    """The model that reads, with what it needs at every section."""

    model: Any
    tokenizer: Any
    teacher: Any
    replay: Tensor
    watched: Tensor
    judged: Tensor
    settings: AdaptSettings
    blocks: list[RankBlock]
    background: list[float]
    optimizer: torch.optim.Optimizer
    rng: random.Random
    processes: Processes
    chosen: list[RankBlock] | None = None  # that learn from the section; nothing while they are still to be chosen
    shards: Shards | None = None  # of the model; the teacher has some then, too

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.model.parameters()).device

    @property
    def limit(self) -> int:
        """Tokens that the model can see at once."""
        return self.model.config.max_position_embeddings

    @property
    def replay_weight(self) -> float:
        """Of replayed text in a step."""
        if self.settings.replay_weight is not None:
            return self.settings.replay_weight
        return REPLAY_WEIGHT if self.teacher is not None else TEXT_WEIGHT

    def half_precision(self) -> torch.autocast:
        """bf16 for products where the settings say so."""
        return half_precision(self.model, self.settings.precision == "bf16")

    def rows(self, records: list[Record]) -> list[Row]:
        """Questions with their answers as tokens, cut where the model sees no further."""
        rows = [answer_tokens(self.tokenizer, record, self.settings.trace) for record in records]
        return [(tokens[: self.limit], labels[: self.limit]) for tokens, labels in rows]

    def parts(self, indices: list[int]) -> list[list[int]]:
        """What a step computes one after another, of all processes together."""
        num = self.settings.gradient_accumulation
        return [indices[part::num] for part in range(min(num, len(indices)))]

    def like_lengths(self, rows: list[Row], num_processes: int = 1) -> list[list[int]]:
        """Indices of rows in batches of like length, each for so many processes to share."""
        pass_tokens = PASS_TOKENS["cpu" if self.device.type == "cpu" else "gpu"]
        return like_lengths([len(tokens) for tokens, _ in rows], num_processes * pass_tokens)

    def expect(self, records: list[Record], rows: list[Row]) -> list[Expected]:
        """What the model expects of questions with their answers, in one batch."""
        tokens, mask, labels = padded(rows, pad_of(self.tokenizer), self.limit)
        logits = self.model(tokens, attention_mask=mask, use_cache=False).logits
        return list(map(Expected, records, logits.unbind(), labels.unbind()))

    def text(self, lesson: Lesson, limit: int) -> Tensor:
        """A random stretch of a section's text, (1, at most `limit`) token ids."""
        ids = self.tokenizer(f"{lesson.title}\n\n{lesson.text}", add_special_tokens=False)["input_ids"]
        start = self.rng.randrange(max(1, len(ids) - limit + 1))
        return torch.tensor(ids[start : start + limit])[None]

    @torch.no_grad()
    def answer_nats(self, records: list[Record]) -> float:
        """Nats a token of the right answers, without the text."""
        rows, total = self.rows(records), 0.0
        num_tokens = sum(num_wanted(labels) for _, labels in rows)
        for chosen in self.like_lengths(rows):
            answers = self.expect([records[index] for index in chosen], [rows[index] for index in chosen])
            total += float(answer_loss(answers, num_tokens))
        return total

    def draw_replay(self) -> Tensor:
        """Windows of general text for a step, (B, T); none where it does not count."""
        count = self.settings.replay_windows if self.replay_weight else 0
        return self.replay[[self.rng.randrange(len(self.replay)) for _ in range(count)]]

    def mean_over(self, windows: Tensor, nats: Callable[[Tensor], float]) -> float:
        """The mean of what windows (B, T) give, each process taking its share."""
        own = windows[self.processes.index :: self.processes.num]
        total = torch.tensor(nats(own) * len(own) if len(own) else 0.0, dtype=torch.float64, device=self.device)
        return float(self.processes.sum(total)) / len(windows)

    def general_nats(self) -> float:
        """Nats a token of the text that the gate watches."""
        return self.mean_over(self.watched, lambda windows: held_out_nats(self.model, windows))

    def expected_nats(self) -> float:
        """Nats a token of the text that decides in the end, as the original expects it; without it, of the text as it is.

        With the original, the noise of a difference is half as large (docs/results/learning-tried.md).
        """
        if self.teacher is None:
            return self.mean_over(self.judged, lambda windows: held_out_nats(self.model, windows))
        return self.mean_over(self.judged, lambda windows: expected_nats(self.model, self.teacher, windows))

    def difficulty(self, lesson: Lesson) -> float:
        """Nats a token of a section's answers, one question a fact."""
        return self.answer_nats(lesson.asked(4))

    def weigh_background(self) -> list[float]:
        """What each block counts for background text, as `select` measures it: its use, or its gradient."""
        text = self.watched
        if self.settings.select == "usage":
            found = usage(self.model, text)
        elif self.settings.select == "gradient":

            def loss() -> Tensor:
                with self.half_precision():
                    return language_model_nats(self.model(text, use_cache=False).logits, text)

            found = gradient_powers(self.model, loss)
        else:
            return [1.0] * len(self.blocks)
        powers = [found[block] for block in self.blocks]
        return self.over_shards(powers) if self.settings.select == "gradient" else powers

    def choose(self, lesson: Lesson) -> None:
        """Select the blocks that will learn from a section, and freeze the others.

        By gradient, all of them stay as they are until the first step has one: see `choose_by_gradient`.
        """
        if self.settings.select == "gradient":
            self.chosen = None
            self.let_learn(self.blocks)
            return
        here = [1.0] * len(self.blocks)
        if self.settings.select == "usage":
            found = usage(self.model, self.text(lesson, self.settings.text_tokens))
            here = [found[block] for block in self.blocks]
        self.take(here)

    def choose_by_gradient(self) -> None:
        """Select the blocks by the gradients that they have now, and freeze the others."""
        self.take(self.over_shards([gradient_power(block) for block in self.blocks]))

    def over_shards(self, powers: list[float]) -> list[float]:
        """Of each block, the sum of what the processes have of it, where they have shards."""
        if self.shards is None:
            return powers
        return self.processes.sum(torch.tensor(powers, device=self.device)).tolist()

    def add_gradients(self) -> None:
        """Let every process have the sum of gradients; in shards it has, and every process its part."""
        if self.shards is None:
            self.processes.add_gradients(self.learning())

    def take(self, here: list[float]) -> None:
        """Select blocks by what each counts for a section."""
        count = max(1, round(self.settings.select_share * len(self.blocks)))
        self.chosen = SELECTIONS[self.settings.select](self.blocks, here, self.background, count, self.rng)
        self.let_learn(self.chosen)

    def let_learn(self, chosen: list[RankBlock]) -> None:
        """These blocks learn, the others are frozen and lose the gradients that they have."""
        kept = set(chosen)
        for block in self.blocks:
            learns = {id(values) for values in learning_parts(block, self.settings.trains) if block in kept}
            for values in block.coefficients():
                if id(values) not in learns:
                    values.grad = None
                if self.shards is None:  # whose parameters are frozen before they are shared out, or never
                    values.requires_grad_(id(values) in learns)

    def learning(self) -> list[nn.Parameter]:
        """What learns now, in a fixed order."""
        return [values for block in self.blocks for values in block.coefficients() if values.requires_grad]

    def snapshot(self) -> list[list[Tensor]]:
        """All coefficients as they are."""
        return [[local(values.detach()).clone() for values in block.coefficients()] for block in self.blocks]

    @torch.no_grad()
    def restore(self, saved: list[list[Tensor]], share: float = 0.0) -> None:
        """Put coefficients back to what they were.

        Args:
            saved: As `snapshot` gave them.
            share: Of what has been learned since that is kept. Where that is nothing, the optimiser forgets too, or its
                momentum would take the same way again.
        """
        for block, before in zip(self.blocks, saved, strict=True):
            for values, old in zip(block.coefficients(), before, strict=True):
                local(values).copy_(torch.lerp(old, local(values), share))
        if not share:
            self.optimizer.state.clear()

    @property
    def learning_rate(self) -> float:
        """That of the next step."""
        return self.optimizer.param_groups[0]["lr"]

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate


def open_reader(model: str | Path, teacher: str | Path | None, text: str | Path, settings: AdaptSettings) -> Reader:
    """Load the models and the general text.

    Raises:
        InputError: There is too little text, or guidance without a teacher.
    """
    if settings.guidance_weight and teacher is None:
        raise InputError("adapt.guidance_weight needs the original model; give --teacher, or leave guidance out")
    device = device_of(settings.device)
    processes = Processes(0, 1, device)
    if settings.shard:
        processes.check_shards("adapt")
    student, tokenizer = load_trainable(model, device)
    if settings.learning_rate is None:
        settings = settings.model_copy(update={"learning_rate": reading_rate(student)})
        say(f"  learning_rate={settings.learning_rate:g}, which suits this model")
    original = open_original(teacher, device)
    windows = token_windows(tokenizer, read_texts(text), settings.replay_tokens, 10**9, settings.seed, from_end=True)
    gate = processes.num * math.ceil(settings.gate_windows / processes.num)  # every process as many
    if len(windows) <= gate:
        raise InputError(
            f"{text} gives {len(windows)} windows of {settings.replay_tokens} tokens, the gate alone needs {gate}; "
            "give more text"
        )
    judged = min(settings.judged_windows, len(windows) // 2)
    held_out = max(gate, judged - judged % processes.num)
    watched, judged, replay = windows[:gate], windows[:held_out], windows[held_out:]
    placeholder = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    rng = random.Random(settings.seed)
    return Reader(student, tokenizer, original, replay, watched, judged, settings, [], [], placeholder, rng, processes)


def reading_rate(model: nn.Module) -> float:
    """The learning rate of the codes, in rounding steps, that suits a compressed model.

    With every bit a rounding step halves, so that twice as much of it moves a weight as far. Below 2 bits general text has
    more to win from replay than to lose, and a smaller rate than at 2 bits teaches half as much (docs/results/learning.md).

    Args:
        model: Not trainable yet.
    """
    bits = bits_with_residual(model)
    return RATE if bits is None else float(f"{RATE * 2 ** (min(max(bits, LEAST_BITS), MOST_BITS) - RATE_BITS):.2g}")


def open_original(teacher: str | Path | None, device: torch.device) -> Any:
    """The original, frozen; nothing where none is given."""
    return load_model(teacher, device=device)[0].requires_grad_(False) if teacher is not None else None


def make_trainable(model: nn.Module, settings: AdaptSettings) -> None:
    """Put every matrix into its trainable state; nothing else learns."""
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(settings.seed)
    for matrix in tiled_matrices(model).values():
        matrix.make_trainable(generator, settings.jitter)


def without_shards(reader: Reader, model: str | Path, teacher: str | Path | None) -> Reader | None:
    """The reader with whole models; all processes must call this.

    Args:
        reader: As it has read.
        model: The folder that its model came from.
        teacher: The original's.

    Returns:
        The reader itself where it has no shards; otherwise one for the first process alone, and nothing for the others.
    """
    if reader.shards is None:
        return reader
    if not reader.processes.first:
        reader.shards.collect(None)
        return None
    student, _ = load_trainable(model, reader.device)
    make_trainable(student, reader.settings)
    reader.shards.collect(student)
    alone = Processes(0, 1, reader.device, alone=True)
    return replace(reader, model=student, teacher=open_original(teacher, reader.device), processes=alone, shards=None)


def prepare(reader: Reader) -> None:
    """Make the blocks trainable and note how much background text uses each of them.

    Raises:
        InputError: No block has what is to learn.
    """
    settings = reader.settings
    assert settings.learning_rate is not None  # `open_reader` chooses it
    make_trainable(reader.model, settings)
    reader.blocks = [block for block in rank_blocks(reader.model) if learning_parts(block, settings.trains)]
    if settings.checkpointing:
        enable_checkpointing(reader.model)
    if not reader.blocks:
        raise InputError(f"adapt.trains={settings.trains}: no block of this model has any; leave it at all")
    if settings.shard:
        reader.shards = Shards(reader.model, reader.processes.num)
        if reader.teacher is not None:
            Shards(reader.teacher, reader.processes.num)
    reader.background = reader.weigh_background()
    parameters = [values for block in reader.blocks for values in learning_parts(block, settings.trains)]
    reader.optimizer = torch.optim.AdamW(
        parameters, lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, foreach=True
    )


def draw(records: list[Record], count: int, rng: random.Random) -> list[Record]:
    """At most `count` records without repetition."""
    return rng.sample(records, min(count, len(records)))


def pad_of(tokenizer: Any) -> int:
    """The token that fills rows."""
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
