"""Schedules, their knobs and results."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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
