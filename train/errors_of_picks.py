"""Learn how far picks are from what the networks predict of them, and write it into the card of weights:

    python train/errors_of_picks.py --weights pretrained/default@1.safetensors \\
        --plans datasets/plans/train.toml datasets/plans/operators.toml datasets/plans/more.toml

Picks are made and timed for tasks that the weights' training kept out; no corpus is needed, only the plans of those
that it read. Three minutes on two cores. Weights for what lies far outside of all training learn from fresh tasks:

    python datasets/make_fresh.py --seed 11 --within 0 --beyond 100 --out fresh-11.json
    python datasets/make_fresh.py --seed 77 --within 0 --beyond 150 --out fresh-77.json
    python train/errors_of_picks.py --weights pretrained/wide@2.safetensors --fresh fresh-11.json fresh-77.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.corpus.plan import read_plan
from oneshot_ml2.evaluation.tasks import read_given
from oneshot_ml2.network.errors_of_picks import KEY
from oneshot_ml2.network.predictor import Predictor
from oneshot_ml2.network.tensor_files import write_weights
from oneshot_ml2.training.errors_of_picks import REACHES, fit, observe, validation_tasks


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, metavar="FILE", help="weights (*.safetensors), a card beside them")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--plans", nargs="+", metavar="FILE", help="of the corpora that they learnt from")
    source.add_argument("--fresh", nargs="+", metavar="FILE.json", help="tasks that no network has seen: make_fresh.py")
    parser.add_argument("--tasks", type=int, default=320, metavar="N", help="default 320")
    args = parser.parse_args()
    try:
        network = Predictor.load(args.weights)
        if args.fresh:
            given = [one.task for path in args.fresh for one in read_given(path)][: args.tasks]
            tasks = [(task.layer.workload, task.accelerator) for task in given]
        else:
            tasks = validation_tasks([read_plan(path) for path in args.plans], network.card, args.tasks)
        errors = observe(tasks, network)
        found = fit(errors, REACHES if network.seen.beside else (0.0,))
        card = network.card | {KEY: dataclasses.asdict(found) | {"tasks": len(errors)}}
        path = Path(args.weights).with_suffix(".json")
        write_weights(path, (json.dumps(card, indent=1, sort_keys=True) + "\n").encode())
    except OneShotError as error:
        print(f"errors_of_picks: {error}", file=sys.stderr)
        return 2
    away, spread, gap = errors.T
    for name, middle, scale in (
        ("as predicted", 0.0, 1.0),
        ("corrected", found.shift * spread + found.lean * gap, found.scale),
    ):
        reach = found.reach if name == "corrected" else 0.0
        off = np.abs(away - middle) / np.hypot(scale * spread, reach * gap)
        shares = f"{(off <= 1).mean():.1%} within one spread, {(off <= 2).mean():.1%} within two"
        print(f"{name}: {shares}; {(away > middle).mean():.1%} take longer")
    print(f"{found} of {len(errors)} picks: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
