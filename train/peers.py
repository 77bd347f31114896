"""Train the predictors that `oneshot-ml2 evaluate --peers` compares with:

    python train/peers.py --corpus corpus/equal --out runs/peers

Needs the extra `peers`. About a quarter of an hour on two cores, but for One-Shot Tuner's network; every epoch is kept,
and the same command goes on after a kill.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.training.peers.base import Settings
from oneshot_ml2.training.peers.registry import peer_kinds, train_peers
from oneshot_ml2.training.settings import read_settings


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", metavar="CORPUS", nargs="+", required=True, help="files or folders of shards")
    parser.add_argument("--out", metavar="FOLDER", required=True)
    parser.add_argument("--settings", metavar="FILE", default=str(Path(__file__).with_suffix(".toml")))
    parser.add_argument(
        "--only", metavar="PEER", nargs="+", choices=[*peer_kinds()], default=(), help="only these of %(choices)s"
    )
    args = parser.parse_args()
    try:
        settings = read_settings(args.settings, Settings)
        for name in train_peers(args.corpus, settings, args.out, lambda text: print(text, flush=True), args.only):
            print(f"{args.out}: {peer_kinds()[name].label}", flush=True)
        return 0
    except OneShotError as error:
        print(f"peers: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
