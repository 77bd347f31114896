"""Pick quality against wall time: the zero-measurement pick and `pick --verify n`, beside simulation in order of the
proven lower bound for as long as the pick took, ten times as long, and longer.

    python benchmarks/quality_against_time.py --out docs/figures/quality_against_time

writes a plot (.png) and its figures (.json). Times are of this machine, all cores; the first pick, which compiles, is
not counted. Simulation starts from the same closed forms, which are part of its time. Needs the extra `train`.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from frozen_sets import arguments

from oneshot_ml2.common import metrics
from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.common.files import write_whole
from oneshot_ml2.evaluation import baselines, evaluate
from oneshot_ml2.evaluation.optimum import Optimum, Task, version
from oneshot_ml2.network import picking
from oneshot_ml2.network.predictor import Predictor

VERIFIED = (0, 4, 16, 64, 256)
TIMES = (1, 3, 10, 30)


@dataclass(frozen=True)
class Point:
    """One way to a schedule over a set: its name, mean seconds a task, and `metrics.summarise_quality`."""

    name: str
    seconds: float
    quality: dict[str, float]

    @classmethod
    def of(cls, name: str, found: list[tuple[float, float]]) -> Point:
        """Of (seconds, quality) of each task."""
        return cls(name, float(np.mean([s for s, _ in found])), metrics.summarise_quality([q for _, q in found]))


def measure(tasks: list[tuple[Task, Optimum]], network: Predictor) -> list[Point]:
    """All points of a set."""
    found: dict[str, list[tuple[float, float]]] = {}
    for at, (task, known) in enumerate(tasks):
        space = task.space()

        def note(name: str, seconds: float, index: int | None, space=space, known=known) -> None:
            cycles = None if index is None else int(space.measure(np.array([index])).cycles[0])
            found.setdefault(name, []).append((seconds, metrics.pick_quality(known.best, cycles)))

        if at == 0:
            picking.pick(task.workload, task.accelerator, network, verify=4)
            baselines.simulated(space, 1.0)
        seconds = 0.0
        for n in VERIFIED:
            picked = picking.pick(task.workload, task.accelerator, network, verify=n)
            seconds = seconds or picked.seconds
            note(f"verify {n}" if n else "pick", picked.seconds, picked.index)
        for times in TIMES:
            index, _ = baselines.simulated(space, times * seconds)
            note(f"simulation x{times}", times * seconds, index)
        print(f"{at + 1}/{len(tasks)} {task.layer.name}: a pick takes {seconds:.3f} s", file=sys.stderr, flush=True)
    return [Point.of(name, pairs) for name, pairs in found.items()]


def plot(results: dict[str, list[Point]], path: Path) -> None:
    """A panel for each set: 1 - geometric mean of T* / T over mean seconds, both logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(results), figsize=(4.2 * len(results), 3.6), layout="constrained", squeeze=False, sharey=True
    )
    for axis, (name, points) in zip(axes[0], results.items()):
        for label, chosen in (
            ("our pick, then verify 4 to 256", [p for p in points if not p.name.startswith("simulation")]),
            ("simulation by the bound, x1 to x30", [p for p in points if p.name.startswith("simulation")]),
        ):
            loss = [max(100 * (1 - p.quality["geomean"]), 1e-3) for p in chosen]
            axis.plot([p.seconds for p in chosen], loss, marker="o", label=label)
        axis.set(title=evaluate.SETS[name], xlabel="wall time of a task, seconds", xscale="log", yscale="log")
        axis.title.set_fontsize(8)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("slower than T*, % (geometric mean)")
    axes[0][0].legend(fontsize=8)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> int:
    args = arguments(__doc__, ["workloads", "networks", "unseen"])
    try:
        network = picking.predictor_of(args.weights)
        results = {name: measure(evaluate.known_tasks(name, args.tasks), network) for name in args.sets}
    except OneShotError as error:
        print(f"quality_against_time: {error}", file=sys.stderr)
        return 2
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    sets = {
        name: {point.name: {"seconds": point.seconds} | point.quality for point in points}
        for name, points in results.items()
    }
    content = {"version": version(), "cores": os.cpu_count(), "tasks": args.tasks, "sets": sets}
    write_whole(out.with_suffix(".json"), json.dumps(content, indent=1) + "\n")
    plot(results, out.with_suffix(".png"))
    for name, points in results.items():
        for point in points:
            quality = point.quality
            print(
                f"{name:10} {point.name:15} {point.seconds:8.3f} s  geomean {quality['geomean']:.2%} "
                f"worst {quality['worst']:.2%}  >= 95 % {quality['share_95']:.1%}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
