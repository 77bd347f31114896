"""Hold the autotvm space, timing and picks against TVM's tables and measurements of boards."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from oneshot_ml2.common.files import check_output
from oneshot_ml2.common.metrics import geometric_mean
from oneshot_ml2.common.tables import table
from oneshot_ml2.evaluation.board_check import CHOICES
from oneshot_ml2.evaluation.crosscheck import crosscheck
from oneshot_ml2.vta.accelerator import Accelerator


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``oneshot-ml2 crosscheck``."""
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="+",
        help="measurements of boards, one file or more; or a table of TVM's space, TopHub records, a board campaign",
    )
    parser.add_argument("--accelerator", metavar="NAME|FILE.json", help="in place of each board's own, of DESIGN hls")
    parser.add_argument(
        "--fit",
        metavar="FILE",
        nargs="+",
        default=[],
        help="fit the design's parameters to the other layers of these boards' files first, and print them",
    )
    parser.add_argument("--plot", metavar="FILE.png", help="of boards: predicted over measured times by layer")
    parser.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    parser.add_argument("--no-pick", action="store_true", help="leave out our own picks (needs no weights)")


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _print_table(result: Mapping[str, Any]) -> None:
    print(
        f"{'layer':8} {'accelerator':12} {'configs':>8} {'validity =':>10} {'insns !=':>8} {'bytes !=':>8} "
        f"{'median err':>10} {'max err':>8} {'tau':>7} {'best':>10} {'pick':>10} {'best/pick':>9}"
    )
    for layer in result["layers"]:
        for name, row in layer["accelerators"].items():
            best, pick = row["best"], row["pick"]
            gain = best / pick if best and pick and pick > 0 else None
            print(
                f"{layer['layer']:8} {name:12} {layer['configurations']:8} {layer['validity_equal']:10} "
                f"{layer['instructions_differ']:8} {layer['bytes_differ']:8} {_cell(row['median_error'], '10.3%')} "
                f"{_cell(row['max_error'], '8.3%')} {_cell(row['kendall_tau'], '7.4f')} {_cell(best, '10,'):>10} "
                f"{_cell(pick, '10,'):>10} {_cell(gain, '9.3f'):>9}"
            )
        if layer["differences"]:
            print(f"{layer['layer']:8} validity differs: {layer['differences']}")
    gains = [
        row["best"] / row["pick"]
        for layer in result["layers"]
        for row in layer["accelerators"].values()
        if row["best"] and row["pick"] and row["pick"] > 0
    ]
    if gains:
        print(f"best/pick: geometric mean {geometric_mean(gains):.3f}, least {min(gains):.3f}")


def _print_boards(result: Mapping[str, Any]) -> None:
    header = ("layer", "board", "timed", "median error", "tau", *CHOICES, "validity")
    rows = []
    for row in result["layers"]:
        validity = ", ".join(
            f"{name} {count['agree']}/{count['agree'] + count['disagree']}" for name, count in row["validity"].items()
        )
        regrets = [_cell(row["regret"][name], ".2%") for name in CHOICES]
        error, tau = _cell(row["median_error"], ".2%"), _cell(row["kendall_tau"], ".3f")
        rows.append((row["layer"], row["board"], str(row["timed"]), error, tau, *regrets, validity))
    print(table(header, rows, left=("layer", "board", "validity")))
    print(
        f"\n{', '.join(CHOICES)}: regret of what each chooses in the layer's pool; validity: outcomes that we agree on"
    )
    errors = [row["median_error"] for row in result["layers"] if row["median_error"] is not None]
    taus = [row["kendall_tau"] for row in result["layers"] if row["kendall_tau"] is not None]
    if errors:
        print(f"median error: median of layers {np.median(errors):.2%}, worst {max(errors):.2%}")
    if taus:
        print(f"tau: mean of layers {np.mean(taus):.3f}, least {min(taus):.3f}")
    for record in result["unexplained"]:
        print(
            f"not explained: {record['layer']} ({record['board']}) index {record['index']}: "
            f"measured {record['measured']}, ours {record['ours']}"
        )
    for board, found in result["fits"].items():
        print(f"\n{board}: fitted to {found['measurements']} measurements (value, standard error)")
        for key, parameter in found["parameters"].items():
            print(f"  {key:24} {parameter['value']:9,} +- {parameter['error']:11,.1f}  {parameter['unit']}")


def run(args: argparse.Namespace) -> int:
    """The command; 0 whatever the comparison finds."""
    given = Accelerator.load(args.accelerator) if args.accelerator else None
    plot = check_output(args.plot, "--plot") if args.plot else None
    result = crosscheck(args.files, not args.no_pick, given, args.fit, plot)
    if args.json:
        print(json.dumps(result, indent=2))
    elif "unexplained" in result:
        _print_boards(result)
    elif "layers" in result:
        _print_table(result)
    else:
        for key, value in result.items():
            print(f"{key:28} {value}")
    return 0
