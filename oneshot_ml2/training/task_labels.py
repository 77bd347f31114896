"""Collects labels of the task network: the simulated cycles of the picks of (layer, accelerator) pairs.

Accelerators come in families that differ in their SRAMs alone, so that a space's closed forms are computed once for
several labels. Of a member's space the best in closed form are judged by the network that picks, and the
first few are simulated, and those that closed forms put first: the first one's cycles are the pick's, the least stand
for T*. A family's randomness depends on
the seed and its number alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from oneshot_ml2.common.errors import CorpusError
from oneshot_ml2.common.files import locked
from oneshot_ml2.corpus.format import workload_text
from oneshot_ml2.network.predictor import Predictor, digest
from oneshot_ml2.spaces.protocols import ScheduleFamily
from oneshot_ml2.spaces.registry import DEFAULT_KIND, backend, space_kind
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.training.task_shards import SRAMS, Labels, read_origin, write_labels
from oneshot_ml2.vta.accelerator import DESIGNS, Accelerator
from oneshot_ml2.vta.bound import engine_bound
from oneshot_ml2.vta.drawn import random_accelerator, with_random_srams
from oneshot_ml2.vta.hls_keys import HlsTiming
from oneshot_ml2.vta.reasons import InvalidSchedule
from oneshot_ml2.workload.base import Workload

# Families of a shard, and accelerators of a family.
FAMILIES, MEMBERS = 32, 10
# Of a member's schedules the best by each guess in closed form that the network judges; how many of those are
# simulated, and the instructions of all of them, as long programs take long.
_JUDGED, _TIMED, _INSTRUCTIONS = 320, 6, 60_000
# Of the best by each guess in closed form, so many are simulated, too.
_GUESSED = 4
# Where none of the first few lowers, so many more are tried.
_MORE = 64
# Tasks above are left out, as they take long: cycles of the engine bound.
_LARGEST = 6_000_000


def draw_family(
    workloads: Sequence[Workload], seed: int, number: int, stock: float = 0.0
) -> tuple[Workload, list[Accelerator]]:
    """A workload and `MEMBERS` accelerators that differ in their SRAMs alone.

    ``stock``: the share of families whose memory, or rates, are the design's defaults, as those of a grid are.
    """
    rng = np.random.default_rng([seed, number])
    workload = workloads[int(rng.integers(len(workloads)))]
    first = random_accelerator(rng, DESIGNS[int(rng.integers(len(DESIGNS)))])
    if stock and rng.random() < stock:
        defaults: dict[str, Any] = {"hls": HlsTiming()} if first.hls else {"memory_latency": 16, "burst_len_bits": 8}
        first = dataclasses.replace(first, **defaults)
    return workload, [first, *(with_random_srams(rng, first) for _ in range(MEMBERS - 1))]


def _least(places: NDArray[np.int64], values: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    """The ``k`` of some places whose values are the least, the least first."""
    near = np.argpartition(values, k)[:k] if len(values) > k else np.arange(len(values))
    return places[near[np.argsort(values[near], kind="stable")]]


def timed_best(
    family: ScheduleFamily, workload: Workload, member: Accelerator, network: Predictor
) -> NDArray[np.int64]:
    """Simulated cycles of a member's pick and of what the network ranks next, int64 (k,); empty: none is legal."""
    families, held = space_kind(DEFAULT_KIND).families, family.held_by(member)
    guesses = (families.OBJECTIVES[0], families.OBJECTIVES[-1])
    sorts = [_least(held, family.objective(name)[held], _JUDGED) for name in guesses]
    judged = np.unique(np.concatenate(sorts))
    # What the closed form lets through mostly lowers, so the network's own opinion of that is not asked.
    scores = network.judge(ScheduleSpace(workload, member), family.at(member, judged))
    order = judged[np.argsort(scores.cost, kind="stable")]
    length = family.at(member, order[:1]).summary[:, families.SUMMARY.index("instructions")].sum()
    few = max(1, min(_TIMED, int(_INSTRUCTIONS / max(length, 1.0))))
    more = min(_GUESSED, few)
    # Far from what the network knows, closed forms may know better.
    first = np.array(list(dict.fromkeys([*order[:few], *sorts[0][:more], *sorts[-1][:more]])), dtype=np.int64)
    for part in (first, order[few : few + _MORE]):
        values = family.at(member, part).values
        cycles = backend(DEFAULT_KIND).measure_batch(workload, member, values).cycles
        if (cycles > 0).any():
            return cycles[cycles > 0]
    return np.empty(0, dtype=np.int64)


def label_family(workload: Workload, members: Sequence[Accelerator], networks: Mapping[str, Predictor]) -> Labels:
    """The labels of a workload on a family's accelerators; none where it is too large or no schedule is legal.

    ``networks``: what picks, by design.
    """
    bounds = [engine_bound(workload, member).bound for member in members]
    rows = [] if max(bounds) > _LARGEST else _rows(workload, members, bounds, networks)
    return Labels.of_family(workload, members[0], rows)


def _rows(
    workload: Workload, members: Sequence[Accelerator], bounds: Sequence[int], networks: Mapping[str, Predictor]
) -> list[dict[str, Any]]:
    """Of each member that has a label its columns of `Labels`."""
    try:
        family = space_kind(DEFAULT_KIND).families.Family.of(workload, members)
    except InvalidSchedule:
        return []
    rows = []
    for member, forms, bound in zip(members, family.closed(members), bounds, strict=True):
        cycles = np.empty(0, dtype=np.int64)
        if not np.isnan(forms).any():
            cycles = timed_best(family, workload, member, networks[member.design])
        if len(cycles):
            rows.append(
                {
                    "sizes": [getattr(member, f"log_{name}_buff_size") for name in SRAMS],
                    "cycles": cycles[0],
                    "least": cycles.min(),
                    "engine_bound": bound,
                    "closed": forms,
                }
            )
    return rows


def collect_labels(
    workloads: Sequence[Workload],
    networks: Mapping[str, Predictor],
    out: str | Path,
    shards: int,
    seed: int = 1,
    stock: float = 0.0,
) -> int:
    """Label families in shards 0 to ``shards`` - 1 of a folder, going on from those that are there; Ctrl-C loses one.

    ``stock``: see `draw_family`.

    Returns:
        Pairs labelled in this run.

    Raises:
        CorpusError: a folder of another collection, or that another process writes; a full disk.
    """
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CorpusError(f"cannot write to {folder}: {error.strerror}") from error
    text = repr(
        [seed, stock, [workload_text(one) for one in workloads], sorted((d, digest(n)) for d, n in networks.items())]
    )
    origin = hashlib.sha256(text.encode()).hexdigest()
    paths = [folder / f"labels-{number:05d}.h5" for number in range(shards)]
    pairs = 0
    with locked(folder / "labels", f"{folder}: another collection is at work there; wait for it", CorpusError):
        there = sorted(folder.glob("labels-*.h5"))
        if there and read_origin(there[0]) != origin:
            raise CorpusError(f"{folder} was begun with other workloads, weights or seed; give another folder")
        todo = [number for number, path in enumerate(paths) if not path.exists()]
        with tqdm(total=len(todo) * FAMILIES, desc="labels", unit="family", disable=None) as bar:
            for number in todo:
                parts = []
                for family in range(number * FAMILIES, (number + 1) * FAMILIES):
                    parts.append(label_family(*draw_family(workloads, seed, family, stock), networks))
                    bar.update()
                labels = Labels.joined(parts)
                write_labels(paths[number], labels, origin)
                pairs += len(labels)
                bar.set_postfix(pairs=pairs)
    return pairs
