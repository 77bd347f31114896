"""Random programs: of random operators, whatever legal schedule comes up, of either space."""

from __future__ import annotations

import numpy as np

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.spaces.registry import DEFAULT_KIND, TVM_KIND
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.program import Program
from oneshot_ml2.vta.reasons import Reason
from oneshot_ml2.workload.base import Workload
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.drawn import random_workload

# Schedules of an operator that are looked at, and operators.
_DRAWN, _OPERATORS = 64, 1000


def random_layer(rng: np.random.Generator, chip: Accelerator) -> tuple[Workload, Program]:
    """A random operator and a program of a random legal schedule of it, of either space.

    Raises:
        OneShotError: none of many operators has one.
    """
    for _ in range(_OPERATORS):
        kind = TVM_KIND if rng.integers(6) == 0 else DEFAULT_KIND
        workload = random_workload(rng) if kind == DEFAULT_KIND else _template(rng, chip)
        try:
            space = ScheduleSpace(workload, chip, kind)
            drawn = space.canonical(rng.integers(0, len(space), _DRAWN))
            drawn = drawn[space.validity(drawn) == Reason.VALID]
        except OneShotError:
            continue
        if len(drawn):
            return workload, space.lower(int(drawn[0]))
    raise OneShotError(f"of {_OPERATORS:,} random operators none has a legal schedule on {chip.name}")


def _template(rng: np.random.Generator, chip: Accelerator) -> Workload:
    """A convolution that TVM's template takes: whole blocks."""
    c, k = (chip.block * int(rng.integers(1, 5)) for _ in range(2))
    size, taps = int(rng.integers(4, 16)), int(rng.choice([1, 3]))
    return Conv2d(chip.batch, c, size, size, k, taps, taps, int(rng.integers(1, 3)), taps // 2)
