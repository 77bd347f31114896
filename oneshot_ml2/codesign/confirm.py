"""Real picks on accelerators, and what those take on the simulator.

Members of one family share the schedules of a workload and their closed forms, which take most of a pick's time: they
are listed once for all of them. Members on which a workload's loop nest is the same have the same pick.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from oneshot_ml2.codesign.models import Model
from oneshot_ml2.codesign.sweep import images_of
from oneshot_ml2.common.grouping import equal_places
from oneshot_ml2.common.reading import whole_number
from oneshot_ml2.models.costs import cost_of
from oneshot_ml2.network import picking
from oneshot_ml2.network.picking import Pick
from oneshot_ml2.spaces.registry import DEFAULT_KIND, space_kind
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.breakdown import PARTS
from oneshot_ml2.vta.reasons import InvalidSchedule
from oneshot_ml2.workload.base import Workload

# Workloads that are picked for at the same time: while one waits for Python, the other computes.
_AT_ONCE = 2
# Members that are confirmed together; what is known of them is lost together, too.
TOGETHER = 16


@dataclass(frozen=True)
class Confirmed:
    """What real picks of models take on an accelerator.

    Attributes:
        accelerator: its JSON, by which it is known.
        cycles: of each model, by name; as the network predicts its picks, or ``simulated``.
        parts: where the cycles go, of each model: `breakdown.PARTS` -> cycles; only of what is simulated.
    """

    accelerator: str
    cycles: Mapping[str, int]
    simulated: bool
    parts: Mapping[str, Mapping[str, int]]

    def to_dict(self) -> dict[str, Any]:
        """An entry of a log."""
        return {"confirmed": self.accelerator, "cycles": self.cycles, "simulated": self.simulated, "parts": self.parts}

    @classmethod
    def from_dict(cls, entry: dict[str, Any]) -> Confirmed:
        """What `to_dict` gives; raises KeyError, TypeError or ValueError for what is none."""
        cycles = {str(name): whole_number(value, "cycles", 1) for name, value in entry["cycles"].items()}
        parts = {
            str(name): {part: whole_number(own[part], part, 0) for part in PARTS}
            for name, own in entry["parts"].items()
        }
        if not isinstance(entry["confirmed"], str) or not isinstance(entry["simulated"], bool):
            raise ValueError("not confirmed")
        return cls(entry["confirmed"], cycles, entry["simulated"], parts)


@dataclass(frozen=True)
class _Taken:
    """What a pick takes: cycles, and where they go if it was simulated."""

    cycles: float
    parts: Mapping[str, int]


def confirm(
    models: Sequence[Model],
    accelerators: Sequence[Accelerator],
    throughput: bool,
    verify: bool,
) -> Iterator[tuple[int, Confirmed | None]]:
    """Pick for every layer of the models on accelerators; with ``verify`` simulate the picks.

    Yields:
        The position of each accelerator, in an order that families give, and what is known of it then. None: a layer
        has no legal schedule there.
    """
    families = space_kind(DEFAULT_KIND).families
    for group in equal_places(map(families.family_key, accelerators)):
        for begin in range(0, len(group), TOGETHER):
            places = group[begin : begin + TOGETHER]
            chips = [accelerators[place] for place in places]
            yield from zip(places, _confirmed(models, chips, throughput, verify), strict=True)


def _confirmed(
    models: Sequence[Model], chips: Sequence[Accelerator], throughput: bool, verify: bool
) -> list[Confirmed | None]:
    """What is known of members of one family."""
    # What is computed depends on what no SRAM changes.
    counts = [model.workloads(chips[0], images_of(chips[0], throughput)) for model in models]
    workloads = list(dict.fromkeys(workload for own in counts for workload in own))
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        futures = [pool.submit(_taken, workload, chips, verify) for workload in workloads]
        try:
            taken = dict(zip(workloads, (future.result() for future in futures), strict=True))
        except BaseException:
            # What has not begun yet need not delay an interrupt.
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    found: list[Confirmed | None] = []
    for number, chip in enumerate(chips):
        rows = {workload: own[number] for workload, own in taken.items()}
        made = {workload: row for workload, row in rows.items() if row is not None}
        found.append(_summed(models, counts, chip, made, verify) if len(made) == len(rows) else None)
    return found


def _summed(
    models: Sequence[Model],
    counts: Sequence[Mapping[Workload, int]],
    chip: Accelerator,
    taken: Mapping[Workload, _Taken],
    verify: bool,
) -> Confirmed:
    """What the picks of models take on an accelerator, in all."""
    cycles, parts = {}, {}
    for model, own in zip(models, counts, strict=True):
        if verify:
            total: Counter[str] = Counter()
            for workload, count in own.items():
                total.update({part: count * value for part, value in taken[workload].parts.items()})
            parts[model.name] = {part: total[part] for part in PARTS}
        cycles[model.name] = max(1, round(sum(count * taken[workload].cycles for workload, count in own.items())))
    return Confirmed(chip.to_json(), cycles, verify, parts)


def _taken(workload: Workload, chips: Sequence[Accelerator], verify: bool) -> list[_Taken | None]:
    """What the picks of a workload take on members of one family; None where no schedule is legal."""
    families = space_kind(DEFAULT_KIND).families
    nests = families.nests(workload, chips)
    _, firsts, same = np.unique(nests, return_index=True, return_inverse=True)
    try:
        several = len(firsts) > 1
        listing = families.Listing.of(workload, [chips[place] for place in firsts.tolist()]) if several else None
    except InvalidSchedule:
        return [None] * len(chips)
    found: list[_Taken | None] = []
    for place in firsts.tolist():
        try:
            listed = None if listing is None else listing.held_by(chips[place])
            pick = picking.pick(workload, chips[place], listed=listed)
        except InvalidSchedule:
            found.append(None)
            continue
        found.append(_cost(pick, verify))
    return [found[number] for number in same.tolist()]


def _cost(pick: Pick, verify: bool) -> _Taken:
    if not verify:
        return _Taken(pick.predicted_cycles, {})
    cost = cost_of(pick)
    return _Taken(cost.cycles, cost.parts)
