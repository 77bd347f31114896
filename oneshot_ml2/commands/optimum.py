"""Search the least latency of the tasks of an evaluation set, exactly."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.common.files import check_writable
from oneshot_ml2.evaluation.optimum import search_all
from oneshot_ml2.evaluation.tasks import read_given

if TYPE_CHECKING:
    pass


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``oneshot-ml2 optimum``."""
    parser.add_argument("--tasks", metavar="SET", required=True, help="evaluation set, or tasks of your own (JSON)")
    parser.add_argument("--out", metavar="FILE", help="table to go on with; default: datasets/optima/<SET>.jsonl")
    parser.add_argument("--limit", type=float, default=1200.0, metavar="SECONDS", help="per task; default 1200")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="default 2")
    parser.add_argument("--weights", metavar="FILE", help="start from this network's picks: shorter, same T*")


def run(args: argparse.Namespace) -> int:
    """Search the tasks of a set that its table lacks."""
    path = Path(args.tasks)
    out = Path(args.out) if args.out else path.parent.parent / "optima" / f"{path.stem}.jsonl"
    check_writable(out.parent, "--out")
    if args.processes < 1:
        raise OneShotError(f"--processes is {args.processes}; allowed: 1 or more")
    tasks = list({given.task.id: given.task for given in read_given(path)}.values())
    for number, row in enumerate(search_all(tasks, out, args.limit, args.processes, args.weights), 1):
        state = "exact" if row.closed else f"not closed, bound {row.bound_at_stop}"
        print(
            f"{number} {row.workload} on {Path(row.accelerator).stem}: {row.best} cycles, {row.timed} of {row.size} "
            f"timed in {row.seconds:.0f} s, {state}",
            flush=True,
        )
    return 0
