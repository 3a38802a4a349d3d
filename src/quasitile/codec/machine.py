"""The state machine of trellis-coded quantisation, and what its states make of a row of codes.

State s uses quantiser `s & 1` of two that share the lattice of half steps: number 0 has its even
points, number 1 its odd points and zero. The parity of each code decides the next state. A row runs
from the last column of a tile to its first and begins in state 0, so that every tile decodes alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numba
import numpy as np
from numpy.typing import NDArray

# Parity-check polynomials h1, h0 of Ungerboeck's one-dimensional codes (1982), lowest power in the lowest bit.
POLYNOMIALS = {4: (0o2, 0o5), 8: (0o4, 0o13), 16: (0o4, 0o23), 32: (0o10, 0o45), 64: (0o24, 0o103)}
STATES = (1, *POLYNOMIALS)  # with 1, every code uses quantiser 0: ordinary rounding


@dataclass(frozen=True)
class Machine:
    """The state machine. State s uses quantiser `s & 1`.

    Attributes:
        following: (S, 2) the next state by the parity of a code.
        sources: (S, 2) the two states before a state.
        parities: (S, 2) the parity that leads from each of them.
    """

    following: NDArray[np.int64]
    sources: NDArray[np.int64]
    parities: NDArray[np.int64]


@cache
def machine(num_states: int) -> Machine:
    """The machine of so many states, in observer canonical form.

    Raises:
        ValueError: There is none.
    """
    if num_states not in STATES:
        raise ValueError(f"trellis={num_states} is not one of {', '.join(map(str, STATES))}")
    if num_states == 1:
        return Machine(np.zeros((1, 2), np.int64), np.zeros((1, 2), np.int64), np.array([[0, 1]]))
    following = np.zeros((num_states, 2), np.int64)
    h1, h0 = POLYNOMIALS[num_states]
    for state in range(num_states):
        for parity in (0, 1):
            following[state, parity] = (state ^ (h0 if state & 1 else 0) & ~1 ^ (h1 if parity else 0)) >> 1
    places = [np.argwhere(following == state) for state in range(num_states)]
    sources, parities = (np.array([place[:, axis] for place in places]) for axis in (0, 1))
    return Machine(following, sources, parities)


def codes_of(points: NDArray[np.int32], num_states: int) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Codes and quantisers of lattice points of a tile (P, Q).

    With one state, points are codes. Otherwise point `2 k` is code k of quantiser 0, and
    `2 k - sign(k)` code k of quantiser 1.

    Raises:
        ValueError: They are no path of the machine.
    """
    codes, quantisers = np.zeros(points.shape, np.int32), np.zeros(points.shape, np.uint8)
    if num_states == 1:
        codes[:] = points
    elif not _walk(np.ascontiguousarray(points, np.int32), machine(num_states).following, codes, quantisers):
        raise ValueError(f"these points are no path of the trellis of {num_states} states; search for one before packing")
    return codes, quantisers


def points_of(codes: NDArray[np.int32], quantisers: NDArray[np.uint8], num_states: int) -> NDArray[np.int32]:
    """Lattice points of codes: the inverse of `codes_of`."""
    return codes if num_states == 1 else 2 * codes - quantisers * np.sign(codes)


@numba.njit(nogil=True, cache=True)
def _walk(points, following, codes, quantisers):  # pragma: no cover
    """Fill codes and quantisers; False where a point does not belong to the quantiser of its place."""
    num_rows, num_columns = points.shape
    for i in range(num_rows):
        state = 0
        for j in range(num_columns - 1, -1, -1):
            point, quantiser = points[i, j], state & 1
            twice = point + quantiser * ((point > 0) - (point < 0))
            if twice & 1:
                return False
            codes[i, j], quantisers[i, j] = twice >> 1, quantiser
            state = following[state, (twice >> 1) & 1]
    return True
