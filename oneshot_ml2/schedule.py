"""Schedules and their spaces: knobs, mixed-radix indices, aliases, and how validity is told.

A space is a product of knobs. Two spaces exist, each with a backend module that knows its knobs and
lowers its schedules: ``full`` (`vta.full`) and ``autotvm`` (`vta.autotvm`).
"""

from __future__ import annotations

import enum
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.errors import OneShotError
from oneshot_ml2.reading import shown

if TYPE_CHECKING:
    from oneshot_ml2.accelerator import Accelerator
    from oneshot_ml2.vta.program import Program
    from oneshot_ml2.workload import Workload

REASONS_VERSION = 1


class Reason(enum.IntEnum):
    """Why a schedule is invalid; ``VALID`` is 0. The numbers are stored in corpora: append only."""

    VALID = 0
    PAD_INNERMOST = 1
    DMA_PATTERN = 2
    THREAD_SPLIT = 3
    ACC_HAZARD = 4
    UOP_SIGNATURE = 5
    SRAM_OVERFLOW = 6
    UOP_OVERFLOW = 7
    FIELD_OVERFLOW = 8
    INSTRUCTION_OVERFLOW = 9
    TOKEN_OVERFLOW = 10
    DEADLOCK = 11
    ALU_HAZARD = 12
    TIMEOUT = 13
    WRONG_RESULT = 14
    DEVICE_ERROR = 15

    @property
    def label(self) -> str:
        """The name that files and tables carry, e.g. ``sram_overflow``."""
        return self.name.lower()


# Failures of the device rather than of the program: worth another try.
TRANSIENT = (Reason.TIMEOUT, Reason.DEVICE_ERROR)


class InvalidSchedule(OneShotError, ValueError):
    """A schedule that does not lower; ``reason`` says why."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"invalid schedule: {reason.label}" + (f" ({detail})" if detail else ""))
        self.reason = reason


_SPLIT = "a split into layers of fewer images, pixels or channels"
# What makes schedules legal that are not for a reason.
_HELP = {
    Reason.DMA_PATTERN: "fewer pads",
    Reason.ACC_HAZARD: "more output channels or pixels",
    Reason.SRAM_OVERFLOW: "larger SRAMs or a smaller kernel",
    Reason.UOP_OVERFLOW: "a smaller kernel",
    Reason.FIELD_OVERFLOW: "fewer pixels or smaller strides",
    Reason.INSTRUCTION_OVERFLOW: _SPLIT,
    Reason.TOKEN_OVERFLOW: _SPLIT,
}


class NoSchedule(InvalidSchedule):
    """No schedule of a workload on an accelerator is legal; ``reason`` says why most of them are not."""

    def __init__(self, workload: Workload, accelerator: Accelerator, reason: Reason, why: str) -> None:
        OneShotError.__init__(self, f"no legal schedule for {workload} on {accelerator.name}: {why}")
        self.reason = reason

    @classmethod
    def counted(cls, workload: Workload, accelerator: Accelerator, counts: Mapping[Reason, int]) -> NoSchedule:
        """The error that tells of how many schedules (at least one) each reason is."""
        found = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        reasons = ", ".join(f"{count:,} {reason.label}" for reason, count in found)
        helps = list(dict.fromkeys(_HELP[reason] for reason, _ in found if reason in _HELP))[:2]
        text = f"of {sum(counts.values()):,} schedules {reasons}"
        if helps:
            text += f"; what helps: {', or '.join(helps)}"
        return cls(workload, accelerator, found[0][0], text)


@dataclass(frozen=True)
class Knob:
    """One choice of a schedule: its name and its candidate values in order."""

    name: str
    values: tuple[int, ...]


@dataclass(frozen=True)
class Schedule:
    """One value per knob of the space ``kind``."""

    kind: str
    knobs: tuple[tuple[str, int], ...]

    def __getitem__(self, name: str) -> int:
        return dict(self.knobs)[name]

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.knobs)


@dataclass(frozen=True)
class BatchResult:
    """Outcome of lowering and timing many schedules.

    ``reason``: uint8 (n,), `Reason`; ``cycles``: int64 (n,), -1 where invalid;
    ``busy``: int64 (n, 3), busy cycles of load, compute and store.
    """

    reason: NDArray[np.uint8]
    cycles: NDArray[np.int64]
    busy: NDArray[np.int64]


class Backend(Protocol):
    """What a space's module offers; ``values`` is int64 (n, number of knobs), knob values in order."""

    SPACE_VERSION: int

    def knobs(self, workload: Workload, accelerator: Accelerator) -> tuple[Knob, ...]: ...

    def canonical(
        self, workload: Workload, accelerator: Accelerator, values: NDArray[np.int64]
    ) -> NDArray[np.int64]: ...

    def validity(
        self, workload: Workload, accelerator: Accelerator, values: NDArray[np.int64]
    ) -> NDArray[np.uint8]: ...

    def estimate(
        self, workload: Workload, accelerator: Accelerator, values: NDArray[np.int64]
    ) -> NDArray[np.float64]: ...

    def lower(self, workload: Workload, accelerator: Accelerator, values: NDArray[np.int64]) -> Program: ...

    def measure_batch(self, workload: Workload, accelerator: Accelerator, values: NDArray[np.int64]) -> BatchResult: ...


_BACKENDS = {"full": "oneshot_ml2.vta.full", "autotvm": "oneshot_ml2.vta.autotvm"}


def backend(kind: str) -> Backend:
    """The module behind a space; imported on first use, since it brings numba with it."""
    if kind not in _BACKENDS:
        raise OneShotError(f"no schedule space {kind!r}; there are: {', '.join(_BACKENDS)}")
    return cast(Backend, importlib.import_module(_BACKENDS[kind]))


@dataclass(frozen=True)
class ScheduleSpace:
    """All schedules of a workload on an accelerator, valid or not.

    The index is mixed radix over the knobs' digits, first knob fastest.
    """

    workload: Workload
    accelerator: Accelerator
    kind: str = "full"

    @cached_property
    def knobs(self) -> tuple[Knob, ...]:
        return backend(self.kind).knobs(self.workload, self.accelerator)

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
        values = backend(self.kind).canonical(self.workload, self.accelerator, self.values(indices))
        return self.index(values)

    @cached_property
    def _table(self) -> NDArray[np.int64]:
        found = []
        step = 1 << 18
        for begin in range(0, len(self), step):
            found.append(np.unique(self.canonical(np.arange(begin, min(begin + step, len(self))))))
        return np.unique(np.concatenate(found))

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
        """Closed-form validity: `Reason` of each schedule, uint8 (n,). Agrees with :meth:`lower` exactly."""
        return backend(self.kind).validity(self.workload, self.accelerator, self.values(indices))

    def estimate(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        """Closed-form guess of the cycles of each schedule, float64 (n,); infinite where capacity rules it out."""
        return backend(self.kind).estimate(self.workload, self.accelerator, self.values(indices))

    def lower(self, schedule: Schedule | int) -> Program:
        """The program of a schedule.

        Raises:
            InvalidSchedule: the schedule does not lower.
        """
        index = schedule if isinstance(schedule, int | np.integer) else self.index_of(schedule)
        return backend(self.kind).lower(self.workload, self.accelerator, self.values(np.array([index]))[0])

    def measure(self, indices: NDArray[np.int64]) -> BatchResult:
        """Lower and time schedules on the simulator in one batch."""
        return backend(self.kind).measure_batch(self.workload, self.accelerator, self.values(indices))

    def __getstate__(self) -> dict[str, Any]:
        return {"workload": self.workload, "accelerator": self.accelerator, "kind": self.kind}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
