"""Section-wise adaptation: ask, log, teach, watch what it costs, and undo what costs too much."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from quasitile.adapt.curriculum import ORDERS, Lesson, Record, Visit, read_lessons, rounds, spread
from quasitile.adapt.draw import draw_back
from quasitile.adapt.reader import Reader, draw, open_reader, prepare, without_shards
from quasitile.adapt.settings import AdaptSettings
from quasitile.adapt.teach import teach
from quasitile.align.reporting import Reports
from quasitile.align.sharding import local
from quasitile.align.state import State
from quasitile.align.steps import batch_kept
from quasitile.checkpoint import stored_bytes
from quasitile.checkpoint.shards import INDEX, checksum
from quasitile.compress.refit import pack_within
from quasitile.compress.windows import QUESTIONS
from quasitile.errors import InputError
from quasitile.evaluate.answers import answer_report, ask
from quasitile.folders import Stage, read_json, stage_folder, write_jsonl
from quasitile.progress import Meter, say
from quasitile.runtime import is_compressed, save_model, tiled_matrices

MOST_RECALLED = 32  # questions whose answers are looked at before and after storing
LEAST_SHARE = 0.25  # of what a section taught, below which it is undone
SLOWER, FASTER = 0.5, 1.25  # the learning rate after a section that was undone, and after one that was kept


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

    Under `torchrun` or `accelerate launch` every process takes its share of each step; the first one writes.

    For each section: the model is asked, and its answers, traces and scores are logged; then a few
    gradient steps on the blocks that matter for this section, on its questions in several
    phrasings, on questions of earlier sections, on its text, and on replayed general text; then what
    it still answers wrongly is asked and taught again (`follow_ups`); then the general loss is looked
    at, and where it rose by more than the gate allows, half of the section's changes are taken back, and half
    of the rest, and at last all of them. On the way the reading may cost `overshoot` times what it may cost in all;
    at the end the model is drawn back on the straight line to where it began, until general loss is within the allowance.

    Args:
        model: A compressed model folder, aligned or not.
        reading: A folder that `read` wrote.
        out: The model folder to make; it takes no more bytes than `model`. A run that was killed goes on from its last
            state and ends in the same model.
        teacher: The original: replayed text keeps the model close to it. Without it, the replayed
            text itself is learned.
        text: General text for replay and for the gate, as for `align`.
        settings: See `AdaptSettings`.

    Returns:
        The summary.

    Raises:
        InputError: A folder does not hold what is needed, or the loss is not finite; then its batch is
            kept beside `out`.
    """
    settings = settings or AdaptSettings()
    if not is_compressed(model):
        raise InputError(f"{model} is not compressed; make it with `quasitile compress`")
    lessons = spread(read_lessons(reading), settings.max_sections)
    reader = open_reader(model, teacher, text, settings)
    limit = sum(matrix.payload.numel() for matrix in tiled_matrices(reader.model).values())
    inputs = {"model": model, "reading": reading, "teacher": teacher, "text": text}
    resume = settings.save_every > 0 and reader.processes.num == 1
    with (
        batch_kept(out),
        reader.processes.folder(out) as place,
        stage_folder(place, "adapt", settings, settings.seed, resume=resume, **inputs) as stage,
    ):
        contents = [checksum(Path(folder) / file) for folder, file in ((reading, "questions.jsonl"), (model, INDEX))]
        course = read_sections(reader, lessons, stage, {**inputs, "contents": contents} if resume else None)
        learned_nats, kept = course.draw_back()
        taught = draw(list(course.taught.values()), MOST_RECALLED, reader.rng)
        learned = reader.answer_nats(taught)
        whole = without_shards(reader, model, teacher)
        if whole is None:
            return {}
        factor = pack_within(whole.model, limit)
        after, recalled = whole.expected_nats(), whole.answer_nats(taught)
        if not whole.processes.first:
            return {}
        save_model(whole.model, whole.tokenizer, stage.path)
        write_jsonl(stage.path / "answers.jsonl", course.answers)
        write_jsonl(stage.path / QUESTIONS, list(course.taught.values()))
        source = Path(model) / "summary.json"
        sizes = read_json(source) if source.is_file() else {}
        stage.summary |= {key: sizes[key] for key in ("original_bytes", "stored_parameters", "num_parameters") if key in sizes}
        stage.summary |= {
            "stored_bytes": stored_bytes(stage.path),
            "num_sections": len(lessons),
            "num_steps": course.step,
            "num_tokens": course.num_tokens,
            "num_undone": course.num_undone,
            "general_before_nats": course.expected,
            "general_learned_nats": learned_nats,
            "kept_share": kept,
            "general_after_nats": after,
            "answers_learned_nats": learned,
            "answers_stored_nats": recalled,
            "step_factor": factor,
        }
    say(
        f"  {len(lessons)} sections read, {course.num_undone} undone; "
        f"general loss {course.expected:.3f} -> {after:.3f} nats a token"
    )
    if kept < 1:
        rise = learned_nats - course.expected
        say(f"  as learned it rose by {rise:.3f} and may by {settings.forget_nats:g}: {kept:.0%} of the way is kept")
    say(f"  answers that were taught: {learned:.3f} nats a token as learned, {recalled:.3f} as stored")
    return stage.summary


