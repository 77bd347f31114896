"""Lowering plus timing rate over the valid points of C3, C4, C9 and C10 of the `autotvm` space.

Run: ``python benchmarks/bench_autotvm.py [--accelerator pynq] [--repeat 3] [--json]``.
One core; numba's compile time is left out.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np

from oneshot_ml2.spaces.autotvm import space as autotvm
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.reasons import Reason
from oneshot_ml2.workload.conv2d import Conv2d

LAYERS = {
    "C3": Conv2d(1, 64, 56, 56, 128, 3, 3, stride=2, padding=1),
    "C4": Conv2d(1, 64, 56, 56, 128, 1, 1, stride=2),
    "C9": Conv2d(1, 256, 14, 14, 512, 3, 3, stride=2, padding=1),
    "C10": Conv2d(1, 256, 14, 14, 512, 1, 1, stride=2),
}


def bench(accelerator: Accelerator, repeat: int) -> dict[str, Any]:
    """Best of ``repeat`` passes over all layers, in totals."""
    tasks = []
    for workload in LAYERS.values():
        space = ScheduleSpace(workload, accelerator, "autotvm")
        indices = np.arange(len(space))
        tasks.append((space, indices[space.validity(indices) == Reason.VALID]))
    for space, indices in tasks:
        space.measure(indices[:1])
        list(autotvm.programs(space.workload, accelerator, space.values(indices[:1])))
    lowering, both, cycles, instructions = np.inf, np.inf, 0, 0
    for _ in range(repeat):
        start = time.perf_counter()
        instructions = sum(
            len(insns)
            for space, indices in tasks
            for insns in autotvm.programs(space.workload, accelerator, space.values(indices))
        )
        middle = time.perf_counter()
        cycles = sum(int(space.measure(indices).cycles.sum()) for space, indices in tasks)
        lowering = min(lowering, middle - start)
        both = min(both, time.perf_counter() - middle)
    schedules = sum(len(indices) for _, indices in tasks)
    return {
        "accelerator": accelerator.name,
        "schedules": schedules,
        "instructions": instructions,
        "cycles": cycles,
        "schedules_per_second": schedules / both,
        "cycles_per_second": cycles / both,
        "lowering_ns_per_instruction": lowering / instructions * 1e9,
        "lowering_share": lowering / both,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--accelerator", default="pynq")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    result = bench(Accelerator.load(args.accelerator), args.repeat)
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        for key, value in result.items():
            print(f"{key:28} {value:,.2f}" if isinstance(value, float) else f"{key:28} {value}")


if __name__ == "__main__":
    main()
