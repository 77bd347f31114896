"""What measurements on a board say about it that its description does not: a few figures beside the networks.

A board with hardware in it that is like the described one differs in what is physical: its memory answers later, a beat
or a request costs more, or something is smaller than promised. So few figures that a few dozen measurements tell them:

- ``latency``: the memory latency, in cycles, that the networks are told in place of the described one; on the HLS
  design, which has none, its rows wait in proportion;
- ``costs``: what is added to log T: a constant, then for each of `COSTS` how much of it. They are at least 0;
- ``limits``: what no schedule may exceed, as hypotheses with their probabilities: of a column of `Boards.TRAFFIC`, up
  or down, and the two measured values between which the limit lies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.recfunctions import structured_to_unstructured
from numpy.typing import NDArray

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.spaces.registry import DEFAULT_KIND, kinds, space_kind

if TYPE_CHECKING:
    from oneshot_ml2.spaces.base import Candidates
    from oneshot_ml2.spaces.protocols import Boards
    from oneshot_ml2.spaces.space import ScheduleSpace

# Raised when figures change their meaning; other versions are refused.
VERSION = 1
PREFIX = "calibration."
# A port that is busy for a share r of the time and gets q requests a cycle: r r, and r q times `_REQUEST` cycles. Both
# with r, as what a port has to do more hides where it has been idle.
COSTS = ("constant", "port", "requests")
_REQUEST = 16.0
# A hypothesis of ``limits``: which limit it is of (those of one add up to at most 1), its probability, the column, +1
# for an upper limit and -1 for a lower one, then the logarithms between which it lies, times that sign.
LIMIT: np.dtype[np.void] = np.dtype(
    [(name, np.float64) for name in ("group", "share", "column", "sign", "low", "high")]
)


@dataclass(frozen=True)
class Calibration:
    """See the module. ``costs``: float (len(COSTS),); ``limits``: `LIMIT` (n,)."""

    latency: int
    costs: NDArray[np.float64]
    limits: NDArray[np.void]

    @classmethod
    def none(cls, latency: int) -> Calibration:
        """That of a board which is as described."""
        return cls(latency, np.zeros(len(COSTS)), np.zeros(0, LIMIT))

    def board(self, space: ScheduleSpace) -> ScheduleSpace:
        """The space as the networks are told it; its schedules have the same indices."""
        chip = space.accelerator
        return replace(space, accelerator=chip.with_memory(self.latency / chip.memory_latency))

    def added(self, terms: NDArray[np.float64]) -> NDArray[np.float64]:
        """What is added to log T, float64 (n,), of `cost_terms` (n, len(COSTS))."""
        return terms @ self.costs

    def risk(self, traffic: NDArray[np.float64]) -> NDArray[np.float64]:
        """Probability that a limit is exceeded, float64 (n,), of `traffic_of` (n, columns)."""
        fine = np.ones(len(traffic))
        for group in np.unique(self.limits["group"]):
            beyond = np.zeros(len(traffic))
            for limit in self.limits[self.limits["group"] == group]:
                x = limit["sign"] * logarithm(traffic[:, int(limit["column"])])
                width = max(limit["high"] - limit["low"], 1e-9)
                beyond += limit["share"] * np.clip((x - limit["low"]) / width, 0.0, 1.0)
            fine *= 1.0 - np.minimum(beyond, 1.0)
        return 1.0 - fine

    def to_tensors(self) -> dict[str, NDArray[np.float32]]:
        """As they stand in a weights file, float32."""
        parts = {
            "latency": np.array([self.latency]),
            "costs": self.costs,
            "limits": structured_to_unstructured(self.limits),
        }
        return {PREFIX + name: np.asarray(value, dtype=np.float32) for name, value in parts.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, NDArray[Any]], kind: str = DEFAULT_KIND) -> Calibration | None:
        """The inverse of :meth:`to_tensors`; None if there is none among the tensors; ``kind``: of the spaces.

        Raises:
            ValueError: tensors of other shapes, or figures that cannot be, as in a space that has no calibrations.
        """
        given = {name.removeprefix(PREFIX): value for name, value in tensors.items() if name.startswith(PREFIX)}
        if not given:
            return None
        if set(given) != {"latency", "costs", "limits"} or given["latency"].shape != (1,):
            raise ValueError("a calibration has a latency, costs and limits")
        costs, table = given["costs"].astype(np.float64), given["limits"]
        if costs.shape != (len(COSTS),) or table.ndim != 2 or table.shape[1] != len(LIMIT.names or ()):
            raise ValueError("costs or limits of another shape")
        limits = limits_of(table)
        latency = int(given["latency"][0])
        if not 1 <= latency <= 65535 or (costs < 0).any() or not _possible(limits, kind):
            raise ValueError("a latency, cost or limit that cannot be")
        return cls(latency, costs, limits)


def limits_of(table: NDArray[Any]) -> NDArray[np.void]:
    """Limits (n,) of their figures in the order of `LIMIT`, (n, 6)."""
    return np.ascontiguousarray(table, dtype=np.float64).view(LIMIT)[:, 0]


def _possible(limits: NDArray[np.void], kind: str) -> bool:
    boards = space_kind(kind).boards
    columns, signs = np.arange(0 if boards is None else len(boards.TRAFFIC)), (-1.0, 1.0)
    return boards is not None and bool(
        np.isin(limits["column"], columns).all() and np.isin(limits["sign"], signs).all()
    )


def boards_of(kind: str) -> Boards:
    """What a calibration asks of a kind of space.

    Raises:
        OneShotError: it has no calibrations.
    """
    boards = space_kind(kind).boards
    if boards is None:
        known = " and ".join(repr(other) for other in kinds() if space_kind(other).boards is not None)
        raise OneShotError(f"there are no calibrations of the schedule space {kind!r}, only of {known}")
    return boards


def logarithm(column: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of sizes, which may be 0."""
    return np.log(np.maximum(column, 1e-3))


def traffic_of(board: ScheduleSpace, given: Candidates) -> NDArray[np.float64]:
    """`Boards.traffic` of candidates of a space, float64 (n, columns)."""
    return boards_of(board.kind).traffic(board, given)


def cost_terms(
    board: ScheduleSpace, given: Candidates, traffic: NDArray[np.float64], cycles: NDArray[np.float64]
) -> NDArray[np.float64]:
    """How much of each of `COSTS` candidates have that take some cycles (n,), float64 (n, len(COSTS))."""
    boards = boards_of(board.kind)
    busy = boards.beats(board, given) / cycles
    requests = _REQUEST * traffic[:, list(boards.REQUESTS)].sum(axis=1) / cycles
    return np.stack([np.ones(len(cycles)), busy * busy, busy * requests], axis=1)
