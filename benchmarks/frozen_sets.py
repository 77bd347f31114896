"""The command line of what is measured on the frozen evaluation sets."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from oneshot_ml2.evaluation.evaluate import SETS


def arguments(description: str | None, sets: Sequence[str] = tuple(SETS)) -> argparse.Namespace:
    """``sets`` (those given unless told otherwise), ``tasks``, ``weights`` and ``out`` of the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(sets))
    parser.add_argument("--tasks", type=int, default=0, metavar="N", help="only N tasks a set, evenly spread")
    parser.add_argument("--weights", metavar="NAME|FILE")
    parser.add_argument("--out", required=True, metavar="PATH", help="PATH.png and PATH.json")
    return parser.parse_args()
