"""Schedules of the `full` space per second whose validity is told in closed form, on one core and on all.

    python benchmarks/bench_validity.py

Draws schedules of a ResNet-sized layer on the PYNQ accelerator, and checks some of the answers by lowering them.
"""

from __future__ import annotations

import os
import time
from unittest import mock

import numpy as np

from oneshot_ml2.spaces.full import emit, legality
from oneshot_ml2.spaces.full.knobs import schedules
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.nest import make_nest
from oneshot_ml2.workload.conv2d import Conv2d

SCHEDULES, LOWERED = 100_000, 2_000


def main() -> None:
    layer, accelerator = Conv2d(1, 128, 28, 28, 128, 3, 3, padding=1), Accelerator.load("pynq")
    space = ScheduleSpace(layer, accelerator)
    values = space.values(np.random.default_rng(0).integers(0, len(space), SCHEDULES))
    nest = make_nest(layer, accelerator)
    insns, _, tables = emit.work_arrays()
    legality.reasons(nest, values[:100])
    emit.lower_into(nest, schedules(values)[0], insns, tables)

    start = time.perf_counter()
    lowered = [emit.lower_into(nest, schedule, insns, tables)[0] for schedule in schedules(values[:LOWERED])]
    print(f"by lowering                {LOWERED / (time.perf_counter() - start):10,.0f} schedules/s")
    for cores in sorted({1, os.cpu_count() or 1}):
        seconds = np.inf
        with mock.patch("os.cpu_count", return_value=cores):
            for _ in range(3):
                start = time.perf_counter()
                reasons = legality.reasons(nest, values)
                seconds = min(seconds, time.perf_counter() - start)
        print(f"in closed form, {cores:2d} core(s) {SCHEDULES / seconds:10,.0f} schedules/s")
    if not np.array_equal(reasons[:LOWERED], lowered):
        raise RuntimeError("validity and lowering disagree")
    print(f"valid: {(reasons == 0).mean():.1%}")


if __name__ == "__main__":
    main()
