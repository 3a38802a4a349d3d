"""Prices midway, for a model on disk: half of the original's gradients and half of those of the model as it was coded.

Far from the original the loss is no parabola any more: what an error costs at the original's weights says little of what
it costs where the coded ones will be. So the model is coded once, calibrated again as it then is, and coded again with the
mean of both prices (docs/mathematics.md). In memory that takes a few lines (`pipeline`). Here the coded model lies on disk as
a dense checkpoint while it is calibrated; whatever belongs to the second time has a journal of its own.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from quasitile.checkpoint.streams import TensorReader, save_tensors
from quasitile.compress.calibrate import price_midway
from quasitile.compress.journal import Journal
from quasitile.compress.outofcore import OutOfCore
from quasitile.compress.stored import stored_moments
from quasitile.compress.streaming import GRADIENTS, Walk
from quasitile.compress.tasks import MatrixTask
from quasitile.runtime.export import export
from quasitile.runtime.skeleton import Skeleton

AGAIN, CODED, DENSE, THERE = "again", "coded-model", "dense-model", "coded-calibration"  # folders in the work folder
PRICES = "midway.safetensors"


def once_more(
    work: OutOfCore, walk: Walk, tasks: list[MatrixTask], facts: dict[str, dict[str, Any]]
) -> tuple[OutOfCore, Walk, list[MatrixTask]]:
    """The same work and its tasks, priced midway.

    Args:
        work: Of the first time.
        walk: Its calibration, done.
        tasks: Of all matrices.
        facts: Of the coded ones.
    """
    journal = Journal(work.journal.folder / AGAIN, AGAIN)
    line = journal.recall("midway")
    if line is None:
        mine, there = stored_moments(work.journal, work.edges), moments_of_coded(work, walk, facts)
        means = {f"{name}.outputs": price_midway(each.outputs(), there[name].outputs()) for name, each in mine.items()}
        tables = [name for name, each in mine.items() if f"{name}.{GRADIENTS}" in TensorReader(each.inputs_file)]
        for name in tables:
            here, other = (TensorReader(each.inputs_file).read(f"{name}.{GRADIENTS}") for each in (mine[name], there[name]))
            means |= {f"{name}.{part}": value for part, value in walk.parts((here + other) / 2, work.edges[name]).items()}
        save_tensors(journal.path(PRICES), {name: mean.contiguous() for name, mean in means.items()})
        line = journal.done("midway", PRICES, tables=tables)
    for folder in (CODED, DENSE, THERE):
        shutil.rmtree(work.journal.folder / folder, ignore_errors=True)
    again = [priced(task, journal.path(PRICES), line["sha256"], task.name in line["tables"]) for task in tasks]
    return replace(work, journal=journal), replace(walk, journal=journal), again


def priced(task: MatrixTask, file: Path, version: str, columns: bool) -> MatrixTask:
    """A task with gradients from a file, of its rows and, where they meet gradients too, of its columns."""
    stored = replace(task.stored, outputs_file=file, gradient=None)
    if not columns:
        return replace(task, stored=stored)
    return replace(task, stored=replace(stored, inputs_file=file, leader=task.name, power=None), version=version)


def moments_of_coded(work: OutOfCore, walk: Walk, facts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Moments of the coded model, on disk."""
    skeleton = Skeleton(dense_of_coded(work, facts))
    skeleton.compute_on(walk.windows.device)
    journal = Journal(work.journal.folder / THERE, THERE)
    replace(work, skeleton=skeleton, journal=journal).calibrate(walk.windows, walk.batch_size, walk.seed)
    return dict(stored_moments(journal, work.edges))


def dense_of_coded(work: OutOfCore, facts: dict[str, dict[str, Any]]) -> Path:
    """The coded model as a dense checkpoint."""
    coded, dense = work.journal.folder / CODED, work.journal.folder / DENSE
    if work.journal.recall("dense") is None or not dense.is_dir():
        for folder in (coded, dense):
            shutil.rmtree(folder, ignore_errors=True)
        coded.mkdir()
        replace(work, skeleton=Skeleton(work.folder)).write(facts, coded)  # writing turns a skeleton into a coded one
        export(coded, dense)
        shutil.rmtree(coded)
        work.journal.done("dense")
    return dense
