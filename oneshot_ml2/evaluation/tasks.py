"""Anyone's tasks from a file: read, picked for, and held against their least latencies (docs/evaluation.md).

What the file says of T* is believed where schedules of such a workload have not changed since, and no pick beats it;
the rest is searched.
"""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from tqdm import tqdm

from oneshot_ml2.common import metrics
from oneshot_ml2.common.errors import OneShotError, OneShotWarning, first_line
from oneshot_ml2.common.json_lines import open_lines
from oneshot_ml2.common.reading import FIGURES_DECODER, read_json, shown, whole_number
from oneshot_ml2.evaluation.optimum import Optimum, Task, read_optima, read_tasks, search_all, version
from oneshot_ml2.network import picking
from oneshot_ml2.network.predictor import Predictor, digest
from oneshot_ml2.spaces.registry import DEFAULT_KIND, backend
from oneshot_ml2.vta.accelerator import DESIGNS, Accelerator
from oneshot_ml2.vta.reasons import NoSchedule
from oneshot_ml2.workload.base import Workload
from oneshot_ml2.workload.epilogue import Epilogue
from oneshot_ml2.workload.lists import Layer
from oneshot_ml2.workload.registry import operators, workload_from_dict

FORMAT = "oneshot-ml2 evaluation of tasks"
# `Outcome.source` of what has no pick: no schedule is legal; or one is, and picking it failed.
NONE, FAILURE = "none", "failed"
# The group of tasks that name none.
_GROUP = "tasks"
# What tables of workloads have beside what a workload is.
_BESIDE = {"name", "count"}

Item = TypeVar("Item")


class Picked(Protocol):
    """What is known of a pick: T* / T (0: it failed), true and predicted cycles, and the spread of log T."""

    @property
    def quality(self) -> float: ...
    @property
    def cycles(self) -> int: ...
    @property
    def predicted(self) -> float: ...
    @property
    def spread(self) -> float: ...


def summarise_picks(rows: Sequence[Picked]) -> dict[str, float | int]:
    """`metrics.summarise_picks` of rows."""
    return metrics.summarise_picks(
        *([getattr(row, name) for row in rows] for name in ("quality", "cycles", "predicted", "spread"))
    )


def evenly(items: list[Item], limit: int) -> list[Item]:
    """``limit`` of the items, evenly spread; 0: all."""
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, limit).astype(int))] if limit else items


# Reading -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Given:
    """A task of a file.

    Attributes:
        id: as it stands there; of entries without one their number from 1.
        group: the tasks that it is summed up with.
        task: its workload and accelerator.
        t_star, best_found: cycles of this version's space, if the file says them; ``t_star`` is the least of all.
    """

    id: str | int
    group: str
    task: Task
    t_star: float | None = None
    best_found: float | None = None


