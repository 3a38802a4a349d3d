"""Coding layer after layer, each matrix corrected for what the coded ones before it changed.

Behind coded layers a matrix W meets x' instead of x, and what it is added to is r' instead of r. Part of
the difference d of what comes out can be told from x' and made up for (docs/mathematics.md):

    W* = W + E[d x'^T] (E[x' x'^T] + ridge)^-1

where d = W (x - x') inside a layer. Of a matrix whose product is added to the hidden states as it is, d is
the difference of those states after the addition, with what comes later in the layer left out; so
it makes up for the errors of all layers before it. W* is coded with the moments of x'.

B batch, T tokens, D hidden, M rows, N columns.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from quasitile.codec.block import CodedMatrix
from quasitile.codec.coding import Coding
from quasitile.codec.matrix import decode_matrix
from quasitile.compress.allocate import Allocation, Coded, Job, encode_all
from quasitile.compress.budget import Budget
from quasitile.compress.calibrate import Moments
from quasitile.compress.stack import Captured, Stack
from quasitile.progress import track
from quasitile.runtime import Place
from quasitile.runtime.device import CPU
from quasitile.runtime.layers import KINDS

RIDGE, RIDGE_OF_FEW_TOKENS = 0.05, 4.0  # shares of the mean power; the second times columns over tokens
DOUBLE_COLUMNS = 4096  # of more, the factor is single precision too
SAME = 1e-3  # how far from unity the gain may be of what is added to the hidden states


def code_in_order(
    stack: Stack,
    jobs: list[Job],
    layers: dict[str, Place],
    plan: Allocation,
    coding: Coding,
    measure: Callable[[dict[str, Coded]], int],
    target: int,
    windows: Tensor,
    batch_size: int,
    workers: int,
) -> dict[str, Coded]:
    """Code the matrices of the layers again, corrected, from the first layer to the last.

    Args:
        stack: Of the model, which is left as it was.
        jobs: All matrices.
        layers: Where they are.
        plan: All of them coded without correction; those outside of the layers stay as they are there.
        coding: How they are coded.
        measure: See `allocate.allocate`.
        target: Likewise.
        windows: (count, T) token ids.
        batch_size: Windows at a time.
        workers: Threads.

    Returns:
        All coded matrices.
    """
    by_name = {job.name: job for job in jobs}
    batches = list(windows.split(batch_size))
    budget = Budget(measure, target, plan.slope, plan.step, plan.coded)
    prefixes = [f"{stack.path}.{index}." for index in range(len(stack.layers))]
    inside = [[name for name in by_name if name.startswith(prefix)] for prefix in prefixes]
    outside = {name: layers[name] for name in by_name if not name.startswith(tuple(prefixes))}
    with torch.no_grad():
        walk = [Layer(stack, index, {name: layers[name] for name in names}) for index, names in enumerate(inside)]
        states = [stack.given(batch) for batch in batches]
        with replaced(outside, plan.coded):
            coded_states = [stack.given(batch) for batch in batches]
        order = [layer.groups(batches[0][:1], states[0][:1]) for layer in walk]
        left = [name for groups in order for group in groups for name in group.names]
        for layer, groups in track(list(zip(walk, order, strict=True)), "code behind coded layers"):
            layer.open(plan.coded, groups)
            for group in groups:
                differences = layer.compare(group, batches, states, coded_states).to(CPU)
                corrected = differences.corrected([by_name[name] for name in group.names])
                step = budget.next_step(left)
                coded = encode_all(corrected, coding, step, workers, quiet=True)
                left = [name for name in left if name not in coded]
                budget.take(coded, corrected, step)
                layer.put(coded)
            states, coded_states = layer.advance(batches, states, coded_states)
    return budget.settle(lambda again, step: encode_all(again, coding, step, workers, quiet=True))


@dataclass(frozen=True)
class Group:
    """Matrices of a layer that meet the same inputs.

    Attributes:
        names: Of the matrices.
        later: Of the matrices whose modules are called after theirs.
        adds: Whether the product is added to the hidden states as it is.
    """

    names: tuple[str, ...]
    later: tuple[str, ...]
    adds: bool


class Differences:
    """What a group meets and misses behind coded layers, summed over tokens.

    Args:
        num_columns: N of the group's matrices.
        num_rows: M of a group that adds, else N.
        adds: See `Group`.
    """

    def __init__(self, num_columns: int, num_rows: int, adds: bool) -> None:
        self.inputs, self.missed = torch.zeros(num_columns, num_columns), torch.zeros(num_rows, num_columns)
        self.adds, self.count = adds, 0

    def add(self, met: Tensor, difference: Tensor) -> None:
        """More tokens: x' (..., N), and d (..., M) of a group that adds, else x - x' (..., N)."""
        met, difference = (each.float().flatten(0, -2) for each in (met, difference))
        self.inputs.addmm_(met.T, met)
        self.missed.addmm_(difference.T, met)
        self.count += len(met)

    def to(self, device: torch.device) -> Differences:
        """Move the sums."""
        self.inputs, self.missed = self.inputs.to(device), self.missed.to(device)
        return self

    def moment(self) -> Tensor:
        """E[x' x'^T] (N, N)."""
        return self.inputs / self.count

    def solver(self) -> Callable[[Tensor, slice], Tensor]:
        """Some rows (R, N) of a W that meets these inputs, and which they are -> those of W*.

        Works in the place of `inputs`, which are gone then.
        """
        num_columns = len(self.inputs)
        inputs = self.inputs.div_(self.count)
        if num_columns <= DOUBLE_COLUMNS:
            inputs = inputs.double()
        power = inputs.diagonal().clone()
        share = RIDGE + RIDGE_OF_FEW_TOKENS * num_columns / self.count
        inputs.diagonal().add_(share * (power + 0.01 * power.mean()) + 1e-30)
        lower, info = inputs.mT, torch.zeros((), dtype=torch.int32)  # a view by columns, as LAPACK writes it
        torch.linalg.cholesky_ex(lower, out=(lower, info), check_errors=True)
        lower, missed = lower.float(), self.missed / self.count

        def corrected(weight: Tensor, rows: slice) -> Tensor:
            mine = missed[rows] if self.adds else weight @ missed
            half = torch.linalg.solve_triangular(lower.mT, mine, upper=True, left=False)
            return torch.linalg.solve_triangular(lower, half, upper=False, left=False).add_(weight)

        return corrected

    def corrected(self, jobs: list[Job]) -> list[Job]:
        """The jobs of W*, with the moments that it is coded with."""
        moment, solve = self.moment(), self.solver()
        weights = [solve(job.weight, slice(None)) for job in jobs]
        moments = [Moments(moment, job.moments.outputs) for job in jobs]
        return [replace(job, weight=w, moments=m) for job, w, m in zip(jobs, weights, moments, strict=True)]


class Layer:
    """One layer, as it was and as a copy that is coded matrix by matrix.

    Args:
        stack: Of the model.
        index: Of the layer.
        places: Of its matrices, in the model.
    """

    def __init__(self, stack: Stack, index: int, places: dict[str, Place]) -> None:
        self.stack, self.index, self.places = stack, index, places
        self.original = stack.layers[index]
        self.copy = self.original
        self._next: list[Tensor] = []

    def module(self, layer: nn.Module, name: str) -> nn.Module:
        """That holds a matrix, in the layer or in its copy."""
        return layer.get_submodule(self.places[name].path.removeprefix(f"{self.stack.path}.{self.index}").removeprefix("."))

    def run(self, layer: nn.Module, batch: Tensor, states: Tensor, hooks: dict[nn.Module, Callable]) -> Tensor:
        """What the layer or its copy gives, or what a hook captured.

        Args:
            layer: Which.
            batch: (B, T) token ids.
            states: (B, T, D) that it is given.
            hooks: Forward hooks of its modules, or `inputs_seen` for what they are given.
        """
        with ExitStack() as handles:
            for module, hook in hooks.items():
                before = getattr(hook, "before", False)
                handle = module.register_forward_pre_hook(hook) if before else module.register_forward_hook(hook)
                handles.callback(handle.remove)
            return self.stack.layer(self.index, batch, states, layer)

    def groups(self, batch: Tensor, states: Tensor) -> list[Group]:
        """Linear layers that are called once and meet every token, in the order of their calls."""
        calls: list[tuple[str, Tensor]] = []
        hooks = {
            self.module(self.original, name): inputs_seen(lambda x, name=name: calls.append((name, x))) for name in self.places
        }
        self.run(self.original, batch, states, hooks)
        order = [name for name, _ in calls]
        found: list[Group] = []
        for source in {id(x): x for _, x in calls}.values():
            names = tuple(name for name, x in calls if x is source)
            plain = all(self.places[name].kind in ("linear", "conv1d") and order.count(name) == 1 for name in names)
            if plain and source.shape[:-1].numel() == batch.numel():
                later = tuple(dict.fromkeys(name for name in order[order.index(names[-1]) + 1 :] if name not in names))
                group = Group(names, later, adds=False)
                found.append(replace(group, adds=self.adds(group, batch, states)))
        return found

    def adds(self, group: Group, batch: Tensor, states: Tensor) -> bool:
        """Whether a change of the output changes the hidden states by as much, with all that comes later silenced."""
        (name, *others) = group.names
        if others or self.places[name].weight.shape[0] != states.shape[-1]:
            return False
        changes: list[Tensor] = []

        def shaken(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
            generator = torch.Generator().manual_seed(0)
            changes.append(torch.randn(output.shape, generator=generator).to(output.device) * (output.std() + 1e-6))
            return output + changes[-1]

        hooks = self.silent(self.original, group)
        before = self.run(self.original, batch, states, hooks)
        after = self.run(self.original, batch, states, hooks | {self.module(self.original, name): shaken})
        change = changes[0].reshape(before.shape)
        return bool((after - before - change).norm() <= SAME * change.norm())

    def silent(self, layer: nn.Module, group: Group) -> dict[nn.Module, Callable]:
        """Hooks for what comes after a group."""
        return {self.module(layer, name): silenced for name in group.later}

    def open(self, planned: dict[str, Coded], groups: list[Group]) -> None:
        """Begin the copy; matrices that no group has are coded in it at once, the others will follow."""
        self.copy = copy.deepcopy(self.original)
        grouped = {name for group in groups for name in group.names}
        self.put({name: planned[name] for name in self.places if name not in grouped})

    def put(self, coded: dict[str, Coded]) -> None:
        """Use coded matrices in the copy."""
        for name, result in coded.items():
            put_matrix(self.places[name], self.module(self.copy, name), result.matrix)

    def observed(self, layer: nn.Module, group: Group, batch: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """What a group meets (..., N), and what is compared: the same, or the states (B, T, D) after what it adds."""
        at = self.module(layer, group.names[0])
        if not group.adds:
            met = self.run(layer, batch, states, {at: inputs_seen(capture)})
            return met, met
        seen: list[Tensor] = []
        given = self.run(layer, batch, states, self.silent(layer, group) | {at: inputs_seen(seen.append)})
        (met,) = seen
        return met, given

    def differences(self, group: Group, width: int) -> Differences:
        """Of a group, nothing added yet; hidden states have so many features."""
        num_columns = self.places[group.names[0]].weight.shape[1]
        return Differences(num_columns, width if group.adds else num_columns, group.adds)

    def compare(self, group: Group, batches: list[Tensor], states: list[Tensor], coded_states: list[Tensor]) -> Differences:
        """Run the layer behind the layers as they were, and its copy behind coded ones."""
        sums, self._next = self.differences(group, states[0].shape[-1]).to(states[0].device), []
        for batch, mine, coded in zip(batches, states, coded_states, strict=True):
            _, wanted = self.observed(self.original, group, batch, mine)
            met, given = self.observed(self.copy, group, batch, coded)
            if group.adds and not group.later:
                self._next.append(wanted)
            sums.add(met, wanted - given)
        return sums

    def advance(
        self, batches: list[Tensor], states: list[Tensor], coded_states: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """What the next layer is given, behind layers as they were and behind coded ones."""
        coded = [self.run(self.copy, batch, hidden, {}) for batch, hidden in zip(batches, coded_states, strict=True)]
        own = self._next or [self.run(self.original, batch, hidden, {}) for batch, hidden in zip(batches, states, strict=True)]
        self.copy, self._next = self.original, []
        return own, coded


def inputs_seen(see: Callable[[Tensor], Any]) -> Callable:
    """A hook that is shown what a module is given."""

    def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
        if args:  # experts may be called by name; they are seen by `ExpertWatch` alone
            see(args[0])

    hook.before = True  # type: ignore[attr-defined]
    return hook


def capture(x: Tensor) -> None:
    """End the forward pass here."""
    raise Captured(x)


def silenced(_module: nn.Module, _args: Any, output: Any) -> Any:
    """A hook that makes an output nothing."""
    return torch.zeros_like(output) if isinstance(output, Tensor) else output


def put_matrix(place: Place, module: nn.Module, coded: CodedMatrix) -> None:
    """Overwrite a matrix of a module by what is coded."""
    tensor = getattr(module, place.parameter).data
    whole = tensor if place.index is None else tensor[place.index]
    whole.copy_(KINDS[place.kind].parameter(decode_matrix(coded), whole.shape))


@contextmanager
def replaced(places: dict[str, Place], coded: dict[str, Coded]) -> Iterator[None]:
    """Matrices of the model as they are coded, for a while."""
    kept = {name: place.tensor.detach().clone() for name, place in places.items()}
    for name, place in places.items():
        put_matrix(place, place.module, coded[name].matrix)
    try:
        yield
    finally:
        for name, place in places.items():
            place.tensor.data.copy_(kept[name])
