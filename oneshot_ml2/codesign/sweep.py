"""Predicted cycles of models on many accelerators, by the task network; logged, so that the next run goes on.

Accelerators of one block and batch share the schedules of a workload, and those that differ in SRAMs alone their closed
forms, so the time of a sweep hardly depends on how many sizes there are.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from oneshot_ml2.codesign.models import Model
from oneshot_ml2.common.grouping import equal_places
from oneshot_ml2.common.reading import whole_number
from oneshot_ml2.corpus.format import workload_text
from oneshot_ml2.network.tasks import by_shape
from oneshot_ml2.spaces.registry import DEFAULT_KIND, space_kind
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.reasons import InvalidSchedule
from oneshot_ml2.workload.base import Workload

# A unit of work and of the log: the cycles of a workload on the accelerators of one block and batch.
Known = Mapping[str, NDArray[np.float64]]


class Teller(Protocol):
    """What tells cycles of workloads on accelerators: `TaskNetwork`, or a floor of them."""

    def least(self, workload: Workload, accelerators: Sequence[Accelerator]) -> NDArray[np.float64]:
        """Cycles of a workload on accelerators, float64 (m,); infinite where no schedule is legal."""
        ...


@dataclass(frozen=True)
class _Unit:
    """A workload on accelerators of one block and batch, at some places among all."""

    workload: Workload
    places: tuple[int, ...]
    key: str


def unit_key(workload: Workload, accelerators: Sequence[str]) -> str:
    """Identifies a unit in a log, by the accelerators' JSON."""
    text = hashlib.sha256(workload_text(workload).encode())
    for one in accelerators:
        text.update(one.encode())
    return text.hexdigest()[:16]


def read_unit(entry: dict[str, Any]) -> tuple[str, NDArray[np.float64]]:
    """An entry of a log: `entry_of`; raises KeyError, TypeError or ValueError for what is none."""
    cycles = [np.inf if value is None else float(whole_number(value, "cycles", 1)) for value in entry["cycles"]]
    if not isinstance(entry["unit"], str):
        raise ValueError("no unit")
    return entry["unit"], np.array(cycles)


def entry_of(key: str, cycles: NDArray[np.float64]) -> dict[str, Any]:
    """A unit's entry in a log: cycles, None where no schedule is legal."""
    return {"unit": key, "cycles": [None if np.isinf(value) else max(1, round(value)) for value in cycles.tolist()]}


def images_of(accelerator: Accelerator, throughput: bool) -> int:
    """Images that a model is run on at once: one, or for throughput as many as fill the accelerator's batch."""
    return accelerator.batch if throughput else 1


def sweep(
    models: Sequence[Model],
    accelerators: Sequence[Accelerator],
    network: Teller,
    throughput: bool = False,
    known: Known | None = None,
    keep: Callable[[dict[str, Any]], None] = lambda entry: None,
    progress: bool = False,
) -> NDArray[np.float64]:
    """Predicted cycles of each model on each accelerator, float64 (models, accelerators); infinite: cannot run there.

    Args:
        network: the task network, or what tells something else of a workload on accelerators.
        throughput: each accelerator gets as many images at once as it has batch rows; cycles are of all of them.
        known: cycles by `unit_key`, which are not predicted again.
        keep: told of each unit, as soon as it is done, what `read_unit` reads.
        progress: show a bar on stderr.
    """
    counts, units = _units(models, accelerators, throughput)
    cycles: dict[tuple[Workload, int], float] = {}
    found = dict(known or {})
    todo = [unit for unit in units if len(found.get(unit.key, ())) != len(unit.places)]

    def one(unit: _Unit) -> NDArray[np.float64]:
        try:
            return network.least(unit.workload, [accelerators[place] for place in unit.places])
        except InvalidSchedule:
            return np.full(len(unit.places), np.inf)

    bar = tqdm(
        total=len(units), initial=len(units) - len(todo), desc="sweep", unit="unit", disable=None if progress else True
    )
    with bar, ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        futures = {pool.submit(one, unit): unit for unit in todo}
        try:
            for future in as_completed(futures):
                unit = futures[future]
                entry = entry_of(unit.key, future.result())
                keep(entry)
                # As the log has them, so that a run that goes on gives the same.
                found[unit.key] = read_unit(entry)[1]
                bar.update()
        except BaseException:
            # What has not begun need not delay an interrupt.
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    for unit in units:
        cycles |= {(unit.workload, place): value for place, value in zip(unit.places, found[unit.key].tolist())}
    return np.array(
        [
            [sum(count * cycles[workload, place] for workload, count in own.items()) for place, own in enumerate(rows)]
            for rows in counts
        ]
    )


def _units(
    models: Sequence[Model], accelerators: Sequence[Accelerator], throughput: bool
) -> tuple[list[list[Mapping[Workload, int]]], list[_Unit]]:
    """What each model is on each accelerator (models, accelerators), and the units that this takes."""
    families = space_kind(DEFAULT_KIND).families
    told = [accelerator.to_json() for accelerator in accelerators]
    counts: list[list[Mapping[Workload, int]]] = [[{}] * len(accelerators) for _ in models]
    units = []
    for shape in by_shape(accelerators):
        needed: dict[Workload, list[int]] = {}
        for group in equal_places(families.family_key(accelerators[place]) for place in shape):
            places = [shape[number] for number in group]
            # What is computed depends on what no SRAM changes.
            chip = accelerators[places[0]]
            for number, model in enumerate(models):
                own = model.workloads(chip, images_of(chip, throughput))
                for place in places:
                    counts[number][place] = own
                for workload in own:
                    needed.setdefault(workload, []).extend(places)
        for workload, wanted in needed.items():
            at = tuple(dict.fromkeys(wanted))
            units.append(_Unit(workload, at, unit_key(workload, [told[place] for place in at])))
    return counts, units
