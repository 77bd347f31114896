"""Train the task network on the labels that `collect_tasks.py` left:

    python train/tasks.py --labels corpus/tasks corpus/tasks-stock --out pretrained/tasks@1

A few minutes on two cores for 100,000 pairs.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.training.settings import read_settings
from oneshot_ml2.training.task_shards import read_all
from oneshot_ml2.training.tasks import SETS, TaskSettings, make_task_data, train_tasks


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", required=True, nargs="+", metavar="FOLDER", help="shards of labels")
    parser.add_argument("--out", required=True, metavar="FILE", help="weights, with a card beside them")
    parser.add_argument(
        "--settings", default=str(Path(__file__).with_suffix(".toml")), metavar="FILE", help="default train/tasks.toml"
    )
    args = parser.parse_args()
    try:
        settings = read_settings(args.settings, TaskSettings)
        labels = read_all(*args.labels)
        digest = hashlib.sha256(labels.least.tobytes() + labels.sizes.tobytes() + labels.closed.tobytes()).hexdigest()
        network = train_tasks(make_task_data(labels), settings, {"corpus": [digest]}, print)
        network.save(args.out)
    except OneShotError as error:
        print(f"tasks: {error}", file=sys.stderr)
        return 2
    last = network.card["history"][-1]
    for name in SETS:
        print(f"unseen {name}: " + ", ".join(f"{key} {value:.4f}" for key, value in last[name].items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
