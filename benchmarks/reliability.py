"""How far p_valid can be trusted: predicted probability against the observed share of valid schedules.

    python benchmarks/reliability.py --out docs/figures/reliability

writes a plot (.png) and its figures (.json): over the uniform samples of the frozen sets, whose validity stands in
the tables of optima. Needs the extra `train`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from frozen_sets import arguments

from oneshot_ml2.common import metrics
from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.common.files import write_whole
from oneshot_ml2.evaluation import evaluate
from oneshot_ml2.evaluation.optimum import sample_of, version
from oneshot_ml2.network import picking
from oneshot_ml2.network.predictor import Predictor


def measure(name: str, network: Predictor, limit: int) -> dict[str, Any]:
    """`metrics.reliability` and `metrics.calibration_error` of a set's samples."""
    truths, scores = [], []
    for task, known in evaluate.known_tasks(name, limit):
        space = task.space()
        truths.append(np.array(known.sample_cycles) > 0)
        scores.append(network.score(space, sample_of(space)).p_valid)
    truth, p_valid = np.concatenate(truths), np.concatenate(scores)
    figures = {"samples": len(truth), "error": metrics.calibration_error(truth, p_valid)}
    return figures | metrics.reliability(truth, p_valid)


def plot(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Observed over predicted, and how many samples each range has."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (upper, lower) = pyplot.subplots(
        2, 1, figsize=(5, 6), layout="constrained", sharex=True, height_ratios=(3, 1)
    )
    upper.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="dashed")
    for name, found in results.items():
        upper.plot(found["predicted"], found["observed"], marker="o", label=f"{name} (error {found['error']:.2%})")
        lower.plot(found["predicted"], found["count"], marker="o")
    upper.set(ylabel="observed share of valid schedules")
    upper.legend(fontsize=8)
    lower.set(xlabel="predicted p_valid", ylabel="samples", yscale="log")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> int:
    args = arguments(__doc__)
    try:
        network = picking.predictor_of(args.weights)
        results = {name: measure(name, network, args.tasks) for name in args.sets}
    except OneShotError as error:
        print(f"reliability: {error}", file=sys.stderr)
        return 2
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out.with_suffix(".json"), json.dumps({"version": version(), "sets": results}, indent=1) + "\n")
    plot(results, out.with_suffix(".png"))
    for name, found in results.items():
        print(f"{name:10} {found['samples']:7d} samples, expected calibration error {found['error']:.3%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
