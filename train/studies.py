"""What the studies beside it share: variants of a training run, the quality of their picks, points kept in a file."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from oneshot_ml2.common import metrics
from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.common.files import write_whole
from oneshot_ml2.evaluation import evaluate
from oneshot_ml2.evaluation.optimum import sample_of, version
from oneshot_ml2.network import picking
from oneshot_ml2.network.predictor import Predictor
from oneshot_ml2.training.data import Data, map_features, write_features
from oneshot_ml2.training.settings import Settings, read_settings

Points = TypeVar("Points")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of every study."""
    parser.add_argument("--corpus", metavar="CORPUS", nargs="+", required=True, help="files or folders of shards")
    parser.add_argument("--out", metavar="PATH", required=True, help="PATH.json and PATH.png, e.g. docs/figures/NAME")
    parser.add_argument("--work", metavar="FOLDER", required=True, help="for features, checkpoints and weights")
    parser.add_argument("--settings", metavar="FILE", default=str(Path(__file__).with_name("pretrain.toml")))
    parser.add_argument("--epochs", type=int, default=6, metavar="N", help="of the whole corpus; default 6")
    parser.add_argument("--sets", nargs="+", choices=list(evaluate.SETS), default=["workloads", "unseen"])
    parser.add_argument("--tasks", type=int, default=0, metavar="N", help="only N tasks a set, evenly spread")


def load(args: argparse.Namespace) -> tuple[Settings, Data]:
    """Settings and features; these are made once and kept in the work folder.

    Raises:
        OneShotError: bad settings or corpora.
    """
    settings = dataclasses.replace(read_settings(args.settings), epochs=args.epochs)
    features = Path(args.work) / "features"
    write_features(args.corpus, settings, features)
    return settings, map_features(features)


def quality(network: Predictor, sets: list[str], limit: int) -> dict[str, dict[str, float]]:
    """`metrics.summarise_quality` of a network's zero-measurement picks on frozen sets, and its Kendall tau and AUROC
    on the uniform samples of their tables.
    """
    result = {}
    for name in sets:
        qualities, taus, truths, scores = [], [], [], []
        for task, known in evaluate.known_tasks(name, limit):
            picked = picking.pick(task.workload, task.accelerator, network)
            cycles = int(picked.space.measure(np.array([picked.index])).cycles[0])
            qualities.append(metrics.pick_quality(known.best, cycles))
            sample, truth = sample_of(picked.space), np.array(known.sample_cycles)
            found = network.score(picked.space, sample)
            taus.append(metrics.kendall_tau(truth[truth > 0], found.cycles[truth > 0]))
            truths.append(truth > 0)
            scores.append(found.p_valid)
        validity = {"auroc": metrics.auroc(np.concatenate(truths), np.concatenate(scores))}
        result[name] = metrics.summarise_quality(qualities) | {"tau": float(np.nanmean(taus))} | validity
    return result


def run(
    parser: argparse.ArgumentParser,
    study: Callable[[argparse.Namespace, Path], Points],
    plot: Callable[[Points, Path], None],
) -> int:
    """Parse the command line, make a study's points (kept in PATH.json) and draw them (PATH.png); the exit code."""
    args = parser.parse_args()
    out = Path(args.out)
    try:
        points = study(args, out.with_suffix(".json"))
    except OneShotError as error:
        print(f"{Path(parser.prog).stem}: {error}", file=sys.stderr)
        return 2
    plot(points, out.with_suffix(".png"))
    return 0


def point(path: Path, name: str, facts: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The point ``name`` of a study's file, which is made and added if it is not there, or was made of other facts."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    facts = json.loads(json.dumps(facts | {"version": version()}))
    found = content.get(name)
    if found is None or found["facts"] != facts:
        began = time.monotonic()
        found = {"facts": facts} | make() | {"seconds": round(time.monotonic() - began, 1)}
        content[name] = found
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(content, indent=1) + "\n")
        print(f"{name}: {found['sets']} in {found['seconds']:.0f} s", flush=True)
    return dict(found)


def facts_of(args: argparse.Namespace, settings: Settings, data: Data) -> dict[str, Any]:
    """What a point depends on."""
    return {
        "settings": dataclasses.asdict(settings),
        "corpus": sorted(data.digests),
        "sets": args.sets,
        "tasks": args.tasks,
    }
