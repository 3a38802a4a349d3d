"""The command line: every command is a thin wrapper over one public function of the same name."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

import quasitile
from quasitile.errors import InputError
from quasitile.progress import human_bytes, set_quiet, table

app = typer.Typer(
    add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False,
    help="Make a large language model small, then teach it a scientific field by reading papers.",
)  # fmt: skip
screen = Console(highlight=False)


def located(value: Any) -> Any:
    """An argument with `embedded:NAME` and `$VARIABLE` filled in."""
    from quasitile.recipe import resolve

    return None if value is None else type(value)(resolve(str(value)))


Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; may be repeated.")]
ReportTo = Annotated[
    list[str] | None,
    typer.Option("--report-to", metavar="NAME", help="tensorboard, trackio, wandb or mlflow; may be repeated."),
]
Out = Annotated[Path, typer.Argument(help="The folder to make.")]
Text = Annotated[
    Path, typer.Option("--text", callback=located, help="General text: JSON lines with a `text` key, or a text file.")
]
Model = Annotated[
    str, typer.Argument(callback=located, help="A model folder, a hub name, or embedded:base, which the package carries.")
]


def settings_of(kind: Any, changes: Sequence[str] | None) -> Any:
    """A stage's settings with `--set` applied."""
    from quasitile.recipe import apply_overrides, validated

    content: dict[str, Any] = {}
    apply_overrides(content, changes or ())
    return validated(kind, content, "--set")


def reporting(changes: Sequence[str] | None, names: Sequence[str] | None, *stages: str) -> list[str]:
    """`--set` with what `--report-to` adds to it, for these stages of a recipe or, without any, for the settings of one."""
    added = [f"{stage}report_to=[{', '.join(names)}]" for stage in stages or ("",)] if names else []
    return [*(changes or ()), *added]


@app.command()
def run(
    recipe: Annotated[Path | None, typer.Argument(help="A YAML file; without it, the embedded demonstration.")] = None,
    out: Annotated[Path, typer.Option("--out", help="The run folder.")] = Path("run"),
    report_to: ReportTo = None,
    changes: Set = None,
) -> None:
    """Everything in order: compress, align, read, adapt, evaluate, report; resumes where it stopped."""
    summary = quasitile.run(recipe, out, overrides=reporting(changes, report_to, "align.", "adapt."))
    from quasitile.report.terminal import print_run

    print_run(screen, out, summary)


@app.command()
def inspect(
    model: Annotated[
        str, typer.Argument(callback=located, help="A model folder, a config.json, a hub name, or embedded:base.")
    ],
    out: Annotated[Path | None, typer.Option("--out", help="Also write plan.json into this folder.")] = None,
    picture: Annotated[Path | None, typer.Option("--picture", help="Also draw a tiling: an SVG file.")] = None,
    matrix: Annotated[str | None, typer.Option("--matrix", help="Whose tiling is drawn; else the largest's.")] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Time one matrix here, for the predicted time.")] = False,
    changes: Set = None,
) -> None:
    """Sizes, matrices, what a budget would buy, and the time it would take; a config.json is enough, weights are not read."""
    settings = settings_of(quasitile.InspectSettings, changes)
    plan = quasitile.inspect(model, out, settings, picture=picture, matrix=matrix, measured=measure)
    from quasitile.report.plan import print_plan

    print_plan(screen, plan)


@app.command()
def sample(model: Model, out: Out, changes: Set = None) -> None:
    """General text in the model's own words, for when no text is given."""
    show(quasitile.sample(model, out, settings_of(quasitile.SampleSettings, changes)))


@app.command()
def compress(
    model: Model,
    out: Out,
    text: Text,
    reading: Annotated[
        Path | None, typer.Option("--reading", help="A reading, or what adapt made: what the model was taught and is to keep.")
    ] = None,
    size: Annotated[str | None, typer.Option("--size", help="25%, 4GB or 7B (parameters).")] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", help="A preset's name (caldera, gptq, ...) or a YAML file.")] = None,
    workers: Annotated[int | None, typer.Option("--workers", help="Processes (threads in memory); else one a core.")] = None,
    ray: Annotated[str | None, typer.Option("--ray", help="Address of a Ray cluster: auto, local or host:port.")] = None,
    changes: Set = None,
) -> None:
    """Tile, factorise, transform, truncate and store within a size; continues where it was killed if it works from disk."""
    given = {"size": size, "workers": workers, "ray": ray}
    changes = [*(changes or ()), *(f"{key}='{value}'" for key, value in given.items() if value is not None)]
    if recipe is None:
        settings = settings_of(quasitile.CompressSettings, changes)
        show(quasitile.compress(model, out, text=text, reading=reading, settings=settings))
    elif quasitile.load_recipe(recipe).baseline.name == "none":
        settings = quasitile.load_recipe(recipe, [f"compress.{change}" for change in changes]).compress
        show(quasitile.compress(model, out, text=text, reading=reading, settings=settings))
    elif reading is not None:
        raise InputError("--reading is not for a baseline, which calibrates on text alone; leave it out")
    else:
        baseline = quasitile.load_recipe(recipe, [f"baseline.{change}" for change in changes]).baseline
        show(quasitile.baseline(model, out, text=text, settings=baseline))


