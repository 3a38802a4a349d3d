"""The page's plain tables: text cells, formatted with units."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from quasitile.report.formats import COUNT, DASH, NATS, SHARE, SIZE, Format, clip, duration, number, pick, plural, precise
from quasitile.report.load import Rows, Run

MAX_ROWS = 200


@dataclass(frozen=True)
class Table:
    """A plain table: text cells; the columns in `numeric` are right-aligned."""

    caption: str
    headers: list[str]
    rows: list[list[str]]
    numeric: set[int] = field(default_factory=set)
    note: str = ""

    @property
    def narrow(self) -> bool:
        """Whether the table is a label and a few numbers, which need not fill the page."""
        return len(self.headers) <= 5 and len(self.numeric) >= len(self.headers) - 2


def matrix_table(matrices: Rows) -> Table:
    """One row a compressed matrix."""
    rows = []
    for matrix in matrices:
        shape = matrix.get("shape")
        rows.append(
            [
                str(matrix.get("name", DASH)),
                " \N{MULTIPLICATION SIGN} ".join(COUNT(side) for side in shape) if isinstance(shape, list) else DASH,
                str(matrix.get("tiling") or DASH),
                COUNT(matrix.get("num_tiles")),
                Format(1)(matrix.get("mean_rank")),
                Format(2)(matrix.get("bits_per_weight")),
                precise(matrix.get("relative_squared_error")),
            ]
        )
    headers = ["Matrix", "Shape", "Tiling", "Tiles", "Mean rank", "Bits per weight", "Relative squared error"]
    return Table("Compressed matrices, in the model's order", headers, rows, {1, 3, 4, 5, 6})


def entity_table(models: dict[str, dict[str, Any]]) -> Table | None:
    """Entity F1 by label, where it was measured."""
    by_label = {name: pick(model, "entities", "by_label") or {} for name, model in models.items()}
    labels = sorted({label for found in by_label.values() for label in found})
    if not labels:
        return None
    rows = [[label, *(SHARE(pick(found, label, "f1")) for found in by_label.values())] for label in labels]
    return Table("Entity F1 by label", ["Label", *models], rows, set(range(1, len(models) + 1)))


def damage_table(models: dict[str, dict[str, Any]]) -> Table | None:
    """Held-out general loss and how far it lies above the original's."""
    base = number(pick(models.get("original"), "general", "nats_per_token"))
    rows = []
    for name in ("original", "compressed", "aligned"):
        value = pick(models.get(name), "general", "nats_per_token")
        loss = number(value)
        if loss is not None:
            damage = "reference" if name == "original" else DASH if base is None else NATS.change(loss - base)
            rows.append([name, NATS(value), damage])
    headers = ["Model", "Loss, nats per token", "Damage, nats"]
    return Table("Loss on held-out general text before and after alignment", headers, rows, {1, 2}) if len(rows) > 1 else None


def document_table(documents: Rows) -> Table:
    """What was read, document by document."""
    rows = []
    for document in documents[:MAX_ROWS]:
        kept, whole = number(document.get("kept_characters")), number(document.get("num_characters"))
        dropped = document.get("dropped_characters")
        dropped = dropped if isinstance(dropped, dict) else {}
        left_out = ", ".join(f"{reason} {COUNT(count)}" for reason, count in dropped.items())
        rows.append(
            [
                clip(document.get("title") or document.get("document"), 160),
                clip(document.get("path") or DASH, 80),
                {"train": "taught", "test": "held out"}.get(str(document.get("split")), str(document.get("split", DASH))),
                COUNT(document.get("num_sections")),
                SHARE(kept / whole if kept is not None and whole else None),
                clip(left_out or DASH, 120),
                clip(document.get("licence") or DASH, 60),
            ]
        )
    headers = ["Document", "File", "Use", "Sections", "Text kept", "Characters left out", "Licence"]
    note = f"The first {MAX_ROWS} of {COUNT(len(documents))} documents." if len(documents) > MAX_ROWS else ""
    return Table("Documents", headers, rows, {3, 4}, note)


