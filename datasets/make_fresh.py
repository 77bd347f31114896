"""Draw fresh tasks that no network has seen, for ``oneshot-ml2 evaluate --tasks``:

    python datasets/make_fresh.py --seed 1 --out fresh.json

``within``: new accelerators within the ranges of the training ones; ``beyond``: accelerators that differ from those in
any way that a JSON allows; ``hls``: those of ``beyond`` with the HLS design and any of its rates. No workload has the
shape of one that is trained on, nor, on its accelerator, its loop nest. Every task has a legal schedule. A seed gives
the same tasks in every version of the space, but for those that have no schedule there.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from make_accelerators import draw, draw_beyond, legal_triples
from make_evaluation import is_new
from make_operators import key, random_operator
from make_workloads import random_workload
from tqdm import tqdm

from oneshot_ml2.common.files import write_whole
from oneshot_ml2.network.picking import legal_by_estimate
from oneshot_ml2.spaces.registry import DEFAULT_KIND, backend
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.hls_keys import KEYS, HlsTiming, field_of
from oneshot_ml2.vta.reasons import NoSchedule
from oneshot_ml2.workload.base import Workload
from oneshot_ml2.workload.lists import read_workloads

HERE = Path(__file__).parent
TRAINED_LISTS = ("train", "operators", "small")
# Draws of a workload for an accelerator on which many are without a legal schedule.
_DRAWS = 4


def within(rng: np.random.Generator) -> Accelerator:
    """An accelerator within the trained ranges."""
    return draw(rng, legal_triples())


def hls(rng: np.random.Generator) -> Accelerator:
    """One of `draw_beyond` with the HLS design, its rates drawn evenly in the logarithm; none takes longer than 500
    cycles or a millisecond.
    """
    chip = draw_beyond(rng)
    rates = {}
    for name, known in KEYS.items():
        low, high = max(known.low, 1), min(known.high, 50_000 if known.unit != "ns" else 1_000_000)
        drawn = round(float(np.exp(rng.uniform(np.log(low), np.log(high)))))
        rates[field_of(name)] = known.low if rng.random() < 0.1 else drawn
    return dataclasses.replace(chip, hls=HlsTiming(**rates), name=f"hls_{chip.name}")


GROUPS: dict[str, Callable[[np.random.Generator], Accelerator]] = {"within": within, "beyond": draw_beyond, "hls": hls}


@functools.cache
def trained_keys() -> set[tuple[object, ...]]:
    """Operator and shape of every workload that is trained on."""
    lists = (read_workloads(HERE / f"workloads/{name}.toml") for name in (*TRAINED_LISTS, "autotvm"))
    return {key(workload) for layers in lists for workload in layers}


def task(rng: np.random.Generator, chips: Callable[[np.random.Generator], Accelerator]) -> tuple[Workload, Accelerator]:
    """A workload on an accelerator of ``chips`` that have a legal schedule."""
    while True:
        chip = chips(rng)
        for _ in range(_DRAWS):
            workload = random_workload(rng) if rng.random() < 0.5 else random_operator(rng)
            if key(workload) in trained_keys():
                continue
            try:
                legal_by_estimate(ScheduleSpace(workload, chip), 1)
            except NoSchedule:
                continue
            if is_new(workload, chip, TRAINED_LISTS):
                return workload, chip


def fresh(seed: int, counts: dict[str, int]) -> list[dict[str, object]]:
    """Entries of a file of tasks: so many of each of `GROUPS`."""
    entries = []
    for number, (group, count) in enumerate(counts.items()):
        for i in tqdm(range(count), desc=group, unit="task", disable=None):
            # Each task has numbers of its own: more tasks leave the first ones as they are.
            workload, chip = task(np.random.default_rng([seed, number, i]), GROUPS[group])
            described = {"workload": workload.to_dict(), "accelerator": json.loads(chip.to_json())}
            known = {"t_star": None, "best_found": None, "status": None}
            entries.append({"id": f"{group}.{i}", "group": group} | described | {"accelerator_name": chip.name} | known)
    return entries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", required=True, metavar="FILE.json")
    for name, count in (("within", 100), ("beyond", 100), ("hls", 0)):
        parser.add_argument(f"--{name}", type=int, default=count, metavar="N", help=f"default {count}")
    args = parser.parse_args()
    entries = fresh(args.seed, {name: getattr(args, name) for name in GROUPS})
    head = json.dumps({"space_version": backend(DEFAULT_KIND).SPACE_VERSION, "seed": args.seed})[:-1]
    write_whole(args.out, head + ', "tasks": [\n' + ",\n".join(map(json.dumps, entries)) + "\n]}\n")


if __name__ == "__main__":
    main()
