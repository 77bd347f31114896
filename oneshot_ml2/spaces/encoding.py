"""Which module gives the features of a schedule space, and which shipped weights know it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import OneShotError

if TYPE_CHECKING:
    from typing_extensions import Self

    from oneshot_ml2.spaces.full.features import Candidates
    from oneshot_ml2.spaces.space import ScheduleSpace

# Kind of space -> (module, name of the shipped weights).
_ENCODINGS = {
    "full": ("oneshot_ml2.spaces.full.features", "default"),
    "autotvm": ("oneshot_ml2.spaces.autotvm.features", "autotvm"),
}


class SpaceEncoder(Protocol):
    """What turns schedules of one space into numbers; see `encode.Encoder`."""

    @classmethod
    def of(cls, space: ScheduleSpace) -> Self: ...

    def candidates(self, indices: NDArray[np.int64], values: NDArray[np.int64]) -> Candidates: ...

    def candidates_at(self, indices: NDArray[np.int64]) -> Candidates: ...

    def encode(self, given: Candidates, out: NDArray[np.float32]) -> None: ...


class Encoding(Protocol):
    """What a module of features offers; see `encode`."""

    FEATURE_VERSION: int
    TASK_FEATURES: tuple[str, ...]
    SCHEDULE_FEATURES: tuple[str, ...]
    FEATURES: tuple[str, ...]
    COUNTED: NDArray[np.int64]
    Encoder: type[SpaceEncoder]

    def task_features(self, space: ScheduleSpace) -> NDArray[np.float32]: ...

    def accelerator_and_workload(self, row: NDArray[np.float32]) -> dict[str, float]: ...

    def all_candidates(self, space: ScheduleSpace, fitting: bool = False) -> Candidates: ...

    def candidates_at(self, space: ScheduleSpace, indices: NDArray[np.int64]) -> Candidates: ...


def kinds() -> tuple[str, ...]:
    """The kinds of spaces that there are features for."""
    return tuple(_ENCODINGS)


def encoding(kind: str) -> Encoding:
    """The features of a kind of space; imported on first use, since it brings numba with it.

    Raises:
        OneShotError: no features are defined for it.
    """
    if kind not in _ENCODINGS:
        raise OneShotError(f"no features of schedule space {kind!r}; there are those of: {', '.join(_ENCODINGS)}")
    return cast(Encoding, importlib.import_module(_ENCODINGS[kind][0]))


def weights_of(kind: str) -> str:
    """The name of the shipped weights that know a kind of space.

    Raises:
        OneShotError: there are none.
    """
    if kind not in _ENCODINGS:
        raise OneShotError(f"no weights know the schedule space {kind!r}; there are some of: {', '.join(_ENCODINGS)}")
    return _ENCODINGS[kind][1]
