"""Show what is in tuning logs, and how the runs converged."""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oneshot_ml2.common import tables
from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.common.files import check_output, write_whole
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.tuning.log import read_log
from oneshot_ml2.workload import base
from oneshot_ml2.workload.registry import workload_from_dict

if TYPE_CHECKING:
    from oneshot_ml2.tuning.log import History

# Where the table shows the best so far.
_MARKS = (1, 10, 100)


def summary(history: History) -> dict[str, Any]:
    """What ``--json`` prints of a log."""
    header, best = history.header, history.best
    space = ScheduleSpace(header.workload, header.accelerator, header.space)
    found: dict[str, Any] = {
        "workload": header.workload.to_dict(),
        "accelerator": header.accelerator.name,
        "space": header.space,
        "device": header.device,
        "tuner": header.tuner,
        "seed": header.seed,
        "trials": len(history),
        "invalid_rate": tables.finite(history.invalid_rate),
        "reasons": history.reasons(),
        "retried": int((history.attempts > 1).sum()),
        "measured_again": sum(1 for trial in history.trials if trial.repeats),
        "programs": history.programs,
        "best_cycles": None,
        "best_trial": None,
        "best_schedule": None,
        "best_so_far": [tables.finite(cycles) for cycles in history.best_so_far.tolist()],
    }
    if best is not None:
        index, cycles = best
        found |= {
            "best_cycles": cycles,
            "best_trial": history.trials_to(cycles),
            "best_schedule": dict(space.schedule(index).knobs),
        }
    return found


def table(names: Sequence[str], summaries: Sequence[dict[str, Any]]) -> str:
    """A row for each log."""
    header = (
        "log", "layer", "accelerator", "space", "tuner", "seed", "trials", "invalid", "retried",
        *(f"best of {mark}" for mark in _MARKS), "best", "at trial",
    )  # fmt: skip
    rows = []
    for name, row in zip(names, summaries, strict=True):
        curve = row["best_so_far"]
        marks = [curve[mark - 1] if len(curve) >= mark else None for mark in _MARKS]
        rows.append(
            (
                name,
                base.short_workload(workload_from_dict(row["workload"])),
                row["accelerator"],
                row["space"],
                row["tuner"],
                str(row["seed"]),
                str(row["trials"]),
                "" if row["invalid_rate"] is None else tables.percent(row["invalid_rate"]),
                str(row["retried"]),
                *(_cycles(mark) for mark in marks),
                _cycles(row["best_cycles"]),
                _cycles(row["best_trial"]),
            )
        )
    return tables.table(header, rows, left=("log", "layer", "accelerator", "space", "tuner"))


def _cycles(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def plot(names: Sequence[str], summaries: Sequence[dict[str, Any]]) -> bytes:
    """Best cycles so far over trials, a line for each log, as a PNG.

    Raises:
        OneShotError: no log has a valid trial.
        ModuleNotFoundError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    if all(row["best_cycles"] is None for row in summaries):
        raise OneShotError("there is nothing to plot: no trial was valid")
    figure, axes = pyplot.subplots(figsize=(8, 5))
    for name, row in zip(names, summaries, strict=True):
        curve = [float("nan") if cycles is None else cycles for cycles in row["best_so_far"]]
        axes.step(range(1, len(curve) + 1), curve, where="post", label=f"{name} ({row['tuner']})")
    axes.set_xscale("log")
    axes.set_xlabel("trials, invalid ones included")
    axes.set_ylabel("least cycles so far")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120, bbox_inches="tight", metadata={"Software": None})
    pyplot.close(figure)
    return picture.getvalue()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``oneshot-ml2 history``."""
    parser.add_argument("logs", nargs="+", metavar="LOG", help="tuning logs (.jsonl)")
    parser.add_argument("--plot", metavar="FILE", help="write the convergence of all logs there, as PNG")
    parser.add_argument("--json", action="store_true", help="print what the logs say as JSON, with every best so far")


def run(args: argparse.Namespace) -> int:
    """Read, print, plot."""
    if args.plot:
        check_output(args.plot, "--plot")
    summaries = [summary(read_log(path)) for path in args.logs]
    names = [Path(path).stem for path in args.logs]
    if args.plot:
        write_whole(args.plot, plot(names, summaries))
    if args.json:
        print(json.dumps([{"log": name} | row for name, row in zip(args.logs, summaries)], indent=2))
        return 0
    print(table(names, summaries))
    for name, row in zip(names, summaries):
        ended = ", ".join(f"{count} {label}" for label, count in row["reasons"].items())
        print(f"\n{name}: {ended or 'no trials'}; {row['programs']} programs run")
        if row["best_schedule"]:
            print("best: " + " ".join(f"{knob}={value}" for knob, value in row["best_schedule"].items()))
    return 0