@app.command()
def record(model: Model, out: Out, text: Text, changes: Set = None) -> None:
    """Keep the original's hidden states and likeliest next tokens on disk, for `align` without the original."""
    show(quasitile.record(model, out, text=text, settings=settings_of(quasitile.RecordSettings, changes)))


@app.command()
def align(
    model: Model,
    out: Out,
    teacher: Annotated[str, typer.Option(callback=located, help="The original model, or what `record` kept of it.")],
    text: Text,
    report_to: ReportTo = None,
    changes: Set = None,
) -> None:
    """Train the blocks to reproduce the original's hidden states and predictions; continues where it was killed."""
    settings = settings_of(quasitile.AlignSettings, reporting(changes, report_to))
    show(quasitile.align(model, out, teacher=teacher, text=text, settings=settings))


@app.command()
def read(
    papers: Annotated[Path, typer.Argument(callback=located, help="A folder, a file, or embedded:papers.")],
    out: Out,
    export: Annotated[Path | None, typer.Option("--export", help="Also write it for TRL, LLaMA-Factory and Axolotl.")] = None,
    changes: Set = None,
) -> None:
    """From papers to sections to questions with evidence and traces."""
    show(quasitile.read(papers, out, settings_of(quasitile.ReadSettings, changes)))
    if export:
        quasitile.export_questions(out, export)


@app.command()
def curate(
    reading: Annotated[Path, typer.Argument(help="A folder that `read` made.")],
    port: Annotated[int, typer.Option(help="On 127.0.0.1; 0 takes a free one.")] = 8765,
    who: Annotated[str, typer.Option(help="The name that decisions carry; else the user's.")] = "",
    apply: Annotated[bool, typer.Option("--apply", help="Serve nothing: put the decisions into questions.jsonl.")] = False,
    export: Annotated[Path | None, typer.Option("--export", help="Then write it for TRL, LLaMA-Factory and Axolotl.")] = None,
) -> None:
    """A page in the browser where an expert keeps, edits, drops or adds questions; every decision is saved at once."""
    show(quasitile.curate(reading, port, who, apply))
    if export:
        quasitile.export_questions(reading, export)


@app.command()
def adapt(
    model: Model,
    reading: Path,
    out: Out,
    text: Text,
    teacher: Annotated[str | None, typer.Option(callback=located, help="The original model, to stay close to.")] = None,
    report_to: ReportTo = None,
    changes: Set = None,
) -> None:
    """Learn section by section, on the blocks that matter for each."""
    settings = settings_of(quasitile.AdaptSettings, reporting(changes, report_to))
    show(quasitile.adapt(model, reading, out, teacher=teacher, text=text, settings=settings))


@app.command()
def tune(
    model: Model,
    reading: Path,
    out: Out,
    text: Annotated[Path | None, typer.Option(callback=located, help="General text to replay (replay_share).")] = None,
    report_to: ReportTo = None,
    changes: Set = None,
) -> None:
    """What `adapt` is compared with: LoRA, one pass over all questions or the raw text, full fine-tuning."""
    settings = settings_of(quasitile.TuneSettings, reporting(changes, report_to))
    show(quasitile.tune(model, reading, out, settings, text=text))


@app.command()
def evaluate(
    out: Out,
    original: Annotated[str | None, typer.Option(callback=located, help="The dense model.")] = None,
    compressed: Annotated[str | None, typer.Option()] = None,
    aligned: Annotated[str | None, typer.Option()] = None,
    tuned: Annotated[str | None, typer.Option(help="What `tune` made, to compare with: a model, or an adapter.")] = None,
    adapted: Annotated[str | None, typer.Option()] = None,
    finished: Annotated[str | None, typer.Option(help="What has read, compressed further.")] = None,
    reading: Annotated[Path | None, typer.Option(help="A reading folder: questions and held-out papers.")] = None,
    general: Annotated[Path | None, typer.Option(help="Held-out general text.")] = None,
    domain: Annotated[Path | None, typer.Option(help="Held-out text of the field.")] = None,
    entities: Annotated[list[Path] | None, typer.Option(help="Annotated sentences; twice for train and test.")] = None,
    properties: Annotated[Path | None, typer.Option(help="Property records.")] = None,
    choices: Annotated[Path | None, typer.Option(help="Multiple-choice questions.")] = None,
    changes: Set = None,
) -> None:
    """Measure models side by side on the same data."""
    given = {"original": original, "compressed": compressed, "aligned": aligned, "tuned": tuned}
    given |= {"adapted": adapted, "finished": finished}
    summary = quasitile.evaluate(
        {name: model for name, model in given.items() if model},
        out,
        reading=reading,
        general=general,
        domain=domain,
        entities=entities[0] if entities and len(entities) == 1 else entities,
        properties=properties,
        choices=choices,
        settings=settings_of(quasitile.EvaluateSettings, changes),
    )
    from quasitile.report.terminal import print_measures

    print_measures(screen, summary)


