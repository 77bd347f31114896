"""Find out what a device really does, and write a board file that schedules keep to."""

from __future__ import annotations

import argparse
import json
import sys

from oneshot_ml2.commands.options import add_device
from oneshot_ml2.common.files import check_output, write_whole
from oneshot_ml2.common.tables import table
from oneshot_ml2.devices.doctor.examine import Report, configuration_note, examine
from oneshot_ml2.devices.doctor.soak import Soaked, seconds_of, soak
from oneshot_ml2.devices.raw import raw_board
from oneshot_ml2.devices.registry import open_device
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.board import FEATURES, RIGHT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``oneshot-ml2 doctor``."""
    add_device(parser, "what is examined")
    parser.add_argument("--accelerator", default="pynq", metavar="NAME", help="preset or VTA JSON (default pynq)")
    parser.add_argument("--soak", metavar="TIME", help="go on with random programs for so long, e.g. 90s, 10m, 1h")
    parser.add_argument("-o", "--output", metavar="FILE", help="the board file, which --accelerator takes")
    parser.add_argument(
        "--guess",
        action="store_true",
        help="if it is not that accelerator, try others; on a board a wrong guess writes to memory of others",
    )
    parser.add_argument("--no-times", action="store_true", help="leave out what takes how long")
    parser.add_argument("--json", action="store_true", help="the findings as JSON on stdout")
    parser.add_argument("--list", action="store_true", help="what is looked at; no device is asked")


def run(args: argparse.Namespace) -> int:
    """Examine, print and write; 1 if something is wrong."""
    if args.list:
        print(table(["feature", "what"], [[name, text] for name, text in FEATURES.items()], {"feature", "what"}))
        return 0
    if args.output:
        check_output(args.output, "-o")
    soaking = None if args.soak is None else seconds_of(args.soak)
    chip = Accelerator.load(args.accelerator)
    device = open_device(args.device)
    board = raw_board(device)
    board.start()
    note = configuration_note(board, chip)
    if note:
        print(note, file=sys.stderr)
    try:
        report = examine(board, args.device, chip, timed=not args.no_times, guess=args.guess)
        if args.output:
            write_whole(args.output, report.chip.to_json() + "\n")
        soaked = None if soaking is None else soak(board, report.chip, soaking)
    finally:
        board.close()
    result = report.to_dict()
    if soaked is not None:
        wrong = None if soaked.difference is None else soaked.difference.text()
        result["soak"] = {"programs": soaked.programs, "difference": wrong}
    print(json.dumps(result, indent=2) if args.json else _table(report))
    if args.output:
        print(f"Written to {args.output}; use it with --accelerator {args.output}", file=sys.stderr)
    if soaked is not None and not args.json:
        print(_soaked(soaked))
    return 0 if report.healthy and (soaked is None or soaked.difference is None) else 1


def _soaked(soaked: Soaked) -> str:
    if soaked.difference is None:
        return f"{soaked.programs:,} random programs ran, and none was wrong."
    return f"{soaked.programs:,} random programs ran, and the last one was wrong: {soaked.difference.text()}"


def _table(report: Report) -> str:
    rows = [[one.feature, one.verdict, one.sentence] for one in report.findings.values()]
    wrong = [one for one in report.findings.values() if one.verdict != RIGHT]
    text = table(["feature", "verdict", "what was seen"], rows, {"feature", "verdict", "what was seen"})
    return f"{text}\n{len(rows) - len(wrong)} of {len(rows)} are right."
