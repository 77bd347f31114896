"""A few tasks of all kinds, and programs of theirs."""

from __future__ import annotations

import numpy as np

from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.program import Program
from oneshot_ml2.vta.reasons import Reason
from oneshot_ml2.workload.base import Workload
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.epilogue import Epilogue
from oneshot_ml2.workload.max_pool2d import MaxPool2d

TASKS = [
    (Conv2d(1, 32, 10, 10, 48, 3, 3, padding=1), "full", "pynq"),
    (Conv2d(1, 32, 10, 10, 48, 3, 3, padding=1, epilogue=Epilogue(bias=True, residual_shift=2)), "full", "b8"),
    (Conv2d(1, 64, 14, 14, 32, 1, 1, stride=2), "full", "b2x16"),
    (MaxPool2d(1, 32, 12, 12, 3, 3, 2, 1), "full", "pynq"),
    (Conv2d(1, 32, 10, 10, 64, 3, 3, padding=1), "autotvm", "pynq"),
]


def some_programs(workload: Workload, kind: str, chip: str, n: int = 6) -> list[Program]:
    space = ScheduleSpace(workload, Accelerator.load(chip), kind)
    indices = space.sample(np.random.default_rng(7), 600)
    indices = indices[space.validity(indices) == Reason.VALID]
    assert len(indices) >= n
    return [space.lower(int(index)) for index in indices[:: len(indices) // n][:n]]
