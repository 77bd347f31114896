"""Hold the autotvm space against TVM's tables and tuning records."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from oneshot_ml2.common.metrics import geometric_mean
from oneshot_ml2.evaluation.crosscheck import crosscheck


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``oneshot-ml2 crosscheck``."""
    parser.add_argument("file", metavar="FILE.json", help="a table of TVM's space, TopHub records, or a board campaign")
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


def run(args: argparse.Namespace) -> int:
    """The command; 0 whatever the comparison finds."""
    result = crosscheck(args.file, picks=not args.no_pick)
    if args.json:
        print(json.dumps(result, indent=2))
    elif "layers" in result:
        _print_table(result)
    else:
        for key, value in result.items():
            print(f"{key:28} {value}")
    return 0