def read_sections(reader: Reader, lessons: list[Lesson], stage: Stage, inputs: Mapping[str, object] | None) -> Course:
    """Read all sections in the order of the curriculum; each round is ordered when it begins.

    Args:
        reader: The model and what it needs.
        lessons: The corpus in reading order.
        stage: Where states and metrics go.
        inputs: What the run depends on besides its settings; nothing where no states are kept.
    """
    settings = reader.settings
    prepare(reader)
    course = Course(reader)
    num_rounds, num_steps = rounds(settings.order, settings.rounds, settings.steps_per_section)
    state: State | None = None
    found: dict[str, Any] = {"step": 0}
    if inputs is not None:
        purpose = {**inputs, **settings.model_dump(mode="json")}
        parameters = [values for block in reader.blocks for values in block.coefficients()]
        state = State(stage, purpose, parameters, reader.optimizer)
        found = state.restore()
        if found["step"]:
            course.go_on(found["course"], lessons)
    names = settings.report_to if reader.processes.first else ()
    reports = Reports(names, reader.model, len(lessons) * num_rounds * num_steps, stage.path)
    with Meter("read section by section", len(lessons) * num_rounds, found["step"]) as meter:
        done, order = found["step"], found.get("order", [])
        while done < len(lessons) * num_rounds:
            number, place = divmod(done, len(lessons))
            if not place:
                ordered = ORDERS[settings.order](lessons, reader.rng, reader.difficulty)
                order = [next(at for at, lesson in enumerate(lessons) if lesson is each) for each in ordered]
            line = course.read(Visit(lessons[order[place]], num_steps, number))
            stage.metric(**line)
            reports.log(course.step, line)
            meter.advance(f"loss {line['loss_nats']:.3f}, {line['tokens_per_second']:,.0f} tokens/s")
            done += 1
            if state is not None and done % settings.save_every == 0 and done < len(lessons) * num_rounds:
                state.save(done, order=order, course=course.so_far())
    reports.end()
    if state is not None:
        state.forget()
    return course


