"""How the picks improve with the size of the corpus:

    python train/learning_curve.py --corpus corpus/train corpus/operators corpus/more --work runs/curve \\
        --out docs/figures/learning_curve

Networks of the shipped form are trained on shares of the tasks, each for as many steps: `--epochs` over all of them,
fewer than the shipped network's, more over a smaller share. Each point is kept when it is done, and a killed run goes
on within the point that it was at. Needs the extra `train`.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

import studies

from oneshot_ml2.evaluation import evaluate
from oneshot_ml2.training import loop
from oneshot_ml2.training.data import split_tasks
from oneshot_ml2.training.settings import Settings

SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)


def plot(points: list[dict[str, Any]], path: Path) -> None:
    """1 - geometric mean of T* / T over the number of tasks trained on, both logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(5.5, 4), layout="constrained")
    for name in points[0]["sets"]:
        loss = [max(100 * (1 - point["sets"][name]["geomean"]), 1e-3) for point in points]
        axis.plot([point["trained_on"] for point in points], loss, marker="o", label=evaluate.SETS[name])
    axis.set(xlabel="tasks trained on", ylabel="slower than T*, % (geometric mean)", xscale="log", yscale="log")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def study(args: argparse.Namespace, path: Path) -> list[dict[str, Any]]:
    """A point for each share of the tasks."""
    base, data = studies.load(args)
    every, points = len(split_tasks(data, base)["train"]), []
    for share in SHARES:
        settings = dataclasses.replace(base, task_share=share, epochs=max(1, round(base.epochs / share)))

        def make(settings: Settings = settings) -> dict[str, Any]:
            weights = Path(args.work) / f"share-{settings.task_share:.4f}"
            network = loop.train(data, settings, weights, progress=True)
            sets = studies.quality(network, args.sets, args.tasks)
            return {"trained_on": round(settings.task_share * every), "sets": sets}

        points.append(studies.point(path, f"share {share:.4f}", studies.facts_of(args, settings, data), make))
    return points


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    studies.add_arguments(parser)
    return studies.run(parser, study, plot)


if __name__ == "__main__":
    sys.exit(main())