def read_given(path: str | Path) -> list[Given]:
    """The tasks of a file (JSON, docs/evaluation.md), or of an evaluation set (`read_tasks`).

    Raises:
        OneShotError: an unreadable file, or a task that cannot be (says which).
    """
    path = Path(path)
    data = read_json(path, decoder=FIGURES_DECODER)
    entries = data.get("tasks") if isinstance(data, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise OneShotError(f'{path}: no tasks in it; expected {{"tasks": [{{"workload": ..., "accelerator": ...}}]}}')
    if not entries:
        raise OneShotError(f"{path}: an empty list of tasks; give at least one")
    if "workloads" in data:
        return [Given(f"{one.layer.name} {one.accelerator.name}", path.stem, one) for one in read_tasks(path)]
    stated, ignored = data.get("space_version"), set[str]()
    given = []
    for number, entry in enumerate(entries, 1):
        name = entry.get("id", number)
        try:
            given.append(_given(name, entry, stated, ignored))
        except (OneShotError, ValueError) as error:
            raise OneShotError(f"{path}: task {shown(name)}: {error}") from error
    if ignored:
        text = f"{path}: unknown keys of workloads are ignored: {', '.join(sorted(ignored))}; are they spelt right?"
        warnings.warn(text, OneShotWarning, stacklevel=2)
    return given


def _given(name: Any, entry: Mapping[str, Any], stated: Any, ignored: set[str]) -> Given:
    """A task; ``stated``: the version of the space that T* is said to be of; ``ignored`` gets keys that are unknown."""
    if type(name) not in (str, int):
        raise ValueError(f"id is {shown(name)}; allowed: a text or a whole number")
    for key in ("workload", "accelerator"):
        if not isinstance(entry.get(key), dict):
            raise ValueError(f"{key} is {shown(entry.get(key))}; allowed: an object, as `to_dict` and `to_json` write")
    group = entry.get("group") or _GROUP
    if not isinstance(group, str):
        raise ValueError(f"group is {shown(group)}; allowed: a text")
    described: dict[str, Any] = entry["accelerator"]
    # Corpora keep the name beside the JSON.
    chip_name = entry.get("accelerator_name") or (described.get("name") if "config" in described else None) or "custom"
    accelerator = Accelerator.from_json(described.get("config", described), name=str(chip_name))
    workload = _workload(entry["workload"], ignored)
    task = Task(Layer(str(name), workload), accelerator, accelerator.name)
    space = backend(DEFAULT_KIND)
    own = type(stated) is int and space.version_of(workload) <= stated <= space.SPACE_VERSION
    figures = (_cycles(entry, key) if own else None for key in ("t_star", "best_found"))
    return Given(name, group, task, *figures)


def _workload(data: Mapping[str, Any], ignored: set[str]) -> Workload:
    """A workload of the keys that are known."""
    kind = operators().get(str(data.get("op")))
    if kind is None:
        return workload_from_dict(data)
    names = {field.name for field in dataclasses.fields(kind)} | {"op"}  # type: ignore[arg-type]
    known = {key: value for key, value in data.items() if key in names}
    ignored |= {key for key in data if key not in names | _BESIDE}
    if isinstance(known.get("epilogue"), dict):
        names = {field.name for field in dataclasses.fields(Epilogue)}
        ignored |= {f"epilogue.{key}" for key in known["epilogue"] if key not in names}
        known["epilogue"] = {key: value for key, value in known["epilogue"].items() if key in names}
    return workload_from_dict(known)


def _cycles(entry: Mapping[str, Any], key: str) -> float | None:
    """Cycles of an entry; None where they are not known: null, or nothing positive."""
    value = entry.get(key)
    if value is not None and type(value) not in (int, float):
        raise ValueError(f"{key} is {shown(value)}; allowed: cycles or null")
    return value if value is not None and 0 < value < math.inf else None


# Judging -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What became of a task's pick.

    Attributes:
        task: its `Task.id`.
        cycles: of the pick, simulated; 0 without one.
        predicted, spread, source, seconds: of the pick; without one 0, 0, `NONE` or `FAILURE`, and 0.
        problem: why there is none.
        warnings: the pick's.
    """

    task: str
    cycles: int
    predicted: float
    spread: float
    source: str
    seconds: float
    problem: str = ""
    warnings: tuple[str, ...] = ()


def picked(task: Task, network: Predictor) -> Outcome:
    """Pick for a task, and only then time the pick; whatever goes wrong in that is the pick's failure."""
    try:
        made = picking.pick(task.workload, task.accelerator, network)
        cycles = int(made.space.measure(np.array([made.index])).cycles[0])
    except NoSchedule as error:
        return Outcome(task.id, 0, 0.0, 0.0, NONE, 0.0, first_line(error))
    except Exception as error:
        return Outcome(task.id, 0, 0.0, 0.0, FAILURE, 0.0, f"{type(error).__name__}: {first_line(error)}")
    if cycles < 1:
        return Outcome(task.id, 0, 0.0, 0.0, FAILURE, made.seconds, "the pick's program does not run")
    return Outcome(
        task.id, cycles, made.predicted_cycles, made.spread, made.source, made.seconds, warnings=made.warnings
    )


def _outcome(entry: dict[str, Any]) -> Outcome:
    """An entry of the log; raises KeyError, TypeError or ValueError."""
    found = Outcome(**(entry | {"warnings": tuple(entry["warnings"])}))
    whole_number(found.cycles, "cycles", 0)
    return found


@dataclass(frozen=True)
class Row:
    """A task, judged.

    Attributes:
        given, outcome: the task and what became of its pick.
        t_star: the least cycles that are known of any schedule; None: none are known.
        proven: whether no schedule takes less.
    """

    given: Given
    outcome: Outcome
    t_star: float | None
    proven: bool

    @property
    def legal(self) -> bool:
        """Whether a schedule is legal, or may be: else the task does not count."""
        return self.outcome.source != NONE

    @property
    def quality(self) -> float:
        """T* / T of the pick; 0 where it failed."""
        return metrics.pick_quality(self.t_star or 0.0, self.outcome.cycles)

    @property
    def cycles(self) -> int:
        return self.outcome.cycles

    @property
    def predicted(self) -> float:
        return self.outcome.predicted

    @property
    def spread(self) -> float:
        return self.outcome.spread

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; what there is not is None."""
        there = self.outcome.cycles > 0
        return {
            "id": self.given.id,
            "group": self.given.group,
            "quality": self.quality if self.legal else None,
            "t_star": self.t_star,
            "proven": self.proven,
            "cycles": self.cycles if there else None,
            "predicted": self.predicted if there else None,
            "spread": self.spread if there else None,
            "source": self.outcome.source,
            "seconds": self.outcome.seconds,
            "problem": self.outcome.problem or None,
            "warnings": list(self.outcome.warnings),
        }


def _row(given: Given, outcome: Outcome, found: Optimum | None) -> Row:
    """A task with its T*: the file's, or what the search ``found``."""
    if outcome.source == NONE and (given.t_star or given.best_found):
        # The file has a schedule.
        outcome = dataclasses.replace(outcome, source=FAILURE)
    if found is None:
        return Row(given, outcome, given.t_star or given.best_found, given.t_star is not None)
    known = [cycles for cycles in (found.best_timed, given.best_found, outcome.cycles) if cycles and cycles > 0]
    return Row(given, outcome, min(known), found.closed and min(known) == found.best_timed)


def judge(
    given: list[Given], networks: Mapping[str, Predictor], weights: str, out: Path, log: Path, limit: float
) -> list[Row]:
    """Pick for tasks, then find T* where no file says it, and hold the picks against it.

    Args:
        networks: what picks, by design; ``weights``: their name or file, or empty, for `search_all`.
        out: a table of optima that searches go on with, see `search_all`.
        log: JSON Lines that get every pick when it is made; tasks that are there are not picked for again.
        limit: seconds of a search for T*.

    Raises:
        OneShotError: a log of other weights, or that another process writes; likewise the table.
    """
    tasks = list({one.task.id: one.task for one in given}.values())
    versions, digests = [version(design) for design in DESIGNS], {key: digest(one) for key, one in networks.items()}
    header = {"format": FORMAT, "version": versions, "weights": digests}
    with open_lines(log, _outcome, header) as opened:
        outcomes = {outcome.task: outcome for outcome in opened.entries}
        for task in tqdm(tasks, desc="picks", unit="task", disable=None):
            if task.id not in outcomes:
                outcomes[task.id] = picked(task, networks[task.accelerator.design])
                opened.append([dataclasses.asdict(outcomes[task.id])])
    unknown = {one.task.id for one in given if _unknown(one, outcomes[one.task.id])}
    found = _searched([task for task in tasks if task.id in unknown], out, limit, weights)
    return [_row(one, outcomes[one.task.id], found.get(one.task.id)) for one in given]


def _unknown(given: Given, outcome: Outcome) -> bool:
    """Whether T* is to be searched: there is a pick, and no file says T*, or the pick beats what it says."""
    return outcome.cycles > 0 and (given.t_star is None or outcome.cycles < given.t_star)


def _searched(tasks: list[Task], out: Path, limit: float, weights: str) -> dict[str, Optimum]:
    """T* of tasks, by `Task.id`, of the table ``out`` or searched and added to it."""
    if not tasks:
        return {}
    searches = search_all(tasks, out, limit, min(len(tasks), os.cpu_count() or 1), weights)
    for _ in tqdm(searches, desc="T*", total=len(tasks), unit="task", disable=None):
        pass
    wanted = {task.id: task.version for task in tasks}
    return {key: row for key, row in read_optima(out).items() if wanted.get(key) == row.version}


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """The figures of each group and of all tasks that count, and each task's row."""
    counted = [row for row in rows if row.legal]
    groups = dict.fromkeys(row.given.group for row in rows)
    return {
        "groups": {name: summarise_picks([row for row in counted if row.given.group == name]) for name in groups},
        "all": summarise_picks(counted),
        "tasks": [row.to_dict() for row in rows],
    }
