"""Moments of the inputs behind layers that are already coded, instead of behind the original ones.

One more walk from the first layer to the last, at the step that samples gave: a layer's inputs are what
the coded layers before it make of the text, its matrices are coded with their moments, and it is
computed again as coded for the next one. Table and matrices outside the stack count as original, and
gradients stay those of the original model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from quasitile.checkpoint.streams import save_tensors
from quasitile.codec.matrix import decode_matrix
from quasitile.codec.packing import unpack
from quasitile.compress.calibrate import moments_of, share
from quasitile.compress.observe import SharedInputs, separate_experts
from quasitile.compress.streaming import Unit, Walk, has_experts
from quasitile.compress.tasks import MatrixTask
from quasitile.progress import track
from quasitile.runtime.device import CPU
from quasitile.runtime.layers import KINDS

CodeAll = Callable[[list[MatrixTask]], dict[str, dict[str, Any]]]


def propagate(walk: Walk, tasks: list[MatrixTask], code_all: CodeAll) -> list[MatrixTask]:
    """Code the layers in order, each with moments of what the coded ones before it give.

    Args:
        walk: The calibration, done.
        tasks: Of all matrices.
        code_all: Codes some of them.

    Returns:
        The tasks with the new moments.
    """
    journal, pieces = walk.journal, walk.pieces
    by_name = {task.name: task for task in tasks}
    count = len(pieces.layers)
    if journal.recall("propagated") is None:
        if all(journal.recall(f"prefix/{index}", check=False) is None for index in range(count + 1)):
            start(walk)
        for index in track(range(count), "calibrate behind coded layers"):
            if journal.recall(f"prefix/{index + 1}", check=False) is None:
                if journal.recall(f"inputs/{index}") is None:
                    keep_inputs(walk, index)
                mine = [name for name in by_name if name.startswith(f"{pieces.path}.{index}.")]
                coded = code_all([moved(walk, by_name[name], index) for name in mine])
                pass_through(walk, index, coded)
            walk.forget(f"coded-{index}")
        walk.forget(f"coded-{count}")
        journal.done("propagated")
    for index in range(count):
        for name in by_name:
            if name.startswith(f"{pieces.path}.{index}."):
                by_name[name] = moved(walk, by_name[name], index)
    return list(by_name.values())


def start(walk: Walk) -> None:
    """What the first layer is given."""
    pieces = walk.pieces
    pieces.skeleton.load(pieces.outside)
    out = walk.writer("coded-0")
    with torch.no_grad():
        for _, batch in walk.batches():
            out.write(pieces.before(batch))
    pieces.drop()
    walk.journal.done("prefix/0", "states/coded-0", out.finish())


def keep_inputs(walk: Walk, index: int) -> None:
    """Moments of the inputs of a layer's matrices, from the layer as it was on states as they are."""
    pieces = walk.pieces
    skeleton, path = pieces.skeleton, f"{pieces.path}.{index}"
    pieces.load_layer(index)
    unit, shared = Unit.of(walk, [name for name in skeleton.layers if name.startswith(f"{path}.")]), SharedInputs()
    with torch.no_grad(), unit.observed(shared), separate_experts(pieces.model, has_experts(pieces, index)):
        for first, batch in walk.batches():
            with unit.experts_watched():
                pieces.layer(index, batch, walk.states(f"coded-{index}", first, batch))
            shared.settle()
    pieces.drop()
    for experts in unit.stacks().values():
        share(experts)
    tensors, leaders, means = {}, {}, {}
    owner = {id(total): name for name, total in unit.sums.items()}
    for name, total in unit.sums.items():
        leader = owner[id(shared.leader_of(total))]
        if total.count and unit.sums[leader].inputs.any():  # columns of some experts meet gradients, which stay
            leaders[name] = leader
            if leader == name:
                moment = moments_of(total, [], walk.windows.numel(), means, shared).inputs.to(CPU)
                tensors |= {f"{name}.{part}": value for part, value in walk.parts(moment, total.edges).items()}
    file = f"moments/coded-{index}.safetensors"
    save_tensors(walk.journal.path(file), {name: tensor.contiguous() for name, tensor in tensors.items()})
    walk.journal.done(f"inputs/{index}", file, leaders=leaders)


def moved(walk: Walk, task: MatrixTask, index: int) -> MatrixTask:
    """A matrix of a layer with the new moments of its inputs."""
    line = walk.journal.recall(f"inputs/{index}", check=False)
    assert line is not None
    if task.name not in line["leaders"] or task.stored.power is not None:
        return task
    file = walk.journal.path(line["file"])
    return replace(
        task, stored=replace(task.stored, leader=line["leaders"][task.name], inputs_file=file), version=line["sha256"]
    )


def pass_through(walk: Walk, index: int, coded: dict[str, dict[str, Any]]) -> None:
    """What the layer makes of its states once it is coded."""
    pieces = walk.pieces
    skeleton = pieces.skeleton
    skeleton.load(skeleton.under(f"{pieces.path}.{index}"))
    for name, facts in coded.items():
        place = skeleton.layers[name]
        data = bytearray(walk.journal.path(facts["file"]).read_bytes())
        weight = decode_matrix(unpack(torch.frombuffer(data, dtype=torch.uint8)))
        whole = place.tensor if place.index is None else place.tensor[place.index]
        whole.copy_(KINDS[place.kind].parameter(weight, whole.shape))
    out = walk.writer(f"coded-{index + 1}")
    with torch.no_grad(), separate_experts(pieces.model, has_experts(pieces, index)):
        for first, batch in walk.batches():
            out.write(pieces.layer(index, batch, walk.states(f"coded-{index}", first, batch)))
    pieces.drop()
    walk.journal.done(f"prefix/{index + 1}", f"states/coded-{index + 1}", out.finish())
