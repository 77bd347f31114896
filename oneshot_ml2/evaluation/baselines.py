"""Other ways to a schedule without measurements, which the network is held against on the same tasks.

Each takes a space and gives the index of a legal schedule, or None where it finds none. ``simulated`` is no
zero-measurement way: it spends the network's own wall time on the simulator.
"""

from __future__ import annotations

import functools
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.common.files import write_whole
from oneshot_ml2.common.parallel import in_parallel
from oneshot_ml2.common.reading import read_json, whole_number
from oneshot_ml2.corpus.read import open_corpus
from oneshot_ml2.network import picking
from oneshot_ml2.spaces.registry import DEFAULT_KIND, space_kind
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta.reasons import Reason

if TYPE_CHECKING:
    from oneshot_ml2.spaces.base import Candidates

SCHEMA = 1
# Schedules whose validity is told at once, and those timed between two looks at the clock.
_CHECKED, _ROUND = 512, 32


@dataclass(frozen=True)
class ClosedForm:
    """A space's canonical schedules, by ascending index, and their closed forms."""

    space: ScheduleSpace
    given: Candidates

    @classmethod
    def of(cls, space: ScheduleSpace) -> ClosedForm:
        return cls(space, space.record.features.candidates_at(space, space.table()))

    @property
    def indices(self) -> NDArray[np.int64]:
        """Of the schedules, int64 (n,)."""
        return self.given.indices

    def first(self, key: NDArray[np.float64]) -> int | None:
        """The legal schedule with the least ``key`` (n,); of equal ones the least bound decides, then the index."""
        order = np.lexsort((self.given.bound, key))
        found = picking.first_legal(self.space, self.indices[order])
        return None if found is None else int(self.indices[order[found]])


def fewest_bytes(table: ClosedForm) -> int | None:
    """The schedule that moves the fewest bytes (what is stored is the same for all)."""
    return table.first(table.given.reads)


def roofline(table: ClosedForm) -> int | None:
    """The schedule with the least max(compute cycles, cycles of the memory port)."""
    return table.first(table.given.roofline)


def closed_form(table: ClosedForm) -> int | None:
    """The schedule with the least estimate in closed form, which knows of heads, tails and what is not overlapped."""
    return table.first(table.given.estimate)


def simulated(space: ScheduleSpace, seconds: float) -> tuple[int | None, int]:
    """Time legal schedules on the simulator in order of their lower bound, on all cores, for ``seconds`` of wall time.

    Returns:
        The fastest of them, or the first in order if time was up before; None if no schedule is legal. And how many
        were timed.
    """
    deadline = time.perf_counter() + seconds
    table = ClosedForm.of(space)
    order = table.indices[np.argsort(table.given.bound, kind="stable")]
    best: list[tuple[int, int]] = []
    timed = 0
    first = picking.first_legal(space, order)
    if first is None:
        return None, 0
    for at in range(first, len(order), _CHECKED):
        part = order[at : at + _CHECKED]
        part = part[space.validity(part) == Reason.VALID]
        for slices in np.array_split(part, max(1, len(part) // _ROUND)):
            if time.perf_counter() >= deadline:
                return (min(best)[1] if best else int(order[first])), timed
            cycles = _timed(space, slices)
            timed += len(slices)
            best.extend(zip(cycles.tolist(), slices.tolist()))
    return min(best)[1], timed


def _timed(space: ScheduleSpace, indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """Cycles of schedules (n,), on all cores, int64 (n,)."""
    out = np.empty(len(indices), dtype=np.int64)

    def part(begin: int, end: int) -> None:
        out[begin:end] = space.measure(indices[begin:end]).cycles

    in_parallel(part, len(indices))
    return out


@dataclass(frozen=True)
class BestKnown:
    """The fastest schedule in the training corpus of each of its tasks.

    All are of the default kind of space. ``tasks``: their task features, float32 (T, features); ``values``: int64
    (T, knobs), knob values.
    """

    tasks: NDArray[np.float32]
    values: NDArray[np.int64]

    def transplanted(self, space: ScheduleSpace) -> int | None:
        """The best schedule of the nearest task that is legal here, each knob moved to its nearest candidate.

        Near: Euclidean distance of the task features, each divided by its standard deviation.
        """
        scale = self.tasks.std(axis=0)
        scale[scale == 0] = 1.0
        away = ((self.tasks - space.record.features.task_features(space)) / scale) ** 2
        nearest = np.argsort(away.sum(axis=1), kind="stable")
        rows = np.empty((len(nearest), len(space.knobs)), dtype=np.int64)
        for j, knob in enumerate(space.knobs):
            there = np.array(knob.values)
            gaps = np.abs(np.log2(1 + there) - np.log2(1 + self.values[nearest, j, None]))
            rows[:, j] = there[gaps.argmin(axis=1)]
        indices = space.canonical(space.index(rows))
        found = picking.first_legal(space, indices)
        return None if found is None else int(indices[found])


def gather(corpora: list[str]) -> BestKnown:
    """The best schedules of corpora (files or folders of shards).

    Raises:
        CorpusError: a damaged or foreign corpus.
    """
    tasks, values = [], []
    for path in corpora:
        with open_corpus(path).of_today() as corpus:
            for task in corpus:
                if task.valid.any():
                    cycles = np.where(task.valid, task.cycles, np.iinfo(np.int64).max)
                    space = task.space()
                    tasks.append(space.record.features.task_features(space))
                    values.append(task.values[cycles.argmin()])
    return BestKnown(np.array(tasks), np.array(values, dtype=np.int64))


def _columns() -> dict[str, list[str]]:
    """What the columns of `BestKnown` are."""
    record = space_kind(DEFAULT_KIND)
    return {"features": list(record.features.TASK_FEATURES), "knobs": list(record.schedules.KNOBS)}


def write_best_known(known: BestKnown, path: Path) -> None:
    """Write JSON that `read_best_known` reads."""
    head = {"schema": SCHEMA} | _columns()
    rows = [
        json.dumps([[round(float(x), 4) for x in task], values.tolist()], separators=(",", ":"))
        for task, values in zip(known.tasks, known.values)
    ]
    text = json.dumps(head)[:-1] + ', "tasks": [\n' + ",\n".join(rows) + "\n]}\n"
    write_whole(path, text)


@functools.lru_cache(maxsize=2)
def read_best_known(path: Path) -> BestKnown:
    """Read what `write_best_known` wrote.

    Raises:
        OneShotError: an unreadable or foreign file.
    """
    try:
        data: dict[str, Any] = read_json(path)
        features, names = _columns().values()
        if data["schema"] != SCHEMA or data["features"] != features:
            raise ValueError("another schema")
        if data["knobs"] != names:
            raise ValueError("of another schedule space")
        rows = data["tasks"]
        tasks = np.array([row[0] for row in rows], dtype=np.float32).reshape(len(rows), len(features))
        knobs = [whole_number(value, "a knob") for row in rows for value in row[1]]
        values = np.array(knobs, dtype=np.int64).reshape(len(rows), len(names))
        if not np.isfinite(tasks).all():
            raise ValueError("features beyond the range of numbers")
        return BestKnown(tasks, values)
    except (OneShotError, ValueError, KeyError, TypeError, IndexError) as error:
        message = f"{path}: not a table of best schedules ({error}); make it with `oneshot-ml2 corpus best`"
        raise OneShotError(message) from error
