"""A model's stack of layers, each run by itself.

The model's own `forward` does the work, so masks, positions and anything else that a layer is given are
what they are in the whole model; only the layers that are not wanted are passed over.

B batch, T tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from quasitile.compress.calibrate import without_cache
from quasitile.errors import InputError


class NotAStack(InputError):
    """The model is no plain stack of layers, each fed by the one before it alone."""


class Captured(Exception):
    """What was asked for; ends the model's forward pass there."""


class Stack:
    """The layers of a model.

    Args:
        model: In memory.

    Raises:
        NotAStack: It has no stack of layers that can be run one after another.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.path, self.layers = find_stack(model)
        self.embedding: Any = model.get_input_embeddings()
        self.in_tuples = self._probe()

    def _probe(self) -> bool:
        """Whether layers give tuples; also checks that each is fed by the one before it alone, once and in order.

        Raises:
            NotAStack: They are not.
        """
        loaded = (each.device for each in (*self.model.parameters(), *self.model.buffers()) if not each.is_meta)
        batch = torch.zeros(1, 2, dtype=torch.long, device=next(loaded, None))
        for in_tuples in (False, True):
            order: list[int] = []
            state: dict[str, Any] = {"hidden": None, "fits": True}

            def passed(index: int, hidden: Any, args: tuple, kwargs: dict, order: list = order, state: dict = state) -> Tensor:
                order.append(index)
                same = state["hidden"] is None or hidden is state["hidden"]
                shaped = isinstance(hidden, Tensor) and hidden.is_floating_point() and hidden.ndim == 3
                others = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
                state["fits"] &= same and shaped and not any(other.requires_grad for other in others)
                if not state["fits"] or index == len(self.layers) - 1:
                    raise Captured
                state["hidden"] = hidden * 1.0
                return state["hidden"]

            try:
                with torch.enable_grad(), self._stubbed(passed, in_tuples):
                    self.model(batch, **without_cache(self.model))
            except Captured:
                pass
            except (IndexError, RuntimeError, TypeError, ValueError, AttributeError):
                continue
            if state["fits"] and order == list(range(len(self.layers))):
                return in_tuples
        raise NotAStack(f"the layers of {self.path} are not fed by one another alone")

    @contextmanager
    def _stubbed(self, passed: Callable, in_tuples: bool) -> Iterator[None]:
        """Every layer replaced by `passed(index, hidden, args, kwargs)`, the table by zeros; see also `others`."""

        def stub(index: int) -> Callable:
            def forward(*args: Any, **kwargs: Any) -> Any:
                if args:
                    hidden, args = args[0], args[1:]
                else:
                    hidden = kwargs.pop("hidden_states", None)
                out = passed(index, hidden, args, kwargs)
                return (out,) if in_tuples else out

            return forward

        def table(token_ids: Tensor, *_: Any, **__: Any) -> Tensor:
            size, learns = (*token_ids.shape, self.embedding.embedding_dim), torch.is_grad_enabled()
            return torch.zeros(size, device=token_ids.device, requires_grad=learns)

        layers: dict[nn.Module, Callable] = {layer: stub(index) for index, layer in enumerate(self.layers)}
        with forwards(layers | {self.embedding: table} | self.others()):
            yield

    def others(self) -> dict[nn.Module, Callable]:
        """`forward` methods of further modules while layers are passed over."""
        return {}

    def run(self, batch: Tensor, passed: Callable) -> Any:
        """The whole forward pass with these layers, or what was captured."""
        try:
            with self._stubbed(passed, self.in_tuples):
                return self.model(batch, **without_cache(self.model))
        except Captured as captured:
            return captured.args[0]

    def given(self, batch: Tensor) -> Tensor:
        """What the first layer is given (B, T, D)."""

        def first(*args: Any, **kwargs: Any) -> Any:
            raise Captured(args[0] if args else kwargs["hidden_states"])

        try:
            with forwards({self.layers[0]: first}):
                self.model(batch, **without_cache(self.model))
        except Captured as captured:
            return captured.args[0]
        raise AssertionError("no layer was called")

    def layer(self, index: int, batch: Tensor, hidden: Tensor, module: nn.Module | None = None) -> Tensor:
        """What a layer makes of its input (B, T, D); its weights must be loaded.

        Args:
            index: Of the layer.
            batch: (B, T) token ids.
            hidden: (B, T, D).
            module: A copy of the layer that takes its place.
        """
        module = self.layers[index] if module is None else module

        def passed(at: int, given: Tensor, args: tuple, kwargs: dict) -> Tensor:
            if at < index:
                return given
            out = type(module).forward(module, hidden, *args, **kwargs)
            raise Captured(out[0] if isinstance(out, tuple) else out)

        return self.run(batch, passed)


def find_stack(model: Any) -> tuple[str, list[nn.Module]]:
    """The longest list of layers by parameters, and its name.

    Raises:
        NotAStack: There is none, or it holds less than half of the parameters outside table and head.
    """
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module)]
    apart = {
        id(parameter)
        for end in (model.get_input_embeddings(), model.get_output_embeddings())
        if end
        for parameter in end.parameters()
    }

    def size(module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters() if id(parameter) not in apart)

    if not lists:
        raise NotAStack("the model has no list of layers")
    path, stack = max(lists, key=lambda entry: size(entry[1]))
    if 2 * size(stack) < size(model):
        raise NotAStack(f"the layers of {path} are less than half of the model")
    return path, list(stack)


@contextmanager
def forwards(replaced: dict[nn.Module, Callable]) -> Iterator[None]:
    """Other `forward` methods for some modules, hooks included."""
    before = {module: module.__dict__.get("forward") for module in replaced}
    for module, forward in replaced.items():
        module.__dict__["forward"] = forward
    try:
        yield
    finally:
        for module, forward in before.items():
            if forward is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = forward
