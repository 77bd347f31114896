"""All schedules of a workload on an accelerator: mixed-radix indices over the knobs, and aliases."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.common.reading import shown
from oneshot_ml2.spaces.base import Schedule
from oneshot_ml2.spaces.registry import DEFAULT_KIND, SpaceKind, board_rule, space_kind
from oneshot_ml2.vta.reasons import InvalidSchedule, Reason

if TYPE_CHECKING:
    from oneshot_ml2.spaces.base import BatchResult, Knob
    from oneshot_ml2.vta.accelerator import Accelerator
    from oneshot_ml2.vta.program import Insns, Program
    from oneshot_ml2.workload.base import Workload


def short_schedule(schedule: Schedule) -> str:
    """A schedule, short enough for a column of a table.

    Raises:
        OneShotError: of a kind of space that there is not.
    """
    return space_kind(schedule.kind).schedules.short(schedule)


def scan(space: ScheduleSpace) -> NDArray[np.int64]:
    """Indices of all canonical schedules of any space, int64 (m,), ascending, by looking at every schedule."""
    found, step = [], 1 << 18
    for begin in range(0, len(space), step):
        found.append(np.unique(space.canonical(np.arange(begin, min(begin + step, len(space))))))
    return np.unique(np.concatenate(found))


@dataclass(frozen=True)
class ScheduleSpace:
    """All schedules of a workload on an accelerator, valid or not.

    The index is mixed radix over the knobs' digits, first knob fastest.
    """

    workload: Workload
    accelerator: Accelerator
    kind: str = DEFAULT_KIND

    @cached_property
    def record(self) -> SpaceKind:
        """What this kind of space brings.

        Raises:
            OneShotError: no such kind.
        """
        return space_kind(self.kind)

    @cached_property
    def knobs(self) -> tuple[Knob, ...]:
        return self.record.schedules.knobs(self.workload, self.accelerator)

    @cached_property
    def _radix(self) -> NDArray[np.int64]:
        return np.array([len(knob.values) for knob in self.knobs], dtype=np.int64)

    @cached_property
    def _weights(self) -> NDArray[np.int64]:
        return np.concatenate(([1], np.cumprod(self._radix)[:-1])).astype(np.int64)

    def __len__(self) -> int:
        return int(np.prod(self._radix))

    def digits(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Indices (n,) to digits (n, knobs): the position of each knob's value among its candidates."""
        indices = np.asarray(indices, dtype=np.int64)
        if indices.size and (indices.min() < 0 or indices.max() >= len(self)):
            raise IndexError(f"schedule index out of range: this space has {len(self)} schedules")
        return (indices[:, None] // self._weights) % self._radix

    def values(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Indices (n,) to knob values, int64 (n, knobs)."""
        digits = self.digits(indices)
        columns = [np.array(knob.values, dtype=np.int64)[digits[:, j]] for j, knob in enumerate(self.knobs)]
        return np.stack(columns, axis=1)

    def index(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """Knob values (n, knobs) to indices (n,).

        Raises:
            OneShotError: a value that is no candidate of its knob.
        """
        values = np.asarray(values, dtype=np.int64)
        total = np.zeros(len(values), dtype=np.int64)
        for j, knob in enumerate(self.knobs):
            order = np.argsort(knob.values, kind="stable")
            candidates = np.array(knob.values, dtype=np.int64)[order]
            place = np.minimum(np.searchsorted(candidates, values[:, j]), len(candidates) - 1)
            if (candidates[place] != values[:, j]).any():
                raise OneShotError(f"knob {knob.name}: value not among its candidates {list(knob.values)}")
            total += order[place] * self._weights[j]
        return total

    def canonical(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """The canonical index (n,) of each schedule: aliases lower to the same program."""
        values = self.record.schedules.canonical(self.workload, self.accelerator, self.values(indices))
        return self.index(values)

    @cached_property
    def _table(self) -> NDArray[np.int64]:
        return self.record.schedules.table(self)

    def table(self) -> NDArray[np.int64]:
        """Indices of all canonical schedules, int64 (m,), ascending."""
        return self._table

    def schedule(self, index: int) -> Schedule:
        """The schedule at an index."""
        row = self.values(np.array([index]))[0]
        return Schedule(self.kind, tuple((knob.name, int(v)) for knob, v in zip(self.knobs, row, strict=True)))

    def index_of(self, schedule: Schedule) -> int:
        """The index of a schedule of this space."""
        given = dict(schedule.knobs)
        names = [knob.name for knob in self.knobs]
        if schedule.kind != self.kind or set(given) != set(names):
            raise OneShotError(f"not a schedule of this space; its knobs are {', '.join(names)}")
        for name, value in given.items():
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or abs(int(value)) >= 1 << 63:
                raise OneShotError(f"knob {name} is {shown(value)}; allowed: one of its candidates, whole numbers")
        return int(self.index(np.array([[given[name] for name in names]], dtype=np.int64))[0])

    def neighbours(self, index: int) -> NDArray[np.int64]:
        """Schedules one step away in one knob's ordered list (Rieber et al., Algorithm 1), int64 (m,)."""
        digits = self.digits(np.array([index]))[0]
        steps = [
            index + step * int(self._weights[j])
            for j in range(len(digits))
            for step in (-1, 1)
            if 0 <= digits[j] + step < self._radix[j]
        ]
        return np.array(steps, dtype=np.int64)

    def sample(self, rng: np.random.Generator, n: int) -> NDArray[np.int64]:
        """``n`` different canonical schedules (all of them if there are fewer), drawn uniformly, int64."""
        table = self.table()
        return np.sort(rng.choice(table, size=min(n, len(table)), replace=False))

    def validity(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Closed-form validity: `Reason` of each schedule, uint8 (n,). Agrees with :meth:`lower` exactly.

        For a board that cannot do everything, valid schedules are lowered: WRONG_RESULT where it cannot run them.
        """
        values = self.values(indices)
        found = self.record.schedules.validity(self.workload, self.accelerator, values)
        self._keep_to_board(values, found)
        return found

    def _keep_to_board(self, values: NDArray[np.int64], reasons: NDArray[np.uint8]) -> None:
        """Mark valid ones among knob values (n, knobs) in ``reasons`` (n,) that the accelerator's board cannot run."""
        board = self.accelerator.board
        if board is None or not board.restricts:
            return
        valid = np.flatnonzero(reasons == Reason.VALID)
        programs = self.record.schedules.programs(self.workload, self.accelerator, values[valid])
        for place, insns in zip(valid.tolist(), programs, strict=True):
            if not board_rule()(board, insns):
                reasons[place] = Reason.WRONG_RESULT

    def estimate(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        """Closed-form guess of the cycles of each schedule, float64 (n,); infinite where capacity rules it out."""
        return self.record.schedules.estimate(self.workload, self.accelerator, self.values(indices))

    def bound(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        """The proven lower bound LB of the cycles of each schedule, float64 (n,), on all cores.

        Raises:
            OneShotError: a space without proven bounds.
        """
        if not self.record.proven:
            raise OneShotError(f"the bounds of the schedule space {self.kind!r} are not proven")
        return self.record.features.candidates_at(self, indices).bound

    def lower(self, schedule: Schedule | int) -> Program:
        """The program of a schedule.

        Raises:
            InvalidSchedule: the schedule does not lower.
        """
        index = schedule if isinstance(schedule, int | np.integer) else self.index_of(schedule)
        program = self.record.schedules.lower(self.workload, self.accelerator, self.values(np.array([index]))[0])
        board = self.accelerator.board
        if board is not None and not board_rule()(board, program.insns):
            raise InvalidSchedule(Reason.WRONG_RESULT, f"the board of {self.accelerator.name} cannot do {board.about}")
        return program

    def programs(self, indices: NDArray[np.int64]) -> Iterator[Insns]:
        """The instructions (m,) of schedules (n,), each a view that the next one overwrites.

        Raises:
            InvalidSchedule: a schedule does not lower.
        """
        return self.record.schedules.programs(self.workload, self.accelerator, self.values(indices))

    def measure(self, indices: NDArray[np.int64]) -> BatchResult:
        """Lower and time schedules on the simulator in one batch."""
        values = self.values(indices)
        found = self.record.schedules.measure_batch(self.workload, self.accelerator, values)
        self._keep_to_board(values, found.reason)
        refused = found.reason == Reason.WRONG_RESULT
        found.cycles[refused], found.busy[refused] = -1, 0
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {"workload": self.workload, "accelerator": self.accelerator, "kind": self.kind}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
