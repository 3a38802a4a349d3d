"""From a run folder to one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from quasitile.errors import InputError
from quasitile.folders import write_text
from quasitile.report import tables
from quasitile.report.figures import Figure, Line, chart, series, tiling_picture
from quasitile.report.formats import COUNT, DASH, SHARE, SIZE, clip, duration, evenly, number, pick, plural
from quasitile.report.load import FOLDERS, MODELS, Run, load_run
from quasitile.report.measures import main_table
from quasitile.report.questions import choose, given, highlighted
from quasitile.report.wording import cards, headline, matrices_of

TEMPLATES = Path(__file__).parent / "templates"
OPTIONAL = ("inspect", "text", "warm_up", "finish")  # stages that nobody misses
MAX_MATRICES = 400
MAX_EXAMPLES = 12
MAX_BEFORE_TEACHING = 200
MAX_RECIPE = 100_000
# Control characters are not allowed in SVG; the others would let a paper reorder the text around it.
UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff\u202a-\u202e\u2066-\u2069]")
SECRET = re.compile(r"(?im)^(\s*(?:-\s+)?[\w.-]*(?:api_?key|password|secret)[\w.-]*\s*:\s*)(?!null\b)\S.*$")


def report(run: str | Path, out: str | Path | None = None) -> dict[str, Any]:
    """Write one self-contained HTML page about a run.

    Args:
        run: The folder that `quasitile run` wrote; stages that are not finished are left out.
        out: The page to write; `report.html` in the run folder by default.

    Returns:
        `path`, `page_bytes`, `num_questions`, `num_questions_shown` and `absent`, the stages left out.

    Raises:
        InputError: `run` is no run folder, one of its files is broken, or `out` is a folder.
    """
    found = load_run(run)
    path = Path(out) if out is not None else Path(run) / "report.html"
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a file for the page, such as {path / 'report.html'}")
    groups, num_questions = choose(found)
    html = UNPRINTABLE.sub("", render(found, groups, num_questions))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, html)
    return {
        "path": str(path),
        "page_bytes": len(html.encode("utf-8")),
        "num_questions": num_questions,
        "num_questions_shown": sum(len(rows) for _, rows in groups),
        "absent": [stage for stage in FOLDERS if stage not in OPTIONAL and not found.has(stage)],
    }


def render(run: Run, groups: list[Any], num_questions: int) -> str:
    """The page as text."""
    script = (TEMPLATES / "filter.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(known=known)
    return environment.get_template("page.html").render(
        run=run,
        title=clip(run.name, 120),
        style=(TEMPLATES / "style.css").read_text(encoding="utf-8"),
        script=script,
        script_digest=digest,
        sentences=headline(run),
        cards=cards(run),
        main=main_table(run.models),
        entities=tables.entity_table(run.models),
        tiling=tiling(run),
        alignment=alignment(run),
        reading=reading(run),
        learning=learning(run),
        groups=groups,
        num_questions=num_questions,
        examples=examples(run),
        cost=cost(run),
    )


def known(model: str) -> str:
    """A CSS class for a model: its own name where it is one of ours."""
    return model if model in MODELS else "other"


def tiling(run: Run) -> dict[str, Any]:
    """The picture of one matrix, and the table of all."""
    matrices = matrices_of(run)
    table = tables.matrix_table(matrices[:MAX_MATRICES])
    return {
        "picture": tiling_picture(run.picture),
        "name": clip(run.picture.get("name", "one matrix"), 160),
        "first": tables.Table(table.caption, table.headers, table.rows[:10], table.numeric),
        "rest": tables.Table("The other matrices", table.headers, table.rows[10:], table.numeric),
        "num_matrices": len(matrices),
    }


def alignment(run: Run) -> dict[str, Any]:
    """Loss while aligning, held-out damage before and after, and divergence by layer."""
    rows = run.lines["aligned/metrics.jsonl"]
    losses = [Line("training loss", "aligned", series(rows, "loss", "step"))]
    general = [Line("held-out general text", "aligned", series(rows, "general_nats", "step"))]
    figures = [
        chart("align-loss", "Loss while aligning", "Lower is closer to the original.", losses, "step", "training loss"),
        chart(
            "align-general", "Held-out text while aligning", "Text the training never sees.", general, "step", "nats per token"
        ),
    ]
    return {
        "figures": [figure for figure in figures if figure],
        "damage": tables.damage_table(run.models),
        "layers": layers(run),
        "steps": plural(len(rows), "step") if rows else "",
        "tokens": COUNT(rows[-1].get("tokens")) if rows else DASH,
    }


def layers(run: Run) -> list[Figure]:
    """How far each layer's output lies from the original's."""
    kinds = {
        "kl_nats": (
            "Divergence by layer",
            "KL between softmaxes over features, in nats",
            "Mean over tokens; the distance of the paper (Eq. 5).",
        ),
        "relative_squared_error": (
            "Error by layer",
            "relative squared error",
            "Squared difference over the original's own size.",
        ),
    }
    found = []
    for key, (title, label, caption) in kinds.items():
        lines = []
        for model in MODELS[1:]:
            rows = pick(run.models, model, "divergence", "layers") or []
            points = series(rows, key, "layer")
            lines.append(Line(model, model, points))
        found.append(
            chart(f"layers-{key.split('_')[0]}", title, caption, lines, "layer (0 is the embedding)", label, zero=True)
        )
    return [figure for figure in found if figure]


def reading(run: Run) -> dict[str, Any]:
    """What was read, asked, dropped and skipped."""
    documents, sections, questions, dropped, skipped = (
        run.lines[f"reading/{name}.jsonl"] for name in ("documents", "sections", "questions", "dropped", "skipped")
    )
    whole = sum(number(row.get("num_characters")) or 0 for row in documents)
    kept = sum(number(row.get("kept_characters")) or 0 for row in documents)
    held_out = sum(row.get("split") == "test" for row in documents)
    types = Counter(str(row.get("type")) for row in sections)
    facts = [
        ("Documents", COUNT(len(documents)), f"{COUNT(held_out)} held out for testing, never taught"),
        ("Sections", COUNT(len(sections)), ", ".join(f"{COUNT(count)} {kind}" for kind, count in types.most_common())),
        ("Text kept", SHARE(kept / whole if whole else None), f"{COUNT(kept)} of {COUNT(whole)} characters"),
        ("Questions", COUNT(len(questions)), splits_of(questions)),
        ("Dropped", COUNT(len(dropped)), "questions that failed a check"),
        ("Skipped", COUNT(len(skipped)), "files that could not be read"),
    ]
    listing = tables.document_table(documents)
    return {
        "facts": facts,
        "documents": listing,
        "long": len(listing.rows) > 10,
        "questions": tables.question_table(questions) if questions else None,
        "dropped": tables.dropped_table(dropped) if dropped else None,
        "skipped": tables.skipped_table(skipped) if skipped else None,
    }


def splits_of(questions: list[dict[str, Any]]) -> str:
    """`120 taught, 60 in new words, 12 on held-out documents`."""
    names = {"train": "taught", "phrasing": "in new words", "test": "on held-out documents"}
    counts = Counter(str(pick(question, "metadata", "split")) for question in questions)
    return ", ".join(
        f"{COUNT(counts[split])} {names.get(split, split)}"
        for split in [*names, *sorted(set(counts) - set(names))]
        if counts[split]
    )


def learning(run: Run) -> dict[str, Any]:
    """Answers before teaching, general loss with undone steps, and blocks trained, section by section."""
    rows = run.lines["adapted/metrics.jsonl"]
    places = {(row.get("document"), row.get("section")) for row in rows}
    num_rounds = 1 + max((int(row.get("round") or 0) for row in rows), default=0)
    window = len(places) if num_rounds > 1 else max(1, len(rows) // 20)
    asked = [Line(label, css, _smoothed(rows, key, window)) for label, css, key in _SCORES]
    general = series(rows, "general_nats")
    undone = [
        (index + 1.0, value)
        for index, row in enumerate(rows)
        if row.get("undone") and (value := number(row.get("general_nats"))) is not None
    ]
    losses = [
        Line("questions of the section", "adapted", series(rows, "loss_nats")),
        Line("replayed general text", "original", series(rows, "replay_nats")),
    ]
    shares = series([{"share": trained_share(row)} for row in rows], "share")
    chosen = [] if all(share == 100 for _, share in shares) else shares  # all of them need no chart
    blocks = [Line("blocks trained", "adapted", chosen, "dots" if len(rows) > 1 else "line")]
    smooth = f"Mean over {window} sections. " if window > 1 else ""
    x = "sections, in the order taught"
    watched = [Line("held-out general text", "adapted", general), Line("undone", "worse", undone, "crosses")]
    figures = [
        chart(
            "learn-asked",
            "Answers before teaching",
            f"{smooth}Each section is asked about before it is taught.",
            asked,
            x,
            "share right, %",
            zero=True,
        ),
        chart(
            "learn-general",
            "General loss along the way",
            "A cross marks a section whose step cost too much and was undone.",
            watched,
            x,
            "nats per token",
        ),
        chart(
            "learn-loss",
            "Training loss",
            "On the section's questions and on the text replayed against forgetting.",
            losses,
            x,
            "nats per token",
        ),
        chart(
            "learn-blocks",
            "Blocks trained",
            "Only the blocks that matter for the section learn.",
            blocks,
            x,
            "share of all blocks, %",
            zero=True,
        ),
    ]
    return {
        "figures": [figure for figure in figures if figure],
        "num_sections": len(places),
        "num_rounds": num_rounds,
        "num_undone": sum(bool(row.get("undone")) for row in rows),
        "kept_share": number(run.stages["adapt"].summary.get("kept_share")) if run.has("adapt") else None,
        "asked": before_teaching(run),
        "num_asked": len(run.lines["adapted/answers.jsonl"]),
        "all_blocks": bool(shares) and not chosen,
    }


_SCORES = (("exact answers", "adapted", "exact_match"), ("words in common (token F1)", "other", "token_f1"))


def trained_share(row: dict[str, Any]) -> float | None:
    """Blocks trained for a section, in percent of all."""
    some, every = number(row.get("num_blocks_trained")), number(row.get("num_blocks"))
    return None if some is None or not every else 100 * some / every


def _smoothed(rows: list[dict[str, Any]], key: str, window: int) -> list[tuple[float, float]]:
    """Percent right over the last `window` sections, each weighted by its questions."""
    points, recent = [], []
    for index, row in enumerate(rows):
        share, count = number(pick(row, "asked", key)), number(pick(row, "asked", "num_questions"))
        if share is None or count == 0:
            continue
        recent = [*recent, (share, count or 1.0)][-window:]
        points.append((index + 1.0, 100 * sum(s * n for s, n in recent) / sum(n for _, n in recent)))
    return points


def before_teaching(run: Run) -> list[dict[str, Any]]:
    """Answers given just before a section was taught, with what the model thought; all of them up to a limit."""
    rows = evenly(run.lines["adapted/answers.jsonl"], MAX_BEFORE_TEACHING)
    return [
        {
            "question": clip(row.get("question"), 300),
            "given": given(row),
            "trace": clip(row.get("trace"), 300),
            "answer": clip(row.get("answer"), 220),
            "evidence": highlighted("", row.get("evidence")),
        }
        for row in rows
    ]


def examples(run: Run) -> list[dict[str, Any]]:
    """Continuations of the same prompt by each model."""
    found = []
    for row in run.examples[:MAX_EXAMPLES]:
        names = [name for name in MODELS if name in row] + [name for name in row if name not in MODELS and name != "prompt"]
        found.append({"prompt": clip(row.get("prompt"), 600), "texts": [(name, clip(row[name], 800)) for name in names]})
    return found


def cost(run: Run) -> dict[str, Any]:
    """Time, memory, versions, seed, recipe and the commands that make the run again."""
    seconds = [value for value in (run.summary.get("seconds") or {}).values() if number(value) is not None]
    versions = {str(version) for stage in run.stages.values() if (version := pick(stage.provenance, "versions", "quasitile"))}
    exactly = (
        f'pip install "quasitile=={versions.pop()}"'
        if len(versions) == 1 and "not installed" not in versions
        else "pip install quasitile"
    )
    commands = {"quasitile run recipe.yaml": "the recipe below, saved as recipe.yaml", "quasitile report RUN": "this page"}
    if run.has("adapt"):
        last = FOLDERS["finish" if run.has("finish") else "adapt"]
        commands |= {
            f"quasitile chat RUN/{last}": "ask the model",
            f"quasitile export RUN/{last} OUT": "an ordinary checkpoint",
        }
    wide = max(map(len, commands))
    return {
        "table": tables.cost_table(run),
        "versions": tables.version_table(run),
        "total": duration(sum(seconds)) if seconds else DASH,
        "memory": SIZE(run.summary.get("peak_memory_bytes")),
        "recipe": SECRET.sub(r"\1(not shown)", run.recipe[:MAX_RECIPE]),
        "commands": "\n".join([exactly, *(f"{command:{wide}}  # {what}" for command, what in commands.items())]),
    }
