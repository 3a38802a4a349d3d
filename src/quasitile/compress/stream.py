"""One stored basis for everything that reads the residual stream.

Unlike a rotation of the model (`order.py`) it changes no hidden state and asks nothing of the architecture: a matrix is
coded along the basis and decoded back (`codec/axes.py`). The embedding's payload stores it, the others refer to that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from quasitile.codec.axes import AXES, KLT, SPANS, Axes, basis_codes, basis_from_codes
from quasitile.compress.calibrate import Moments
from quasitile.compress.order import logits_of, principal_axes, watched_readers
from quasitile.errors import InputError
from quasitile.runtime import Place
from quasitile.settings import Settings


class AxesSettings(Settings):
    """What a matrix' columns are turned to before they are tiled and coded."""

    kind: Literal["none", "stream", *AXES] = Field(  # type: ignore[valid-type]
        default="none",
        description="sorted: by what each adds to the others; klt: a stored basis a matrix; stream: one for all that reads "
        "the residual stream, others sorted; or a transform",
    )
    span: Literal[*SPANS] = Field(default="band", description="each band of columns by itself, or the whole matrix")  # type: ignore[valid-type]


@dataclass(frozen=True)
class StreamAxes:
    """A basis and who is coded along it.

    Attributes:
        source: Name of the matrix that stores it.
        axes: As that matrix stores it.
        readers: Names of all matrices that are coded along it, the source among them.
    """

    source: str
    axes: Axes
    readers: frozenset[str]

    def of(self, name: str) -> Axes | None:
        """The axes of a matrix."""
        if name == self.source:
            return self.axes
        return replace(self.axes, shared=True) if name in self.readers else None


def stream_axes(model: Any, layers: dict[str, Place], moments: dict[str, Moments], probe: Tensor) -> StreamAxes:
    """Principal axes of what the model's matrices read from the residual stream.

    They are those of the sum, over the embedding and all norms, of the second moment of what is read, each divided by its
    trace. Matrices whose own moment is further from diagonal along them than along its own columns are left out.

    Args:
        model: In memory.
        layers: Its matrices that are coded.
        moments: By the name of the matrix.
        probe: (B, T) token ids for a forward pass in which the readers are found.

    Raises:
        InputError: The model has no coded embedding that could store the basis.
    """
    source = next((name for name, place in layers.items() if place.kind == "embedding"), None)
    if source is None:
        raise InputError("axes.kind=stream needs an embedding to store the axes with; set axes.kind to none")
    width = layers[source].weight.shape[1]
    norms = [module for module in model.modules() if _is_norm(module, width)]
    with watched_readers(model, norms) as readings:
        logits_of(model, probe)
    total = _per_trace(moments[source])
    found: set[str] = set()
    for readers in readings.values():
        names = [name for name, place in layers.items() if place.module in readers and place.weight.shape[1] == width]
        if names:
            total += _per_trace(moments[names[0]])
        found.update(names)
    codes = basis_codes(principal_axes(total).T)
    basis = basis_from_codes(codes)
    helped = {name for name in found if _gain(moments[name].inputs, basis) > 0}
    return StreamAxes(source, Axes(KLT, (width,), (codes,)), frozenset(helped | {source}))


def _is_norm(module: nn.Module, width: int) -> bool:
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    return weight is not None and weight.shape == (width,)


def _per_trace(moments: Moments) -> Tensor:
    inputs = moments.inputs.double()
    return inputs / inputs.trace().clamp_min(1e-30)


def _gain(moment: Tensor, basis: Tensor, damping: float = 0.01) -> float:
    """Nats an entry that independent rounding saves along a basis (its rows): half the mean fall of the log of the diagonal."""
    moment = moment.double()
    floor = damping * moment.diagonal().mean().clamp_min(1e-30)
    along = ((basis @ moment) * basis).sum(1)
    return 0.5 * float(((moment.diagonal() + floor).log() - (along + floor).log()).mean())
