"""Tuners: they propose schedules of a space, see what became of them, and learn.

Validity is hidden from them but for the outcome of a trial. A trial is one schedule that a tuner spends, whether it
fails in lowering, at run time or by its result. The product's exact check before a trial is the measurer's
(`measure.Limits.checked`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta.reasons import Reason

if TYPE_CHECKING:
    from oneshot_ml2.network.predictor import Predictor
    from oneshot_ml2.tuning.prior import Evidence


@dataclass(frozen=True)
class Outcomes:
    """What became of trials.

    ``indices``: int64 (n,), of a space; ``reason``: uint8 (n,), `Reason`; ``cycles``: int64 (n,), -1 where invalid.
    """

    indices: NDArray[np.int64]
    reason: NDArray[np.uint8]
    cycles: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def valid(self) -> NDArray[np.bool_]:
        """Bool (n,)."""
        return self.reason == Reason.VALID

    def take(self, part: slice | NDArray[np.bool_]) -> Outcomes:
        """Those of a slice or mask."""
        return Outcomes(self.indices[part], self.reason[part], self.cycles[part])

    @classmethod
    def none(cls) -> Outcomes:
        """No trials."""
        return cls(np.empty(0, np.int64), np.empty(0, np.uint8), np.empty(0, np.int64))

    def __add__(self, other: Outcomes) -> Outcomes:
        return Outcomes(
            np.concatenate([self.indices, other.indices]),
            np.concatenate([self.reason, other.reason]),
            np.concatenate([self.cycles, other.cycles]),
        )


class Tuner(Protocol):
    """What the runner asks; a tuner's choices follow from its seed and the outcomes alone."""

    def propose(self, n: int) -> NDArray[np.int64]:
        """``n`` schedules to measure, int64 (m,), none of them proposed before; none only at the end of the space.

        There may be fewer than ``n``, where a tuner would rather see what becomes of those before it proposes more.

        A tuner that lowers candidates to choose among them adds those that did not lower: they are trials, too.
        """

    def observe(self, results: Outcomes) -> None:
        """Learn from trials, in the order in which they were proposed."""


@dataclass(frozen=True)
class Domain:
    """The schedules that a tuner may propose.

    Attributes:
        space: where they are from.
        indices: int64 (m,), ascending; aliases by the one that stands for them. A position is a place in here.
        known: int8 (m,), what is known of their validity without a trial: 1 lowers, -1 does not, 0 nothing.
        doubted: bool (m,), what is expected not to lower, but not known; None: nothing.
    """

    space: ScheduleSpace
    indices: NDArray[np.int64]
    known: NDArray[np.int8] = field(repr=False)
    doubted: NDArray[np.bool_] | None = field(default=None, repr=False)

    @classmethod
    def of(cls, space: ScheduleSpace, among: NDArray[np.int64] | None = None) -> Domain:
        """All canonical schedules of a space, valid or not, or those ``among`` them, int64 (n,), ascending."""
        indices = space.table() if among is None else among
        return cls(space, indices, np.zeros(len(indices), dtype=np.int8))

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property
    def avoided(self) -> NDArray[np.bool_]:
        """Bool (m,): known or expected not to lower."""
        refuted = self.known < 0
        return refuted if self.doubted is None else refuted | self.doubted

    @cached_property
    def radix(self) -> NDArray[np.int64]:
        """Candidates of each knob, int64 (knobs,)."""
        return np.array([len(knob.values) for knob in self.space.knobs], dtype=np.int64)

    @cached_property
    def weights(self) -> NDArray[np.int64]:
        """What a step of each digit adds to an index, int64 (knobs,)."""
        return np.concatenate(([1], np.cumprod(self.radix)[:-1])).astype(np.int64)

    def positions(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions (n,) of canonical indices (n,); -1 where one is not in the domain."""
        if not len(self.indices):
            return np.full(len(indices), -1, dtype=np.int64)
        place = np.minimum(np.searchsorted(self.indices, indices), len(self.indices) - 1)
        return np.where(self.indices[place] == indices, place, -1)

    def positions_of_raw(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions (n,) of any indices (n,) of the space, aliases included; -1 outside of the domain."""
        return self.positions(self.space.canonical(indices))

    @cached_property
    def position_of_raw(self) -> NDArray[np.int64]:
        """What `positions_of_raw` says of every index of the space, int64 (len(space),): for who asks for many."""
        step = 1 << 18
        size = len(self.space)
        parts = [self.positions_of_raw(np.arange(i, min(i + step, size))) for i in range(0, size, step)]
        return np.concatenate(parts)

    def digits(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Ranks of the knobs' values among their candidates, int64 (n, knobs)."""
        return self.space.digits(self.indices[positions])

    def values(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Knob values, int64 (n, knobs)."""
        return self.space.values(self.indices[positions])

    def one_knob_away(self, position: int) -> NDArray[np.int64]:
        """Positions of all schedules that differ in the value of one knob, int64 (k,), ascending."""
        index, digits = int(self.indices[position]), self.digits(np.array([position]))[0]
        raw = [
            index + (other - int(digits[j])) * int(self.weights[j])
            for j in range(len(self.radix))
            for other in range(int(self.radix[j]))
            if other != digits[j]
        ]
        if not raw:
            return np.empty(0, dtype=np.int64)
        found = np.unique(self.positions_of_raw(np.array(raw, dtype=np.int64)))
        return found[(found >= 0) & (found != position)]

    def neighbours(self, position: int) -> NDArray[np.int64]:
        """Positions one step away in one knob's ordered list, int64 (k,); see `ScheduleSpace.neighbours`."""
        found = np.unique(self.positions_of_raw(self.space.neighbours(int(self.indices[position]))))
        return found[(found >= 0) & (found != position)]


def draw_unseen(rng: np.random.Generator, seen: NDArray[np.bool_], n: int) -> NDArray[np.int64]:
    """``n`` different positions drawn uniformly from those not ``seen``, bool (m,); fewer if there are fewer."""
    left = np.flatnonzero(~seen)
    return rng.choice(left, size=min(n, len(left)), replace=False).astype(np.int64)


TunerFactory = Callable[[Domain], Tuner]


@dataclass(frozen=True)
class Given:
    """What a tuner is made from.

    Attributes:
        network: what those that need one start from; None: the shipped one of the space's kind.
        closed_form: these may leave out what the bounds and the SRAM sizes rule out; off where validity is hidden.
        evidence: what those that share it learn of the board together with the tuners of other layers; None: alone.
    """

    domain: Domain
    seed: int = 0
    network: Predictor | None = None
    closed_form: bool = False
    evidence: Evidence | None = None


@dataclass(frozen=True)
class TunerKind:
    """A tuner by name; a module of this folder that holds one has registered it.

    Attributes:
        help: what it does, for listings.
        needs_network: it starts from a network that knows the space.
        needs_xgboost: it learns by trees.
        shares_evidence: it takes `Given.evidence`.
    """

    name: str
    help: str
    make: Callable[[Given], Tuner]
    needs_network: bool = False
    needs_xgboost: bool = False
    shares_evidence: bool = False


@dataclass(frozen=True)
class Initialization:
    """What may come before any tuner, by a prefix of its name; registered as a `TunerKind` is.

    ``make``: of the whole domain, how to make the tuner behind it, and the seed.
    """

    prefix: str
    help: str
    make: Callable[[Domain, TunerFactory, int], Tuner]