class Course:
    """A reading of the corpus, as far as it has come."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.start, self.expected = reader.snapshot(), reader.expected_nats()
        self.general = self.before = reader.general_nats()
        self.rate = reader.learning_rate
        self.answers: list[dict[str, Any]] = []
        self.taught: dict[str, Record] = {}  # by their ids, in the order of reading
        self.step = self.num_tokens = self.num_undone = 0
        self.started = time.monotonic()

    def so_far(self) -> dict[str, Any]:
        """What `go_on` needs, as JSON can hold it."""
        return {
            "general": self.general,
            "before": self.before,
            "expected": self.expected,
            "answers": self.answers,
            "taught": list(self.taught),
            "counts": [self.step, self.num_tokens, self.num_undone],
            "random": self.reader.rng.getstate(),
            "learning_rate": self.reader.learning_rate,
        }

    def go_on(self, found: dict[str, Any], lessons: list[Lesson]) -> None:
        """Go on from what `so_far` gave."""
        records = {record["metadata"]["id"]: record for lesson in lessons for record in lesson.records}
        self.general, self.before, self.expected = found["general"], found["before"], found["expected"]
        self.answers = found["answers"]
        self.taught = {name: records[name] for name in found["taught"]}
        self.step, self.num_tokens, self.num_undone = found["counts"]
        self.reader.learning_rate = found.get("learning_rate", self.rate)  # older states have none: it never changed
        version, words, spare = found["random"]
        self.reader.rng.setstate((version, tuple(words), spare))

    def read(self, visit: Visit) -> dict[str, Any]:
        """Ask, teach, watch and undo; the line for `metrics.jsonl`."""
        reader, settings, lesson = self.reader, self.reader.settings, visit.lesson
        asked = lesson.asked(settings.num_asked)
        rows = self.ask(asked, visit, 0)
        reader.choose(lesson)
        saved = reader.snapshot()
        earlier = list(self.taught.values())
        rate = reader.learning_rate
        losses = self.teach(lesson, earlier, visit.num_steps)
        followed = self.follow_up(visit, asked, earlier)
        cost, kept = self.hold_back(saved)
        self.taught |= {record["metadata"]["id"]: record for record in lesson.records}
        seconds = time.monotonic() - self.started
        return {
            "step": self.step,
            "round": visit.number,
            "document": lesson.document,
            "section": lesson.section,
            "section_title": lesson.title,
            "tokens": self.num_tokens,
            **losses,
            "asked": answer_report(rows) if rows else None,
            "followed_up": followed,
            "general_nats": cost,
            "kept_share": kept,
            "undone": not kept,
            "learning_rate": rate,
            "num_blocks_trained": len(reader.chosen or []),
            "num_blocks": len(reader.blocks),
            "tokens_per_second": round(self.num_tokens / max(seconds, 1e-9), 1),
            "seconds": round(seconds, 2),
        }

    def hold_back(self, saved: list[list[Tensor]]) -> tuple[float, float]:
        """The gate: keep all of what a section taught, or as much of it as general loss allows, or nothing.

        The first steps after nothing was kept are larger than those on the way, since the optimiser begins anew. So the rate
        halves with every section that is undone, or few bits would undo one after another, and recovers where all is kept.

        Args:
            saved: The coefficients before the section.

        Returns:
            General loss after all of it, and the share that was kept.
        """
        reader, share = self.reader, 1.0
        cost = now = reader.general_nats()
        while costs_too_much(now, self.general, self.before, reader.settings):
            share = share / 2 if share > LEAST_SHARE else 0.0
            reader.restore(saved, 0.5 if share else 0.0)
            if not share:
                self.num_undone += 1
                reader.learning_rate *= SLOWER
                return cost, 0.0
            now = reader.general_nats()
        if share == 1:
            reader.learning_rate = min(FASTER * reader.learning_rate, self.rate)
        self.general = now
        return cost, share

    def draw_back(self) -> tuple[float, float]:
        """Keep as much of all that was learned as `forget_nats` allow.

        Returns:
            Expected general loss before, in nats a token, and the share that is kept.
        """
        reader = self.reader
        learned = reader.expected_nats()
        values = [local(values.detach()) for block in reader.blocks for values in block.coefficients()]
        start = [values for block in self.start for values in block]
        share = draw_back(values, start, lambda: reader.expected_nats() - self.expected, reader.settings.forget_nats)
        return learned, share

    def ask(self, records: list[Record], visit: Visit, follow_up: int) -> list[dict[str, Any]]:
        """Let the model answer, and log what it says."""
        settings, reader = self.reader.settings, self.reader
        rows, _ = ask(
            reader.model, reader.tokenizer, records, [None] * len(records),
            max_new_tokens=settings.max_new_tokens, traced=settings.trace != "none",
        )  # fmt: skip
        self.answers += [{"step": self.step, "round": visit.number, "follow_up": follow_up, **row} for row in rows]
        return rows

    def teach(self, lesson: Lesson, earlier: list[Record], num_steps: int, own: list[Record] | None = None) -> dict[str, Any]:
        """Gradient steps, counted."""
        losses = teach(self.reader, lesson, earlier, num_steps, own)
        self.num_tokens += int(losses.pop("tokens"))
        self.step += num_steps
        return losses

    def follow_up(self, visit: Visit, asked: list[Record], earlier: list[Record]) -> list[dict[str, float]]:
        """Ask again what was asked, and teach the facts that are still wrong, all their phrasings and nothing else."""
        reports = []
        for number in range(1, self.reader.settings.follow_ups + 1):
            rows = self.ask(asked, visit, number)
            pairs = zip(asked, rows, strict=True)
            wrong = {record["metadata"]["fact"] for record, row in pairs if row["exact_match"] < 1}
            reports += [answer_report(rows)] if rows else []
            if not wrong:
                break
            own = [record for record in visit.lesson.records if record["metadata"]["fact"] in wrong]
            self.teach(visit.lesson, earlier, visit.num_steps, own)
        return reports


def costs_too_much(now: float, previous: float, start: float, settings: AdaptSettings) -> bool:
    """Whether a section is undone: for its own cost, or because it adds to a total beyond the allowance.

    Args:
        now: General loss after the section, in nats a token.
        previous: Before the section.
        start: Before the first section.
        settings: `gate_nats`, `forget_nats` and `overshoot`.
    """
    return now - previous > settings.gate_nats or now > max(previous, start + settings.overshoot * settings.forget_nats)
