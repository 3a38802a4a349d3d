"""Coding behind coded layers (`correct`) for a model that is never in memory: one layer at a time, from its shards.

Of each layer two sets of hidden states are kept on disk, behind layers as they were and behind coded ones. What a
group of matrices should meet is recorded with the layer as it was; then the layer is loaded with what is coded of it so
far, the differences are summed, and the group's corrected weights go to disk, where workers code them. A run that was
killed begins its layer again and ends in the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from quasitile.checkpoint.shards import checksum
from quasitile.checkpoint.streams import save_tensors
from quasitile.codec.packing import unpack
from quasitile.codec.stored import StoredMatrix
from quasitile.compress.budget import LAST, Budget
from quasitile.compress.correct import Differences, Group, Layer, put_matrix
from quasitile.compress.observe import separate_experts
from quasitile.compress.pieces import RESIDENT_NUMBERS, largest_layer
from quasitile.compress.streaming import Walk, has_experts
from quasitile.compress.tasks import MatrixTask
from quasitile.progress import track
from quasitile.runtime.device import CPU
from quasitile.runtime.lazy import Cache, Lazy

CodeAll = Callable[[list[MatrixTask], str, float], dict[str, dict[str, Any]]]
ROWS_AT_A_TIME = 1024  # of a weight that is corrected


def layers_fit(walk: Walk) -> bool:
    """Whether every layer is small enough to be in memory as a whole, which correction needs."""
    return largest_layer(walk.pieces.skeleton, walk.pieces.path) <= RESIDENT_NUMBERS


@dataclass
class StreamedCorrection:
    """One walk from the first layer to the last.

    Attributes:
        walk: The calibration, done.
        tasks: Of all matrices, by name.
        budget: With the facts of all matrices as they are coded without correction.
        code_all: Codes tasks at a step, in a pass of a name.
    """

    walk: Walk
    tasks: dict[str, MatrixTask]
    budget: Budget
    code_all: CodeAll

    def run(self) -> dict[str, dict[str, Any]]:
        """Code the matrices of the layers again, corrected; the facts of all matrices."""
        walk, count = self.walk, len(self.walk.pieces.layers)
        with torch.no_grad():
            if all(walk.journal.recall(f"behind/{index}", check=False) is None for index in range(count + 1)):
                self.start()
            order = [self.groups(index) for index in range(count)]
            left = [name for groups in order for group in groups for name in group.names]
            for index in track(range(count), "code behind coded layers"):
                done = walk.journal.recall(f"behind/{index + 1}", check=False)
                for group in order[index] if done is not None else ():
                    self.budget.take(*self.known(group.names))
                if done is None:
                    self.code_layer(index, order[index], left)
                left = [name for name in left if name not in self.budget.done]
                for kind in ("own", "behind"):
                    walk.forget(f"coded-{kind}-{index}")
        tries = iter(range(1000))
        facts = self.budget.settle(lambda again, step: self.code_all(again, f"settle-{next(tries)}", step))
        walk.forget(f"coded-behind-{count}")
        walk.forget(f"coded-own-{count}")
        return facts

    def start(self) -> None:
        """What the first layer is given, by the table as it was and by the coded one."""
        walk, pieces = self.walk, self.walk.pieces
        skeleton = pieces.skeleton
        table = pieces.embedding_name
        for kind in ("own", "behind"):
            skeleton.load(pieces.outside)
            rows_of = None
            if kind == "behind":
                for name, place in skeleton.layers.items():
                    if skeleton.tensor_name(name) in pieces.outside:
                        put_matrix(place, place.module, self.decoded(name))
                if table in self.budget.planned:
                    rows_of = self.lazy(table).rows
            out = walk.writer(f"coded-{kind}-0")
            for _, batch in walk.batches():
                out.write(pieces.before(batch, rows_of=rows_of))
            pieces.drop()
            walk.journal.done(f"{kind}/0", f"states/coded-{kind}-0", out.finish())

    def groups(self, index: int) -> list[Group]:
        """The groups of a layer."""
        journal, pieces = self.walk.journal, self.walk.pieces
        known = journal.recall(f"groups/{index}")
        if known is None:
            pieces.load_layer(index)
            batch = self.walk.windows[:1]
            with self.experts_apart(index):
                found = self.layer(index).groups(batch, self.states("own", 0, 0, batch))
            pieces.drop()
            known = journal.done(f"groups/{index}", groups=[[group.names, group.later, group.adds] for group in found])
        return [Group(tuple(names), tuple(later), adds) for names, later, adds in known["groups"]]

    def code_layer(self, index: int, groups: list[Group], left: list[str]) -> None:
        """Code a layer's matrices group by group, and keep what the next layer is given."""
        walk, layer = self.walk, self.layer(index)
        with self.experts_apart(index):
            walk.pieces.load_layer(index)
            for number, group in enumerate(groups):
                self.record(layer, group, walk.writer(f"coded-wanted-{number}"))
            own = self.pass_through(layer, "own")
            walk.pieces.drop()
            for number, group in enumerate(groups):
                with self.so_far(layer, groups):
                    self.meet(layer, group, f"coded-wanted-{number}")
                walk.forget(f"coded-wanted-{number}")
                tasks = self.corrected(group, self.sums(layer, group))
                step = self.budget.next_step([name for name in left if name not in self.budget.done])
                coded = self.code_all(tasks, "behind", step)
                self.budget.take(coded, tasks, step)
                walk.journal.done(f"step/{group.names[0]}", step=step)
                self.forget_files()
            with self.so_far(layer, groups):
                behind = self.pass_through(layer, "behind")
        walk.journal.done(f"own/{index + 1}", f"states/coded-own-{index + 1}", own)
        walk.journal.done(f"behind/{index + 1}", f"states/coded-behind-{index + 1}", behind)

    def layer(self, index: int) -> Layer:
        """A layer, as it is loaded."""
        pieces = self.walk.pieces
        places = {name: p for name, p in pieces.skeleton.layers.items() if name.startswith(f"{pieces.path}.{index}.")}
        return Layer(pieces, index, places)

    def experts_apart(self, index: int) -> Any:
        """A context in which the experts of a layer are computed one by one."""
        return separate_experts(self.walk.pieces.model, has_experts(self.walk.pieces, index))

    @contextmanager
    def so_far(self, layer: Layer, groups: list[Group]) -> Iterator[None]:
        """A layer with what is coded of it; matrices of groups that are still to come are as they were."""
        pieces = self.walk.pieces
        pieces.load_layer(layer.index)
        waiting = {name for group in groups for name in group.names if name not in self.budget.done}
        for name, place in layer.places.items():
            if name not in waiting:
                put_matrix(place, place.module, self.decoded(name))
        yield
        pieces.drop()

    def record(self, layer: Layer, group: Group, out: Any) -> None:
        """What a group would be compared with behind layers as they were."""
        for first, batch in self.walk.batches():
            _, wanted = layer.observed(layer.original, group, batch, self.states("own", layer.index, first, batch))
            out.write(wanted)
        out.finish()

    def meet(self, layer: Layer, group: Group, wanted: str) -> None:
        """Keep what a group meets and misses; the moments are summed when the layer is not in memory any more."""
        met_out, missed_out = self.walk.writer("coded-met"), self.walk.writer("coded-missed")
        for first, batch in self.walk.batches():
            states = self.states("behind", layer.index, first, batch)
            met, given = layer.observed(layer.original, group, batch, states)
            met_out.write(met)
            missed_out.write(self.walk.states(wanted, first, batch).view_as(given) - given)
        met_out.finish()
        missed_out.finish()

    def sums(self, layer: Layer, group: Group) -> Differences:
        """Of what `meet` kept."""
        width = self.states("behind", layer.index, 0, self.walk.windows[:1]).shape[-1]
        sums = layer.differences(group, width).to(self.walk.windows.device)
        for first, batch in self.walk.batches():
            sums.add(*(self.walk.states(name, first, batch) for name in ("coded-met", "coded-missed")))
        for name in ("coded-met", "coded-missed"):
            self.walk.forget(name)
        return sums.to(CPU)

    def pass_through(self, layer: Layer, kind: str) -> str:
        """Keep what the layer as it is loaded makes of its states; the checksum."""
        out = self.walk.writer(f"coded-{kind}-{layer.index + 1}")
        for first, batch in self.walk.batches():
            out.write(layer.run(layer.original, batch, self.states(kind, layer.index, first, batch), {}))
        return out.finish()

    def states(self, kind: str, index: int, first: int, batch: Tensor) -> Tensor:
        """What a layer is given."""
        return self.walk.states(f"coded-{kind}-{index}", first, batch)

    def corrected(self, group: Group, sums: Differences) -> list[MatrixTask]:
        """The tasks of W*, weights and moments on disk."""
        journal, (leader, *_) = self.walk.journal, group.names
        edges = self.walk.edges(leader)
        moment = diagonal_blocks(sums.moment(), edges)
        parts = self.walk.parts(moment, edges)
        save_tensors(journal.path(f"met/{leader}"), {f"{leader}.{part}": value.contiguous() for part, value in parts.items()})
        del moment, parts
        solve = sums.solver()
        for name in group.names:
            task = self.tasks[name]
            weight = torch.empty(task.shape)
            for start in range(0, task.shape[0], ROWS_AT_A_TIME):
                rows = slice(start, min(start + ROWS_AT_A_TIME, task.shape[0]))
                weight[rows] = solve(task.rows(rows.start, rows.stop), rows)
            save_tensors(journal.path(f"corrected/{name}"), {"weight": weight})
        return self.tasks_of(group.names)

    def tasks_of(self, names: tuple[str, ...]) -> list[MatrixTask]:
        """The tasks of a group whose corrected weights are on disk, or were."""
        journal, leader = self.walk.journal, names[0]
        moments = journal.path(f"met/{leader}")
        version = checksum(moments) if moments.is_file() else ""
        tasks = []
        for name in names:
            stored = replace(self.tasks[name].stored, leader=leader, inputs_file=moments, power=None)
            file = journal.path(f"corrected/{name}")
            tasks.append(replace(self.tasks[name], stored=stored, version=version, weight_file=file))
        return tasks

    def known(self, names: tuple[str, ...]) -> tuple[dict[str, dict[str, Any]], list[MatrixTask], float]:
        """What an earlier run coded of a group, for `Budget.take`."""
        journal = self.walk.journal
        line = journal.recall(f"step/{names[0]}")
        facts = {name: journal.recall(f"pass/behind/{name}", check=False) for name in names}
        assert line is not None
        return {name: each for name, each in facts.items() if each is not None}, self.tasks_of(names), line["step"]

    def forget_files(self) -> None:
        """Remove weights and moments of matrices that will not be coded again."""
        tasks = [task for _, task, _ in self.budget.done.values()]
        needed = {task.stored.leader for task in tasks[-LAST:]}
        for task in tasks[:-LAST]:
            self.walk.journal.path(f"corrected/{task.name}").unlink(missing_ok=True)
            if task.stored.leader not in needed:
                task.stored.inputs_file.unlink(missing_ok=True)

    def payload(self, name: str) -> Tensor:
        """The stored bytes of a matrix as it stands."""
        data = bytearray(self.walk.journal.path(self.budget.coded()[name]["file"]).read_bytes())
        return torch.frombuffer(data, dtype=torch.uint8)

    def decoded(self, name: str) -> Any:
        """A matrix as it stands."""
        return unpack(self.payload(name))

    def lazy(self, name: str) -> Lazy:
        """The rows of a matrix as it stands, decoded when they are asked for."""
        shape = self.tasks[name].shape
        return Lazy(StoredMatrix(self.payload(name), shape), None, torch.float32, Cache(), name)


def diagonal_blocks(moment: Tensor, edges: list[int]) -> Tensor:
    """The blocks (K, W, W) of a second moment (N, N), padded with zeros; the moment itself where there is one."""
    if len(edges) == 2:
        return moment
    width = max(stop - start for start, stop in pairwise(edges))
    blocks = torch.zeros(len(edges) - 1, width, width)
    for block, (start, stop) in zip(blocks, pairwise(edges), strict=True):
        block[: stop - start, : stop - start] = moment[start:stop, start:stop]
    return blocks
