"""The best of the `full` space and our pick on ResNet-18's layers, against the best of all of `autotvm` (pynq).

python benchmarks/bench_full_space.py
"""

from __future__ import annotations

import numpy as np
from resnet18_layers import LAYERS

from oneshot_ml2.common.metrics import geometric_mean
from oneshot_ml2.evaluation.optimum import search
from oneshot_ml2.network import picking
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.bound import engine_bound


def main() -> None:
    chip = Accelerator.load("pynq")
    bests, picks = [], []
    for name, layer in LAYERS.items():
        picked = picking.pick(layer, chip)
        ours = int(picked.space.measure(np.array([picked.index])).cycles[0])
        found = search(picked.space, limit=1200.0)
        template = ScheduleSpace(layer, chip, "autotvm")
        cycles = template.measure(np.arange(len(template))).cycles
        theirs = int(cycles[cycles > 0].min())
        bests.append(theirs / found.best_timed)
        picks.append(theirs / ours)
        share = engine_bound(layer, chip).bound / found.best_timed
        print(
            f"{name:4} T* {found.best_timed:7d}  {share:7.2%} of the engine bound  timed {found.timed}, "
            f"{'closed' if found.closed else 'open'}, {found.seconds:.1f} s; over autotvm's best: T* {bests[-1]:.3f}x, "
            f"pick {picks[-1]:.3f}x",
            flush=True,
        )
    for name, ratios in (("T*", bests), ("pick", picks)):
        print(f"{name} over autotvm's best: geometric mean {geometric_mean(ratios):.3f}x, least {min(ratios):.3f}x")


if __name__ == "__main__":
    main()
