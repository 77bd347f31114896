"""List the shipped weights."""

from __future__ import annotations

import argparse
import json

from oneshot_ml2.common.tables import table
from oneshot_ml2.network.card import read_card
from oneshot_ml2.network.weights import find_pretrained, list_pretrained

_COLUMNS = ("weights", "kB", "features", "samples", "epochs", "date", "commit")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``oneshot-ml2 weights``."""
    parser.add_argument("--json", action="store_true", help="print one JSON object, name -> model card")


def run(args: argparse.Namespace) -> int:
    """Print a line for each of the shipped weights, or with ``--json`` their cards.

    Raises:
        WeightsError: an unreadable card.
    """
    cards = {name: read_card(find_pretrained(name)) for name in list_pretrained()}
    if args.json:
        print(json.dumps(cards, indent=1))
        return 0
    rows = [
        (
            name,
            f"{find_pretrained(name).stat().st_size / 1e3:,.0f}",
            f"version {card.get('feature_version', '?')}",
            f"{card.get('samples', 0):,}",
            str(card.get("settings", {}).get("epochs", "?")),
            str(card.get("date", "?")),
            str(card.get("commit", "?"))[:10],
        )
        for name, card in cards.items()
    ]
    print(table(_COLUMNS, rows, left=("weights",)))
    return 0
