"""The best of the `full` space on ResNet-18's layers, against the engine bound and the best of `autotvm` (pynq).

python benchmarks/bench_full_space.py
"""

from __future__ import annotations

import numpy as np

from oneshot_ml2.accelerator import Accelerator
from oneshot_ml2.optimum import search
from oneshot_ml2.schedule import ScheduleSpace
from oneshot_ml2.vta.bound import engine_bound
from oneshot_ml2.workload import Conv2d

LAYERS = {
    "C2": Conv2d(1, 64, 56, 56, 64, 3, 3, padding=1),
    "C2p": Conv2d(1, 64, 56, 56, 64, 1, 1),
    "C3": Conv2d(1, 64, 56, 56, 128, 3, 3, stride=2, padding=1),
    "C4": Conv2d(1, 64, 56, 56, 128, 1, 1, stride=2),
    "C5": Conv2d(1, 128, 28, 28, 128, 3, 3, padding=1),
    "C6": Conv2d(1, 128, 28, 28, 256, 3, 3, stride=2, padding=1),
    "C7": Conv2d(1, 128, 28, 28, 256, 1, 1, stride=2),
    "C8": Conv2d(1, 256, 14, 14, 256, 3, 3, padding=1),
    "C9": Conv2d(1, 256, 14, 14, 512, 3, 3, stride=2, padding=1),
    "C10": Conv2d(1, 256, 14, 14, 512, 1, 1, stride=2),
    "C11": Conv2d(1, 512, 7, 7, 512, 3, 3, padding=1),
}


def main() -> None:
    chip = Accelerator.load("pynq")
    ratios = []
    for name, layer in LAYERS.items():
        found = search(ScheduleSpace(layer, chip), limit=1200.0)
        template = ScheduleSpace(layer, chip, "autotvm")
        cycles = template.measure(np.arange(len(template))).cycles
        ratios.append(cycles[cycles > 0].min() / found.best_timed)
        share = engine_bound(layer, chip).bound / found.best_timed
        print(
            f"{name:4} T* {found.best_timed:7d}  {share:7.2%} of the engine bound  {ratios[-1]:.3f}x autotvm's best  "
            f"timed {found.timed}, {'closed' if found.closed else 'open'}, {found.seconds:.1f} s",
            flush=True,
        )
    print(f"geometric mean over autotvm's best: {np.exp(np.mean(np.log(ratios))):.3f}x, least {min(ratios):.3f}x")


if __name__ == "__main__":
    main()