@app.command()
def export(
    model: Model,
    out: Out,
    dtype: Annotated[str, typer.Option("--dtype", help="bf16, fp16 or fp32.")] = "bf16",
    changes: Set = None,
) -> None:
    """An ordinary dense checkpoint, which Transformers, vLLM, llama.cpp and others read without quasitile."""
    changes = [*(changes or ()), f"dtype={quasitile.runtime.export.SHORT.get(dtype, dtype)}"]
    show(quasitile.export(model, out, settings_of(quasitile.ExportSettings, changes)))


@app.command()
def chat(
    model: Model,
    system: Annotated[str, typer.Option("--system", help="The system message.")] = "",
    dtype: Annotated[str, typer.Option("--dtype", help="Of the arithmetic: bf16, fp16 or fp32.")] = "fp32",
    execution: Annotated[str, typer.Option("--execution", help="auto, dense, factored or lazy.")] = "auto",
    cache: Annotated[int, typer.Option("--cache", help="Megabytes that lazy execution may keep decoded.")] = 0,
    tokens: Annotated[int, typer.Option("--tokens", help="The most tokens of an answer.")] = 512,
    temperature: Annotated[float | None, typer.Option("--temperature", help="0 for the likeliest token always.")] = None,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.")] = "auto",
) -> None:
    """Talk to a model: /system TEXT, /reset, /exit."""
    quasitile.chat(
        model,
        system=system,
        dtype=quasitile.runtime.export.dtype_of(dtype),
        execution=execution,
        cache_bytes=1_000_000 * cache,
        max_tokens=tokens,
        temperature=temperature,
        seed=seed,
        device=device,
    )


@app.command(name="exec", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def execute(
    context: typer.Context,
    program: Annotated[str, typer.Argument(help="A Python program that is installed here, as lm_eval or transformers.")],
    execution: Annotated[str, typer.Option("--execution", help="auto, dense, factored or lazy.")] = "dense",
) -> None:
    """Run another program so that it can open folders that quasitile wrote, as `quasitile exec lm_eval run ...`."""
    from quasitile.runtime.programs import run_program

    run_program(program, context.args, execution)


@app.command()
def report(run: Path, out: Annotated[Path | None, typer.Option("--out", help="Where the page goes.")] = None) -> None:
    """One self-contained HTML page about a run folder."""
    screen.print(f"{quasitile.report(run, out)['path']}")


def show(summary: dict[str, Any]) -> None:
    """A stage's summary as a short table: its plain values."""
    rows = [
        (key.replace("_", " "), short(value) if isinstance(value, str) or not key.endswith("_bytes") else human_bytes(value))
        for key, value in summary.items()
        if isinstance(value, int | float | str) and not isinstance(value, bool)
    ]
    screen.print(table("", ("", ""), rows))


def short(value: float | str) -> str:
    """Numbers with few digits, everything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value


class Stopped(Exception):
    """Ctrl-C."""


def stop(*_: object) -> None:
    """The handler of Ctrl-C: leave through all `with` blocks, so that nothing half-written stays."""
    raise Stopped


def guarded(command: Callable[[], Any]) -> int:
    """Run a command; one line and exit status 2 for what the user can mend."""
    try:
        command()
    except InputError as error:
        line = str(error)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        line = f"no space left on the device while writing {error.filename or 'the output'}; free some room and run again"
    except Stopped:
        print("quasitile: stopped; run the same command again to go on", file=sys.stderr)
        return 130
    else:
        return 0
    print(f"quasitile: {' '.join(line.split())}", file=sys.stderr)
    return 2


def main() -> None:
    """The entry point."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    set_quiet(bool(os.environ.get("QUASITILE_QUIET")))
    signal.signal(signal.SIGINT, stop)
    sys.exit(guarded(app))


if __name__ == "__main__":
    main()
