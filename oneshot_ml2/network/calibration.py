"""What measurements on a board say about it that its description does not: a few figures beside the networks.

A board with hardware in it that is like the described one differs in what is physical: its memory answers later, a
beat, a request or an instruction costs more, or something is smaller than promised. So few figures that a few dozen
measurements tell them:

- ``latency``: the memory latency, in cycles, that the networks are told in place of the described one; on the HLS
  design, which has none, its rows wait in proportion;
- ``rates``: on the HLS design, what its other rates are told to be, as multiples of the described ones, by `RATES`;
- ``costs``: what is added to log T: a constant, then for each of `COSTS` how much of it. They are at least 0;
- ``limits``: what no schedule may exceed, as hypotheses with their probabilities: of a column of `Boards.TRAFFIC`, up
  or down, and the two measured values between which the limit lies; ``pairs``: of two columns, exceeded together;
- ``forest``: boosted trees that correct log T by what these figures are of; None: there are none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.recfunctions import structured_to_unstructured
from numpy.typing import NDArray

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.network.forest import Forest
from oneshot_ml2.spaces.registry import DEFAULT_KIND, kinds, space_kind

if TYPE_CHECKING:
    from oneshot_ml2.spaces.base import Candidates
    from oneshot_ml2.spaces.protocols import Boards
    from oneshot_ml2.spaces.space import ScheduleSpace

# Raised when figures change their meaning; other versions are refused.
VERSION = 2
PREFIX = "calibration."
_FOREST = "forest."
# A port that is busy for a share r of the time and gets q requests a cycle: r r, and r q times `_EVERY` cycles, the
# same of DRAM pages. All with r, as what a port has to do more hides where it has been idle. Then instructions, which
# hide behind nothing, and the ALU's share of the time with that of the compute module.
COSTS = ("constant", "port", "requests", "pages", "instructions", "alu")
_EVERY = 16.0
# What is told of the HLS design's rates together: fields of `HlsTiming`.
RATES: dict[str, tuple[str, ...]] = {
    "weight beat": ("wgt_beat",),
    "ALU operation": ("alu_op",),
    "starts and pads": ("load_start", "compute_start", "store_start", "pad"),
}
AS_DESCRIBED = (1.0,) * len(RATES)
# A hypothesis of ``limits``: which limit it is of (those of one add up to at most 1), its probability, the column, +1
# for an upper limit and -1 for a lower one, then the logarithms between which it lies, times that sign. One of
# ``pairs`` has two of these.
_SIDE = ("column", "sign", "low", "high")
LIMIT: np.dtype[np.void] = np.dtype([(name, np.float64) for name in ("group", "share", *_SIDE)])
PAIR: np.dtype[np.void] = np.dtype(
    [(name, np.float64) for name in ("group", "share", *_SIDE, *(f"second_{name}" for name in _SIDE))]
)


@dataclass(frozen=True)
class Calibration:
    """See the module. ``costs``: float (len(COSTS),); ``limits``: `LIMIT` (n,); ``pairs``: `PAIR` (m,)."""

    latency: int
    costs: NDArray[np.float64]
    limits: NDArray[np.void]
    pairs: NDArray[np.void] = field(default_factory=lambda: np.zeros(0, PAIR))
    rates: tuple[float, ...] = AS_DESCRIBED
    forest: Forest | None = None

    @classmethod
    def none(cls, latency: int) -> Calibration:
        """That of a board which is as described."""
        return cls(latency, np.zeros(len(COSTS)), np.zeros(0, LIMIT))

    def board(self, space: ScheduleSpace) -> ScheduleSpace:
        """The space as the networks are told it; its schedules have the same indices."""
        return told(space, self.latency, self.rates)

    def added(self, given: Given) -> NDArray[np.float64]:
        """What is added to log T, float64 (n,)."""
        found = given.terms @ self.costs
        return found if self.forest is None else found + self.forest.predict(given.inputs)

    def risk(self, traffic: NDArray[np.float64]) -> NDArray[np.float64]:
        """Probability that a limit is exceeded, float64 (n,), of `traffic_of` (n, columns)."""
        fine, logs = np.ones(len(traffic)), logarithm(traffic)
        for group in np.unique(np.concatenate([self.limits["group"], self.pairs["group"]])):
            beyond = np.zeros(len(traffic))
            for limit in self.limits[self.limits["group"] == group]:
                beyond += limit["share"] * _beyond(logs, limit)
            for pair in self.pairs[self.pairs["group"] == group]:
                beyond += pair["share"] * _beyond(logs, pair) * _beyond(logs, pair, "second_")
            fine *= 1.0 - np.minimum(beyond, 1.0)
        return 1.0 - fine

    def to_tensors(self) -> dict[str, NDArray[np.float32]]:
        """As they stand in a weights file, float32."""
        parts: dict[str, NDArray[Any]] = {
            "latency": np.array([self.latency]),
            "rates": np.array(self.rates),
            "costs": self.costs,
            "limits": structured_to_unstructured(self.limits),
            "pairs": structured_to_unstructured(self.pairs),
        }
        if self.forest is not None:
            parts |= {_FOREST + name: tensor for name, tensor in self.forest.to_tensors().items()}
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
        trees = {name.removeprefix(_FOREST): given.pop(name) for name in list(given) if name.startswith(_FOREST)}
        names = {"latency", "rates", "costs", "limits", "pairs"}
        if set(given) != names or given["latency"].shape != (1,) or given["rates"].shape != (len(RATES),):
            raise ValueError("a calibration has a latency, rates, costs, limits and pairs of them")
        costs, tables = given["costs"].astype(np.float64), (given["limits"], given["pairs"])
        if costs.shape != (len(COSTS),) or any(
            table.ndim != 2 or table.shape[1] != len(of.names or ()) for table, of in zip(tables, (LIMIT, PAIR))
        ):
            raise ValueError("costs or limits of another shape")
        limits, pairs = limits_of(given["limits"]), pairs_of(given["pairs"])
        latency, rates = int(given["latency"][0]), tuple(given["rates"].astype(np.float64).tolist())
        columns = _columns(kind)
        if not (1 <= latency <= 65535 and (costs >= 0).all() and all(0.0 < rate < 1e3 for rate in rates)):
            raise ValueError("a latency, rate or cost that cannot be")
        sides = ((limits, ""), (pairs, ""), (pairs, "second_"))
        if not all(_possible(table, columns, prefix) for table, prefix in sides):
            raise ValueError("a limit that cannot be")
        forest = Forest.from_tensors(trees, len(COSTS) - 1 + columns) if trees else None
        return cls(latency, costs, limits, pairs, rates, forest)


@dataclass(frozen=True)
class Given:
    """What corrections are made of, of n schedules: ``terms`` (n, len(COSTS)), and ``traffic`` (n, columns)."""

    terms: NDArray[np.float64]
    traffic: NDArray[np.float64]

    @property
    def inputs(self) -> NDArray[np.float64]:
        """What trees see, float64 (n, len(COSTS) - 1 + columns): the terms but the constant, logarithms of traffic."""
        return np.concatenate([self.terms[:, 1:], logarithm(self.traffic)], axis=1)


def told(space: ScheduleSpace, latency: int, rates: tuple[float, ...]) -> ScheduleSpace:
    """A space whose accelerator is described with another memory latency, and other `RATES` of the HLS design."""
    chip = space.accelerator.with_memory(latency / space.accelerator.memory_latency)
    if chip.hls is not None and rates != AS_DESCRIBED:
        factors = {name: rate for rate, names in zip(rates, RATES.values(), strict=True) for name in names}
        chip = replace(chip, hls=chip.hls.scaled(factors))
    return replace(space, accelerator=chip)


def limits_of(table: NDArray[Any]) -> NDArray[np.void]:
    """Limits (n,) of their figures in the order of `LIMIT`, (n, 6)."""
    return np.ascontiguousarray(table, dtype=np.float64).view(LIMIT)[:, 0]


def pairs_of(table: NDArray[Any]) -> NDArray[np.void]:
    """Pairs (n,) of their figures in the order of `PAIR`, (n, 10)."""
    return np.ascontiguousarray(table, dtype=np.float64).view(PAIR)[:, 0]


def _beyond(logs: NDArray[np.float64], limit: np.void, prefix: str = "") -> NDArray[np.float64]:
    """How far rows (n,) of logarithms of traffic (n, columns) are beyond one side of a limit, 0 to 1."""
    column, sign, low, high = (limit[prefix + name] for name in _SIDE)
    return np.clip((sign * logs[:, int(column)] - low) / max(high - low, 1e-9), 0.0, 1.0)


def _columns(kind: str) -> int:
    boards = space_kind(kind).boards
    return 0 if boards is None else len(boards.TRAFFIC)


def _possible(limits: NDArray[np.void], columns: int, prefix: str) -> bool:
    known, signs = np.arange(columns), (-1.0, 1.0)
    return columns > 0 and bool(
        np.isin(limits[prefix + "column"], known).all() and np.isin(limits[prefix + "sign"], signs).all()
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


def given_of(
    board: ScheduleSpace, candidates: Candidates, traffic: NDArray[np.float64], cycles: NDArray[np.float64]
) -> Given:
    """What corrections are made of, of candidates with their traffic (n, columns) that take some cycles (n,)."""
    effort = boards_of(board.kind).effort(board, candidates, traffic)
    busy, often = effort.beats / cycles, _EVERY / cycles
    terms = (
        np.ones(len(cycles)),
        busy * busy,
        busy * often * effort.requests,
        busy * often * effort.pages,
        often * effort.instructions,
        effort.alu / cycles * (effort.compute / cycles),
    )
    return Given(np.stack(terms, axis=1), traffic)