def question_table(questions: Rows) -> Table:
    """Questions by kind (rows) and source (columns)."""
    pairs = Counter((str(pick(q, "metadata", "kind")), str(pick(q, "metadata", "source"))) for q in questions)
    kinds = Counter(kind for kind, _ in pairs.elements())
    sources = sorted({source for _, source in pairs})
    names = {"cloze": "cloze (fill the gap)", "true_false": "true or false", "choice": "multiple choice"}
    rows = [
        [names.get(kind, kind), *(COUNT(pairs[kind, source]) for source in sources), COUNT(total)]
        for kind, total in sorted(kinds.items(), key=lambda pair: (-pair[1], pair[0]))
    ]
    totals = [COUNT(sum(pairs[kind, source] for kind in kinds)) for source in sources]
    rows.append(["all", *totals, COUNT(len(questions))])
    return Table("Questions by kind and source", ["Kind", *sources, "All"], rows, set(range(1, len(sources) + 2)))


def dropped_table(dropped: Rows) -> Table:
    """Dropped questions by reason, with the first one of each."""
    counts: Counter[str] = Counter()
    example: dict[str, str] = {}
    for row in dropped:
        reason = str(pick(row, "metadata", "reason") or "no reason given")
        counts[reason] += 1
        example.setdefault(reason, asked(row))
    order = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:MAX_ROWS]
    rows = [[clip(reason, 160), COUNT(count), clip(example[reason], 160)] for reason, count in order]
    return Table("Questions dropped, by reason", ["Reason", "Questions", "For example"], rows, {1})


def skipped_table(skipped: Rows) -> Table:
    """Files that could not be read."""
    rows = [[clip(row.get("path", DASH), 120), clip(row.get("reason", DASH), 240)] for row in skipped[:MAX_ROWS]]
    note = f"The first {MAX_ROWS} of {plural(len(skipped), 'file')}." if len(skipped) > MAX_ROWS else ""
    return Table("Files that could not be read", ["File", "Reason"], rows, note=note)


def asked(record: dict[str, Any]) -> str:
    """The question of a record in OpenAI's `messages` form."""
    messages = record.get("messages")
    for message in messages if isinstance(messages, list) else []:
        if pick(message, "role") == "user":
            return str(message.get("content", ""))
    return ""


def cost_table(run: Run) -> Table:
    """Seconds and peak memory of each stage."""
    seconds = run.summary.get("seconds")
    seconds = seconds if isinstance(seconds, dict) else {}
    rows = []
    for stage in [*run.stages, *(name for name in seconds if name not in run.stages)]:
        made = run.stages[stage].provenance if run.has(stage) else {}
        took = seconds.get(stage) if number(seconds.get(stage)) is not None else made.get("seconds")
        memory = made.get("peak_memory_bytes")
        seed = made.get("seed")
        rows.append(
            [stage, duration(took), SIZE(memory), DASH if seed is None else str(seed), str(made.get("commit") or DASH)[:10]]
        )
    return Table("Time and memory of each stage", ["Stage", "Time", "Peak memory", "Seed", "Commit"], rows, {1, 2, 3})


def version_table(run: Run) -> Table:
    """Versions and hardware of each distinct set-up that made a stage."""
    found: dict[tuple[str, str], list[str]] = {}
    for stage, finished in run.stages.items():
        for part in ("versions", "hardware"):
            values = finished.provenance.get(part)
            for key, value in (values if isinstance(values, dict) else {}).items():
                key = "number of CPUs" if key == "num_cpus" else str(key)
                found.setdefault((key, str(value)), []).append(stage)
    rows = [[key, value, ", ".join(stages)] for (key, value), stages in found.items()]
    return Table("Versions and hardware", ["What", "Version or value", "Stages"], rows)
