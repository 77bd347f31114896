"""The best of the `full` space and our pick on ResNet-18's layers, against the best of all of `autotvm`.

    python benchmarks/bench_full_space.py                                    # pynq
    python benchmarks/bench_full_space.py --accelerators pynq-hls axu5evb-hls

All are timed by the model of the accelerator's design.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
from resnet18_layers import LAYERS

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.common.metrics import geometric_mean
from oneshot_ml2.evaluation.optimum import search
from oneshot_ml2.network import picking
from oneshot_ml2.network.predictor import Predictor
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.bound import engine_bound


def compare(chip: Accelerator, network: Predictor | None) -> None:
    """Print a row a layer, and the geometric means; without a network no picks."""
    ratios: dict[str, list[float]] = {"T*": []} if network is None else {"T*": [], "pick": []}
    for name, layer in LAYERS.items():
        # The pick is made before anything is timed.
        picked = None if network is None else picking.pick(layer, chip, network)
        space = ScheduleSpace(layer, chip)
        found = search(space, limit=1200.0)
        template = ScheduleSpace(layer, chip, "autotvm")
        cycles = template.measure(np.arange(len(template))).cycles
        theirs = int(cycles[cycles > 0].min())
        ratios["T*"].append(theirs / found.best_timed)
        if picked is not None:
            ratios["pick"].append(theirs / int(space.measure(np.array([picked.index])).cycles[0]))
        share = engine_bound(layer, chip).bound / found.best_timed
        print(
            f"{name:4} T* {found.best_timed:7d}  {share:7.2%} of the engine bound  timed {found.timed}, "
            f"{'closed' if found.closed else 'open'}, {found.seconds:.1f} s; over autotvm's best: "
            + ", ".join(f"{what} {values[-1]:.3f}x" for what, values in ratios.items()),
            flush=True,
        )
    for name, values in ratios.items():
        slower = sum(value < 1 for value in values)
        print(
            f"{name} over autotvm's best on {chip.name}: geometric mean {geometric_mean(values):.3f}x, least "
            f"{min(values):.3f}x, slower on {slower} of {len(values)}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accelerators", nargs="+", default=["pynq"], metavar="NAME", help="default pynq")
    parser.add_argument("--weights", metavar="NAME|FILE", help="shipped weights or a file (*.safetensors)")
    parser.add_argument("--no-pick", action="store_true", help="T* alone (needs no weights)")
    args = parser.parse_args()
    try:
        for name in args.accelerators:
            chip = Accelerator.load(name)
            compare(chip, None if args.no_pick else picking.predictor_of(args.weights, design=chip.design))
    except OneShotError as error:
        print(f"bench_full_space: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
