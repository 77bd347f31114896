"""Schedules, their knobs and results."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from typing_extensions import Self


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
class FeatureSet:
    """The features that weights of a version see: names of a task's and of a schedule's, in order.

    ``beside``: the feature of a schedule, log2 of some cycles over LB, whose cycles they predict latencies beside;
    empty: beside LB itself.
    """

    version: int
    task: tuple[str, ...]
    schedule: tuple[str, ...]
    beside: str = ""

    @property
    def all(self) -> tuple[str, ...]:
        """Those of the task, then those of the schedule."""
        return self.task + self.schedule


@dataclass(frozen=True)
class BatchResult:
    """Outcome of lowering and timing many schedules.

    ``reason``: uint8 (n,), `Reason`; ``cycles``: int64 (n,), -1 where invalid;
    ``busy``: int64 (n, 3), busy cycles of load, compute and store; ``boards``: which one of several measured each, ""
    for none; empty where there is but one device.
    """

    reason: NDArray[np.uint8]
    cycles: NDArray[np.int64]
    busy: NDArray[np.int64]
    boards: tuple[str, ...] = ()

    @classmethod
    def untimed(cls, reason: NDArray[np.uint8]) -> BatchResult:
        """Schedules of which only the ``reason`` (n,) is known so far; for filling in, and what stays so is invalid."""
        n = len(reason)
        return cls(reason, np.full(n, -1, dtype=np.int64), np.zeros((n, 3), dtype=np.int64))


@dataclass(frozen=True)
class Effort:
    """What n schedules ask of an accelerator in closed form, float64 (n,) each.

    ``beats``: of the memory port, instructions included; ``requests`` to memory, and the DRAM ``pages`` of `DRAM_PAGE`
    bytes that they open; ``instructions``; cycles of the ALU, ``alu``, and of the compute module, ``compute``.
    """

    beats: NDArray[np.float64]
    requests: NDArray[np.float64]
    pages: NDArray[np.float64]
    instructions: NDArray[np.float64]
    alu: NDArray[np.float64]
    compute: NDArray[np.float64]


# A usual size; a board's own is not described.
DRAM_PAGE = 2048


def opened_pages(
    requests: NDArray[np.float64], size: NDArray[np.float64], stride: float | NDArray[np.float64]
) -> NDArray[np.float64]:
    """DRAM pages that requests (n,) of ``size`` (n,) bytes each open, of which each begins ``stride`` bytes behind the
    one before: as many as those stretches, gaps included, begin, and as all lie in at most."""
    within = 1.0 + size / DRAM_PAGE
    return requests * np.where(size < stride, np.minimum(stride / DRAM_PAGE, within), within)


@dataclass(frozen=True)
class Candidates(ABC):
    """Schedules of a space and what closed forms say of them; each space names the columns of its ``summary``.

    ``indices``: int64 (n,); ``values``: their canonical knob values, int64 (n, knobs); ``summary``: float64
    (n, columns).
    """

    indices: NDArray[np.int64]
    values: NDArray[np.int64]
    summary: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.indices)

    @property
    @abstractmethod
    def bound(self) -> NDArray[np.float64]:
        """Cycles that latencies are predicted beside, float64 (n,); proven lower bounds if `SpaceKind.proven`."""

    @property
    @abstractmethod
    def estimate(self) -> NDArray[np.float64]:
        """Cycles in closed form, with all that is known in closed form, float64 (n,)."""

    @property
    @abstractmethod
    def reads(self) -> NDArray[np.float64]:
        """Inputs and weights that are read, float64 (n,), in any unit that is the same for all schedules of a space."""

    @property
    @abstractmethod
    def roofline(self) -> NDArray[np.float64]:
        """Cycles of computing or of reading, whichever are more, float64 (n,)."""

    def take(self, places: NDArray[np.int64] | slice) -> Self:
        """Those at some positions."""
        return type(self)(self.indices[places], self.values[places], self.summary[places])
