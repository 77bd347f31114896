"""Train the shipped weights.

python train/pretrain.py --corpus corpus/train corpus/operators corpus/more --out pretrained/default@1
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from oneshot_ml2.commands import train as train_command
from oneshot_ml2.common.errors import OneShotError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    train_command.add_arguments(parser)
    parser.set_defaults(settings=str(Path(__file__).with_suffix(".toml")))
    try:
        return train_command.run(parser.parse_args())
    except OneShotError as error:
        print(f"pretrain: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
