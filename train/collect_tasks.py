"""Collect labels of the task network, which tells T* of a layer on an accelerator without a search:

    python train/collect_tasks.py --out corpus/tasks --shards 47
    python train/collect_tasks.py --out corpus/tasks-stock --shards 133 --seed 2 --stock 1

Layers are those of the training plans, accelerators are drawn at random in families that differ in their SRAMs alone.
Those two are what the shipped network was trained on. A shard holds 320 pairs at most. The same command goes on where
it stopped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.corpus.plan import read_plan
from oneshot_ml2.network.picking import predictor_of
from oneshot_ml2.training.task_labels import collect_labels
from oneshot_ml2.vta.accelerator import DESIGNS

PLANS = ("train", "operators")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the shards go")
    parser.add_argument("--shards", type=int, default=400, metavar="N", help="default 400")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of everything random; default 1")
    parser.add_argument(
        "--stock",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="of families with the design's default memory; default 0",
    )
    args = parser.parse_args()
    plans = Path(__file__).resolve().parent.parent / "datasets" / "plans"
    try:
        layers = [layer for name in PLANS for layer in read_plan(plans / f"{name}.toml").layers]
        networks = {design: predictor_of(None, design=design) for design in DESIGNS}
        workloads = list(dict.fromkeys(layer.workload for layer in layers))
        pairs = collect_labels(workloads, networks, args.out, args.shards, args.seed, args.stock)
    except OneShotError as error:
        print(f"collect_tasks: {error}", file=sys.stderr)
        return 2
    print(f"{pairs} pairs labelled: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
