"""What each part of the method is worth:

    python train/ablation.py --corpus corpus/train corpus/operators corpus/more --work runs/ablation \\
        --out docs/figures/ablation

Each variant is trained alike, for `--epochs`, fewer than the shipped network. Each is kept when it is done, and a
killed run goes on within the variant that it was at. Needs the extra `train`.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import studies
from numpy.typing import NDArray

from oneshot_ml2.network.predictor import NETWORKS, Predictor, Scores, depth
from oneshot_ml2.spaces.full import features as full_features
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.training import loop
from oneshot_ml2.training.data import Data
from oneshot_ml2.training.settings import Settings

# Task features that describe the accelerator alone come first, those that mix it with the workload last.
ACCELERATOR = tuple(range(full_features.TASK_FEATURES.index("batch blocks")))
# Features of bounds and closed-form totals, which are all given beside the bound; positions among all features.
BOUNDED = tuple(i for i, name in enumerate(full_features.FEATURES) if "bound" in name)
TASKS = len(full_features.TASK_FEATURES)


@dataclass(frozen=True)
class Unbounded(Predictor):
    """A network whose second output is log T itself."""

    def judge(self, space: ScheduleSpace, given: full_features.Candidates, network: str = "main") -> Scores:
        return _unbound(super().judge(space, given, network))

    def score(self, space: ScheduleSpace, indices: NDArray[np.int64], network: str = "main") -> Scores:
        return _unbound(super().score(space, indices, network))


def _unbound(found: Scores) -> Scores:
    return dataclasses.replace(found, bound=np.ones_like(found.bound))


def without(data: Data, features: tuple[int, ...]) -> Data:
    """The data with some of `encode.FEATURES` zero."""
    tasks, schedules = data.tasks.copy(), data.schedules
    tasks[:, [i for i in features if i < TASKS]] = 0.0
    columns = [i - TASKS for i in features if i >= TASKS]
    if columns:
        # Some gigabytes, for this variant alone.
        schedules = schedules.copy()
        schedules[:, columns] = 0.0
    return dataclasses.replace(data, tasks=tasks, schedules=schedules)


def blind(network: Predictor, features: tuple[int, ...]) -> Predictor:
    """The network without its weights of some of `encode.FEATURES`, which were zero in its training."""
    tensors = dict(network.tensors)
    for name in NETWORKS:
        weight = tensors[f"{name}.0.weight"].copy()
        weight[:, list(features)] = 0.0
        tensors[f"{name}.0.weight"] = weight
    return dataclasses.replace(network, tensors=tensors)


def trusting(network: Predictor) -> Predictor:
    """The network calling every schedule valid, so that the closed form alone tells."""
    tensors = dict(network.tensors)
    for name in NETWORKS:
        last = f"{name}.{depth(tensors, name) - 1}"
        weight, bias = tensors[f"{last}.weight"].copy(), tensors[f"{last}.bias"].copy()
        weight[0], bias[0] = 0.0, 30.0
        tensors |= {f"{last}.weight": weight, f"{last}.bias": bias}
    return dataclasses.replace(network, tensors=tensors)


def absolute(data: Data) -> Data:
    """The data with log T in place of log(T / LB)."""
    zero = np.zeros_like(data.log_bound)
    ratio = np.where(data.timed, data.log_bound + data.log_ratio, zero)
    return dataclasses.replace(data, log_bound=zero, log_ratio=ratio)


def only(data: Data, kept: NDArray[np.bool_]) -> Data:
    """The data with the latencies of some samples alone, bool (n,); all still say whether they are valid."""
    timed = data.timed & kept
    return dataclasses.replace(data, timed=timed, log_ratio=np.where(timed, data.log_ratio, np.float32(0)))


def as_many(data: Data) -> NDArray[np.bool_]:
    """As many timed samples of each task as were drawn at random, of any kind, bool (n,)."""
    rng, kept = np.random.default_rng(0), np.zeros(len(data.timed), dtype=bool)
    for t in range(len(data)):
        rows = data.rows(t)
        timed = np.flatnonzero(data.timed[rows])
        count = int((data.timed[rows] & ~data.guided[rows]).sum())
        kept[rows.start + rng.permutation(timed)[:count]] = True
    return kept


@dataclass(frozen=True)
class Variant:
    """A way to train and use a network: what it is called, its data, settings and network made of the usual ones."""

    label: str
    data: Callable[[Data], Data] = lambda data: data
    settings: Callable[[Settings], Settings] = lambda settings: settings
    network: Callable[[Predictor], Predictor] = lambda network: network


def _unbounded(network: Predictor) -> Predictor:
    return Unbounded(network.tensors, network.card)


VARIANTS = {
    "whole": Variant("the method"),
    "hardware": Variant(
        "without the accelerator's features",
        data=lambda data: without(data, ACCELERATOR),
        network=lambda network: blind(network, ACCELERATOR),
    ),
    "residual": Variant("log T, not its residual over the bound", data=absolute, network=_unbounded),
    "bounds": Variant(
        "log T, without features of bounds and closed forms",
        data=lambda data: absolute(without(data, BOUNDED)),
        network=lambda network: _unbounded(blind(network, BOUNDED)),
    ),
    "single": Variant(
        "latency alone: no loss of validity, rank or spread; the closed form tells validity",
        settings=lambda s: dataclasses.replace(s, validity_weight=0.0, rank_weight=0.0, spread_weight=0.0),
        network=trusting,
    ),
    "random": Variant("latencies of the random samples alone", data=lambda data: only(data, ~data.guided)),
    "fewer": Variant("as many latencies of any samples", data=lambda data: only(data, as_many(data))),
}


def plot(points: dict[str, dict[str, Any]], path: Path) -> None:
    """Bars of 1 - geometric mean of T* / T, a group for each variant."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 0.7 * len(points) + 1), layout="constrained")
    sets = list(next(iter(points.values()))["sets"])
    height = 0.8 / len(sets)
    for i, name in enumerate(sets):
        loss = [100 * (1 - point["sets"][name]["geomean"]) for point in points.values()]
        axis.barh(np.arange(len(points)) + i * height, loss, height, label=name)
    axis.set_yticks(np.arange(len(points)) + 0.4 - height / 2, [VARIANTS[name].label for name in points], fontsize=8)
    axis.set(xlabel="slower than T*, % (geometric mean)", xscale="log")
    axis.invert_yaxis()
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def study(args: argparse.Namespace, path: Path) -> dict[str, Any]:
    """A point for each variant."""
    base, data = studies.load(args)
    points = {}
    for name in args.variants:
        variant = VARIANTS[name]

        def make(name: str = name, variant: Variant = variant) -> dict[str, Any]:
            weights = Path(args.work) / name
            trained = loop.train(variant.data(data), variant.settings(base), weights, progress=True)
            sets = studies.quality(variant.network(trained), args.sets, args.tasks)
            return {"label": variant.label, "sets": sets}

        points[name] = studies.point(path, name, studies.facts_of(args, base, data), make)
    return points


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    studies.add_arguments(parser)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    return studies.run(parser, study, plot)


if __name__ == "__main__":
    sys.exit(main())
