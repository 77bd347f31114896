"""Measure schedules into a corpus."""

from __future__ import annotations

import argparse
import json
import os
import sys

from oneshot_ml2.commands.options import add_device
from oneshot_ml2.corpus.collect import collect
from oneshot_ml2.corpus.plan import make_plan, read_plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``oneshot-ml2 collect``."""
    parser.add_argument("--plan", metavar="FILE", help="plan file (TOML), e.g. datasets/plans/train.toml")
    parser.add_argument(
        "--out", metavar="FOLDER", required=True, help="folder for the shards; goes on from what is there"
    )
    parser.add_argument("--workloads", metavar="FILE", help="workload list, in place of the plan's")
    parser.add_argument("--accelerators", metavar="FOLDER", help="folder of VTA JSON files, in place of the plan's")
    parser.add_argument("--tasks", type=int, help="number of (workload, accelerator) pairs, in place of the plan's")
    parser.add_argument("--first", type=int, help="measure only so many of them, in place of the plan's; 0: all")
    parser.add_argument("--samples", type=int, help="schedules per task, in place of the plan's")
    parser.add_argument("--seed", type=int, help="seed, in place of the plan's")
    add_device(parser, "who measures")
    parser.add_argument(
        "--workers", type=int, default=0, metavar="N", help="processes (default: one per core, of all nodes)"
    )
    parser.add_argument(
        "--cluster",
        metavar="ADDRESS",
        help="measure on a Ray cluster: auto (the one that this machine belongs to), HOST:PORT of its head, "
        "or local (one on this machine)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def run(args: argparse.Namespace) -> int:
    """Run ``oneshot-ml2 collect``.

    Raises:
        OneShotError: for what the user can mend.
        KeyboardInterrupt: it was ended; says where what was finished is.
    """
    names = ("workloads", "accelerators", "tasks", "first", "samples", "seed")
    overrides = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    plan = read_plan(args.plan, overrides) if args.plan else make_plan(overrides)
    workers = args.workers or (None if args.cluster else len(os.sched_getaffinity(0)))
    warnings: list[str] = []
    try:
        summary = collect(
            plan,
            args.out,
            workers=workers,
            device=args.device,
            cluster=args.cluster,
            progress=not args.quiet,
            warn=warnings.append,
        )
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"what was finished is in {args.out}: run the same command to go on") from stop
    for note in summary.pop("notes"):
        print(note, file=sys.stderr)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if args.json:
        print(json.dumps(summary))
    else:
        rate = summary["samples"] / max(summary["seconds"], 1e-9)
        print(
            f"{summary['out']}: {summary['tasks']} tasks ({summary['tasks_before']} were done before), "
            f"{summary['samples']} schedules in {summary['seconds']:.1f} s ({rate:.0f}/s), {summary['invalid']} invalid"
        )
    return 0
