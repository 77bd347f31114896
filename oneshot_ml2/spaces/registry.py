"""The schedule spaces by kind, and what each one's module offers."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import OneShotError

if TYPE_CHECKING:
    from oneshot_ml2.spaces.base import BatchResult, Knob
    from oneshot_ml2.vta.accelerator import Accelerator
    from oneshot_ml2.vta.program import Program
    from oneshot_ml2.workload.registry import Workload


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


_BACKENDS = {"full": "oneshot_ml2.spaces.full.space", "autotvm": "oneshot_ml2.spaces.autotvm.space"}


def backend(kind: str) -> Backend:
    """The module behind a space; imported on first use, since it brings numba with it."""
    if kind not in _BACKENDS:
        raise OneShotError(f"no schedule space {kind!r}; there are: {', '.join(_BACKENDS)}")
    return cast(Backend, importlib.import_module(_BACKENDS[kind]))
