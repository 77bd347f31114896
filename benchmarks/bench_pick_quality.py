"""Pick quality T* / T(pick) on a frozen evaluation set, with the exact T* searched on the spot.

python benchmarks/bench_pick_quality.py datasets/evaluation/resnet18.json [--tasks N] [--weights FILE]
"""

from __future__ import annotations

import argparse

import numpy as np

from oneshot_ml2.oneshot import pick
from oneshot_ml2.optimum import read_tasks, search


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("set")
    parser.add_argument("--tasks", type=int, default=0, help="only so many, evenly spread; 0: all")
    parser.add_argument("--weights")
    parser.add_argument("--limit", type=float, default=1200.0, help="seconds a search for T* may take")
    args = parser.parse_args()
    tasks = read_tasks(args.set)
    if args.tasks:
        tasks = [tasks[i] for i in np.unique(np.linspace(0, len(tasks) - 1, args.tasks).astype(int))]
    quality, sources, still_open = [], [], 0
    for task in tasks:
        picked = pick(task.workload, task.accelerator, args.weights)
        index = np.array([picked.index])
        cycles = int(picked.space.measure(index).cycles[0])
        found = search(picked.space, args.limit, first=index)
        best = found.best_timed if found.closed else min(found.best_timed, found.bound_at_stop)
        still_open += not found.closed
        quality.append(best / cycles)
        sources.append(picked.source)
    shares = np.array(quality)
    print(
        f"{args.set}: {len(shares)} tasks, geomean {np.exp(np.log(shares).mean()):.2%}, worst {shares.min():.2%}, "
        f"share >= 95 %: {(shares >= 0.95).mean():.1%}, fallbacks {sources.count('fallback')}, "
        f"open searches {still_open}"
    )


if __name__ == "__main__":
    main()
