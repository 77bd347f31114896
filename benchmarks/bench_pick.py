"""Speed and memory of a pick: schedules scored per second, wall time of each of ResNet-18's picks, peak memory (pynq).

python benchmarks/bench_pick.py [--repeat N]
"""

from __future__ import annotations

import argparse
import resource
import time

from oneshot_ml2.models.frontend.traced import trace
from oneshot_ml2.network import picking
from oneshot_ml2.spaces.full import features as full_features
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta.accelerator import Accelerator


def _peak() -> float:
    """Peak resident memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=3, help="the best of so many rounds counts")
    args = parser.parse_args()
    chip, network = Accelerator.load("pynq"), picking.predictor_of(None)
    layers = trace("resnet18")
    picking.pick(layers[1].workload, chip, network)
    before = _peak()
    best: dict[str, tuple[int, float, float]] = {}
    for _ in range(args.repeat):
        for layer in layers:
            space = ScheduleSpace(layer.workload, chip)
            indices = full_features.canonical_table(space)
            began = time.perf_counter()
            network.score(space, indices, "scan")
            scored = time.perf_counter() - began
            seconds = picking.pick(layer.workload, chip, network).seconds
            old = best.get(layer.name, (0, 1e9, 1e9))
            best[layer.name] = (len(indices), min(old[1], scored), min(old[2], seconds))
    for name, (size, scored, seconds) in best.items():
        print(f"{name:22} {size:7d} schedules, scored at {size / scored / 1e6:5.2f} million/s; pick {seconds:.3f} s")
    sizes, times, picks = (sum(column) for column in zip(*best.values()))
    print(
        f"all: {sizes / times / 1e6:.2f} million schedules/s scored; {len(best)} picks in {picks:.2f} s; "
        f"peak memory {_peak():.0f} MiB, {before:.0f} MiB after the first pick"
    )


if __name__ == "__main__":
    main()
