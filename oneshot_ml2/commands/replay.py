"""Hold the simulators against measured runs."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from oneshot_ml2.evaluation.replay import read_runs, replay


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``oneshot-ml2 replay``."""
    parser.add_argument("files", nargs="+", metavar="RUNS.h5", help="files of programs measured on the RTL")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Replay files and print one line for each; 0 whatever the comparison finds."""
    reports = [replay(read_runs(path)) for path in args.files]
    if args.json:
        files = [asdict(report) for report in reports]
        for entry in files:
            if entry["status"] == "compared":
                del entry["status"]
        print(json.dumps({"files": files}, indent=2))
        return 0
    width = max([4] + [len(report.file) for report in reports])
    print(f"{'file':{width}}  {'runs':>6}  {'cycles =':>8}  {'traces =':>13}  {'memories =':>13}  max error  Mcycles/s")
    for report in reports:
        if report.status != "compared":
            print(f"{report.file:{width}}  {report.runs:6d}  {report.status}")
            continue
        traces = f"{report.traces_equal}/{report.traces_checked}"
        memories = f"{report.memories_equal}/{report.memories_checked}"
        print(
            f"{report.file:{width}}  {report.runs:6d}  {report.cycles_equal:8d}  {traces:>13}  {memories:>13}"
            f"  {report.max_relative_error:8.2%}  {report.cycles_per_second / 1e6:9.0f}"
        )
    return 0
