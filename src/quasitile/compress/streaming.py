"""Calibration of a model that is never in memory: one layer at a time, forwards and then backwards.

What each layer is given is kept on disk. From the loss at the head back to the table, every layer is read
again, computed again from what it was given, and hands the gradient of that to the layer before it;
on the way its moments are summed as they are in memory (`calibrate`), with the same result.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quasitile.checkpoint.streams import TensorReader, save_tensors
from quasitile.codec.plain import InputSide
from quasitile.compress.calibrate import UNREACHED, mean_power, moments_of, sampled_loss, share
from quasitile.compress.journal import Journal
from quasitile.compress.observe import OBSERVERS, ExpertWatch, SharedInputs, Sums, observe_linear, separate_experts
from quasitile.compress.pieces import Pieces
from quasitile.compress.states import StateWriter, read_states
from quasitile.progress import track
from quasitile.runtime import Place
from quasitile.runtime.device import CPU

HEAD_SUMS = ("inputs", "outputs")  # kept of a head that shares the table
GRADIENTS = "gradients"  # of what is kept of a table: the moment itself, which prices midway take the mean of
BEHIND = "coded-"  # begins the names of states behind coded layers, which are made later
LOGIT_NUMBERS = 1 << 24  # of one batch, after the last layer; a few arrays of them are in memory at a time


@dataclass(frozen=True)
class Walk:
    """What a calibration goes through.

    Attributes:
        pieces: Of the model.
        journal: What has been done, and where files lie.
        windows: (W, T) token ids, where the model computes.
        batch_size: Windows at a time.
        seed: Of the drawn labels.
        edges: Of the blocks of a matrix' second moment, by its number of columns and name.
        side: What is kept of the inputs: makes it from a moment and its edges, or nothing to keep the moment itself.
    """

    pieces: Pieces
    journal: Journal
    windows: Tensor
    batch_size: int
    seed: int
    edges: Callable[[str], list[int]]
    side: Callable[[Tensor, list[int]], InputSide] | None = None

    def batches(self, size: int | None = None) -> Iterator[tuple[int, Tensor]]:
        """Number of the first window and token ids of each batch."""
        first = 0
        for batch in self.windows.split(size or self.batch_size):
            yield first, batch
            first += len(batch)

    def states(self, name: str, first: int, batch: Tensor) -> Tensor:
        """Hidden states of a batch."""
        return read_states(self.journal.path(f"states/{name}"), first, batch, len(self.windows)).to(self.windows.device)

    def writer(self, name: str) -> StateWriter:
        """Of hidden states of all windows."""
        return StateWriter(self.journal.path(f"states/{name}"))

    def parts(self, moment: Tensor, edges: list[int]) -> dict[str, Tensor]:
        """What is kept of a second moment."""
        if self.side is None:
            return {"inputs": moment}
        side = self.side(moment, edges)
        return {"lower": side.lower, "columns": side.column_codes}

    def forget(self, name: str) -> None:
        """Hidden states that nobody will ask for again."""
        self.journal.path(f"states/{name}").unlink(missing_ok=True)


def calibrate_streamed(walk: Walk) -> None:
    """Go forwards and backwards; `StoredMoments` then has what `calibrate` returns."""
    if walk.journal.recall("calibrated") is None:
        forwards(walk)
        backwards(walk)
        walk.journal.done("calibrated", prices=unseen_prices(walk))
    for file in walk.journal.path("states/x").parent.iterdir():
        if not file.name.startswith(BEHIND):
            file.unlink()


def forwards(walk: Walk) -> None:
    """Keep what each layer is given: `states/0` what the first one is, and so on to what the last one gives."""
    pieces, journal, skeleton = walk.pieces, walk.journal, walk.pieces.skeleton
    if journal.recall("forwards") or any(key.startswith("backwards") for key in journal.entries):
        return
    if journal.recall("forwards/0") is None:
        skeleton.load(pieces.outside)
        out = walk.writer("0")
        with torch.no_grad():
            for _, batch in walk.batches():
                out.write(pieces.before(batch))
        pieces.drop()
        journal.done("forwards/0", "states/0", out.finish())
    for index in track(range(len(pieces.layers)), "calibrate forwards"):
        key, file = f"forwards/{index + 1}", f"states/{index + 1}"
        if journal.recall(key) is not None:
            continue
        pieces.load_layer(index)
        out = walk.writer(str(index + 1))
        with torch.no_grad(), separate_experts(pieces.model, has_experts(pieces, index)):
            for first, batch in walk.batches():
                out.write(pieces.layer(index, batch, walk.states(str(index), first, batch)))
        pieces.drop()
        journal.done(key, file, out.finish())


def backwards(walk: Walk) -> None:
    """From the loss back to the table, summing moments."""
    pieces, journal = walk.pieces, walk.journal
    last = len(pieces.layers)
    if journal.recall("backwards/head", check=False) is None:
        backwards_from_loss(walk)
    for index in track(range(last - 1, -1, -1), "calibrate backwards"):
        if journal.recall(f"backwards/{index}", check=False) is None:
            backwards_through(walk, index)
        walk.forget(str(index + 1))
        walk.forget(f"gradient-{index + 1}")
    if journal.recall("backwards/table", check=False) is None:
        backwards_to_table(walk)


def backwards_from_loss(walk: Walk) -> None:
    """Moments of what comes after the stack, and the gradients at what the last layer gave."""
    pieces, last = walk.pieces, len(walk.pieces.layers)
    skeleton = pieces.skeleton
    skeleton.load(pieces.outside)
    names = [name for name in skeleton.layers if name == pieces.head or skeleton.tensor_name(name) in pieces.outside]
    sums, shared = Unit.of(walk, names), SharedInputs()
    heads, num_rows = {}, 1
    if pieces.head is not None:
        owner = skeleton.tied.get(pieces.head) or pieces.head
        num_rows = skeleton.layers[owner].weight.shape[0]
        if owner != pieces.head:
            heads[pieces.head] = sums.new(owner, shared)
    generator = torch.Generator().manual_seed(walk.seed)
    out = walk.writer(f"gradient-{last}")
    size = max(1, min(walk.batch_size, LOGIT_NUMBERS // (walk.windows.shape[1] * num_rows)))
    with sums.observed(shared, heads):
        for first, batch in walk.batches(size):
            hidden = walk.states(str(last), first, batch).requires_grad_()
            with torch.enable_grad():
                sampled_loss(pieces.after(batch, hidden), generator).backward()
            shared.settle()
            assert hidden.grad is not None
            out.write(hidden.grad)
    pieces.drop()
    gradient = out.finish()
    sums.sums = {name: total for name, total in sums.sums.items() if total.outputs.any()}  # others lie before the stack
    extra = {
        f"head.{key}": value
        for total in heads.values()
        for key, value in zip(HEAD_SUMS, (total.inputs.to(CPU), total.outputs.to(CPU)), strict=True)
    }
    sums.keep(shared, "backwards/head", extra, gradient_sha256=gradient)


def backwards_through(walk: Walk, index: int) -> None:
    """Moments of a layer, and the gradients at what it was given."""
    pieces = walk.pieces
    skeleton, path = pieces.skeleton, f"{pieces.path}.{index}"
    pieces.load_layer(index)
    sums, shared = Unit.of(walk, [name for name in skeleton.layers if name.startswith(f"{path}.")]), SharedInputs()
    out = walk.writer(f"gradient-{index}")
    with sums.observed(shared), separate_experts(pieces.model, has_experts(pieces, index)):
        for first, batch in walk.batches():
            hidden = walk.states(str(index), first, batch).requires_grad_()
            with torch.enable_grad(), sums.experts_watched():
                given = pieces.layer(index, batch, hidden)
            given.backward(walk.states(f"gradient-{index + 1}", first, batch))
            shared.settle()
            assert hidden.grad is not None
            out.write(hidden.grad)
    pieces.drop()
    gradient = out.finish()
    sums.keep(shared, f"backwards/{index}", gradient_sha256=gradient)


def backwards_to_table(walk: Walk) -> None:
    """Moments of the table."""
    pieces = walk.pieces
    skeleton, name = pieces.skeleton, pieces.embedding_name
    skeleton.load(pieces.outside)
    line = walk.journal.recall("backwards/head")
    assert line is not None, "the moments of the head are gone"
    outside = [each for each in skeleton.layers if skeleton.tensor_name(each) in pieces.outside and each not in line["leaders"]]
    unit, shared = Unit.of(walk, [name, *outside]), SharedInputs()
    with unit.observed(shared):
        for first, batch in walk.batches():
            with torch.enable_grad():
                hidden = pieces.before(batch, unit.sums[name])
            hidden.backward(walk.states("gradient-0", first, batch))
            shared.settle()
    pieces.drop()
    heads = []
    if pieces.head in skeleton.tied:
        reader = TensorReader(walk.journal.path(line["file"]))
        heads = [unit.new(name, shared)]
        heads[0].inputs, heads[0].outputs = (reader.read(f"head.{part}").to(walk.windows.device) for part in HEAD_SUMS)
    unit.keep(shared, "backwards/table", heads=heads)


class Unit:
    """Sums of the matrices of one piece, while it is calibrated."""

    def __init__(self, walk: Walk, places: dict[str, Place]) -> None:
        self.walk, self.places = walk, places
        self.sums: dict[str, Sums] = {}

    @classmethod
    def of(cls, walk: Walk, names: list[str]) -> Unit:
        """Of these matrices."""
        unit = cls(walk, {name: walk.pieces.skeleton.layers[name] for name in names})
        unit.sums = {name: unit.new(name, None) for name in names}
        return unit

    def new(self, name: str, shared: SharedInputs | None) -> Sums:
        """Empty sums for a matrix."""
        shape = self.walk.pieces.skeleton.layers[name].weight.shape
        return Sums(shape[0], shape[1], self.walk.edges(name), shared, self.walk.windows.device)

    @contextmanager
    def observed(self, shared: SharedInputs, heads: dict[str, Sums] | None = None) -> Iterator[None]:
        """Observe the modules of these matrices, and heads that share the table."""
        model, handles = self.walk.pieces.model, []
        for name, place in self.places.items():
            self.sums[name].shared = shared
            if place.kind not in ("experts", "embedding"):
                hook = OBSERVERS[place.kind](self.sums[name], place)
                handles.append(place.module.register_forward_hook(hook, with_kwargs=True))
        for name, total in (heads or {}).items():
            hook = observe_linear(total, next(iter(self.walk.pieces.skeleton.layers.values())))
            handles.append(model.get_submodule(name).register_forward_hook(hook, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def stacks(self) -> dict[Tensor, list[Sums]]:
        """Sums of experts by their parameter, as it is loaded now."""
        stacks: dict[Tensor, list[Sums]] = {}
        for name, place in self.places.items():
            if place.kind == "experts":
                stacks.setdefault(place.tensor, []).append(self.sums[name])
        return stacks

    def experts_watched(self) -> Any:
        """A context in which products of experts are seen."""
        stacks = self.stacks()
        return ExpertWatch(stacks) if stacks else nullcontext()

    def keep(
        self,
        shared: SharedInputs,
        key: str,
        extra: dict[str, Tensor] | None = None,
        heads: list[Sums] | None = None,
        **values: Any,
    ) -> None:
        """Write what coding needs, and note that the piece is done."""
        walk = self.walk
        for experts in self.stacks().values():
            share(experts)
        tensors, means = dict(extra or {}), {}
        leaders, stats = {}, {}
        owner = {id(total): name for name, total in self.sums.items()}
        for name, total in self.sums.items():
            moments = moments_of(total, heads or [], walk.windows.numel(), means, shared).to(CPU)
            leader = owner[id(shared.leader_of(total))]
            leaders[name] = leader
            stats[name] = [float(mean_power(moments.inputs, total)), float(moments.outputs.mean())]
            tensors[f"{name}.outputs"] = moments.outputs
            if leader == name:
                tensors |= {f"{name}.{part}": value for part, value in walk.parts(moments.inputs, total.edges).items()}
            if self.places[name].kind == "embedding":
                tensors[f"{name}.{GRADIENTS}"] = moments.inputs
        file = f"moments/{key.partition('/')[2]}.safetensors"
        save_tensors(walk.journal.path(file), {name: tensor.contiguous() for name, tensor in tensors.items()})
        walk.journal.done(key, file, leaders=leaders, stats=stats, **values)


def has_experts(pieces: Pieces, index: int) -> bool:
    """Whether a layer has stacks of experts."""
    path = f"{pieces.path}.{index}."
    return any(place.kind == "experts" for name, place in pieces.skeleton.layers.items() if name.startswith(path))


def unseen_prices(walk: Walk) -> dict[str, list[float | None]]:
    """For matrices that calibration did not see: their inputs' power, if that is unknown, and their gradients' mean square.

    See `calibrate.priced`.
    """
    stats: dict[str, list[float]] = {}
    for key, line in walk.journal.entries.items():
        if key.startswith("backwards/"):
            stats |= line["stats"]
    layers = walk.pieces.skeleton.layers
    seen = [name for name in layers if name in stats and stats[name][0] > 0 and stats[name][1] > UNREACHED]
    typical = [name for name in seen if layers[name].kind != "embedding"] or seen
    if not typical:
        return {}
    power, gradient = (statistics.median(stats[name][part] for name in typical) for part in (0, 1))
    return {name: [None if stats[name][0] > 0 else power, gradient] for name in layers if name not in seen}
