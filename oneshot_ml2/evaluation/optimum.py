"""The least latency T* of a task, exactly: schedules are timed in order of their proven lower bound.

``oneshot-ml2 optimum`` writes frozen tables that `evaluate` reads: for every task T*, how it was found, and the
cycles of a uniform sample of the space.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.children import end_with_parent
from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.common.json_lines import find, open_lines, told
from oneshot_ml2.common.reading import read_json, shown, whole_number
from oneshot_ml2.corpus.format import task_id
from oneshot_ml2.network import picking
from oneshot_ml2.spaces.registry import DEFAULT_KIND, backend
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta.accelerator import DESIGNS, Accelerator
from oneshot_ml2.vta.hls_keys import HlsTiming
from oneshot_ml2.workload.base import Workload
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.lists import Layer, read_layers

SCHEMA = 1
# Schedules of the uniform sample that is timed beside the search.
SAMPLE = 2000
_FIRST_BATCH = 64
_LARGEST_BATCH = 2048


@dataclass(frozen=True)
class Optimum:
    """The search for T* of one task.

    Attributes:
        task: see `corpus.task_id`.
        workload, accelerator: names in the evaluation set; ``count``: how often the layer occurs.
        version: of space and timing, see `Task.version`.
        size: canonical schedules of the space.
        timed: schedules looked at by the search, invalid ones included.
        best: T* in cycles: the least timed if the search closed, else the bound at its stop; -1 if none is valid.
        best_timed: the least cycles timed; ``best_index``: of which schedule (-1: none).
        bound_at_stop: every schedule that was not looked at has at least this lower bound; -1: all were.
        closed: whether T* is exact.
        seconds: wall time of the search.
        sample_cycles: cycles of :func:`sample_of` the space, -1 where invalid.
    """

    task: str
    workload: str
    accelerator: str
    count: int
    version: str
    size: int
    timed: int
    best: int
    best_timed: int
    best_index: int
    bound_at_stop: int
    closed: bool
    seconds: float
    sample_cycles: list[int]

    @property
    def median_ratio(self) -> float:
        """T* over the median valid schedule's cycles, of the sample; NaN without a valid one."""
        valid = self.valid_cycles
        return self.best / float(np.median(valid)) if len(valid) else float("nan")

    @property
    def near_share(self) -> float:
        """Share of the sample's valid schedules within 5 % of T*; NaN without a valid one."""
        valid = self.valid_cycles
        return float((valid <= 1.05 * self.best).mean()) if len(valid) else float("nan")

    @property
    def valid_cycles(self) -> NDArray[np.int64]:
        """Cycles of the sample's valid schedules, int64 (m,)."""
        cycles = np.array(self.sample_cycles, dtype=np.int64)
        return cycles[cycles > 0]


@functools.cache
def _timing(design: str) -> str:
    """A digest of what a few programs take on a design."""
    chip = dataclasses.replace(Accelerator.load("pynq"), hls=HlsTiming() if design == "hls" else None)
    space = ScheduleSpace(Conv2d(1, 32, 14, 14, 64, 3, 3, padding=1), chip)
    cycles = space.measure(sample_of(space)[:64]).cycles
    return hashlib.sha256(np.ascontiguousarray(cycles, dtype="<i8").data).hexdigest()[:12]


def version(design: str = DESIGNS[0], space_version: int | None = None) -> str:
    """What T* depends on: a version of the space (None: the installed one), and how long programs take on a design."""
    return f"{DEFAULT_KIND}-{space_version or backend(DEFAULT_KIND).SPACE_VERSION}-{_timing(design)}"


def sample_of(space: ScheduleSpace) -> NDArray[np.int64]:
    """The `SAMPLE` canonical schedules whose cycles stand in the tables: uniform, always the same for a space."""
    return space.sample(np.random.default_rng(len(space)), SAMPLE)


@dataclass(frozen=True)
class Search:
    """Outcome of :func:`search`: see the fields of the same names in `Optimum`."""

    timed: int
    best_timed: int
    best_index: int
    bound_at_stop: int
    closed: bool
    seconds: float


def search(space: ScheduleSpace, limit: float, first: NDArray[np.int64] | None = None) -> Search:
    """Time schedules in ascending order of LB until the next LB reaches the best, or ``limit`` seconds have passed.

    ``first``: schedules to time before all others; a fast one among them makes the search short, and T* no other.
    """
    began = time.perf_counter()
    indices = space.table()
    bound = space.bound(indices)
    order = np.argsort(bound, kind="stable")
    indices, bound = indices[order], bound[order]
    best, best_index, timed = -1, -1, 0

    def look(part: NDArray[np.int64]) -> None:
        nonlocal best, best_index, timed
        cycles = space.measure(part).cycles
        timed += len(part)
        valid = np.flatnonzero(cycles > 0)
        if len(valid):
            fastest = valid[cycles[valid].argmin()]
            if best < 0 or cycles[fastest] < best:
                best, best_index = int(cycles[fastest]), int(part[fastest])

    if first is not None and len(first):
        look(first)
    at, batch = 0, _FIRST_BATCH
    while at < len(indices):
        if best >= 0 and bound[at] >= best:
            return Search(timed, best, best_index, int(bound[at]), True, time.perf_counter() - began)
        if time.perf_counter() - began > limit:
            return Search(timed, best, best_index, int(bound[at]), False, time.perf_counter() - began)
        end = min(at + batch, len(indices))
        if best >= 0:
            # Nothing beyond the best's own place in the order can win.
            end = min(end, int(np.searchsorted(bound, best, side="left")))
        look(indices[at:end])
        at, batch = end, min(2 * batch, _LARGEST_BATCH)
    return Search(timed, best, best_index, -1, True, time.perf_counter() - began)


@dataclass(frozen=True)
class Task:
    """A row of an evaluation set."""

    layer: Layer
    accelerator: Accelerator
    accelerator_path: str

    @property
    def workload(self) -> Workload:
        return self.layer.workload

    @property
    def id(self) -> str:
        """See `corpus.task_id`."""
        return task_id(self.workload, self.accelerator, DEFAULT_KIND)

    @property
    def version(self) -> str:
        """:func:`version` of its design, and of what last changed schedules of its workload."""
        return version(self.accelerator.design, backend(DEFAULT_KIND).version_of(self.workload))

    def space(self) -> ScheduleSpace:
        """The task's space, of the default kind."""
        return ScheduleSpace(self.workload, self.accelerator)


def read_tasks(path: str | Path) -> list[Task]:
    """The tasks of an evaluation set (JSON, `datasets/make_evaluation.py`), paths relative to its parent folder.

    An accelerator is a path, or the name of a preset.

    Of a set of several workload lists, layers are named ``<list>:<layer>``.

    Raises:
        OneShotError: an unreadable file, or a layer that the workload list does not have.
    """
    path = Path(path)
    try:
        data = read_json(path)
        base = path.parent.parent
        lists = data["workloads"]
        if isinstance(lists, str):
            layers = {layer.name: layer for layer in read_layers(base / lists)}
        else:
            found = [(f"{Path(path).stem}:", layer) for path in lists for layer in read_layers(base / path)]
            named = [dataclasses.replace(layer, name=prefix + layer.name) for prefix, layer in found]
            layers = {layer.name: layer for layer in named}
        pairs = [(layers[entry["workload"]], entry["accelerator"]) for entry in data["tasks"]]
        loaded = {chip: Accelerator.load(base / chip if "/" in chip else chip, warn=False) for _, chip in pairs}
        return [Task(layer, loaded[chip], chip) for layer, chip in pairs]
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        if isinstance(error, OneShotError):
            raise
        raise OneShotError(f"{path}: not an evaluation set ({error!r})") from error


def find_optimum(task: Task, limit: float, first: NDArray[np.int64] | None = None) -> Optimum:
    """T* of a task and the cycles of its sample. The sample's fastest start the search, as do those of ``first``."""
    space = task.space()
    sampled = sample_of(space)
    cycles = space.measure(sampled).cycles
    valid = np.flatnonzero(cycles > 0)
    start = sampled[valid[np.argsort(cycles[valid], kind="stable")[:1]]]
    if first is not None:
        start = np.unique(np.concatenate([start, first]))
    found = search(space, limit, start)
    best = found.best_timed if found.closed else found.bound_at_stop
    return Optimum(
        task.id,
        task.layer.name,
        task.accelerator_path,
        task.layer.count,
        task.version,
        len(space.table()),
        found.timed,
        best,
        found.best_timed,
        found.best_index,
        found.bound_at_stop,
        found.closed,
        round(found.seconds, 2),
        cycles.tolist(),
    )


def read_optima(path: str | Path) -> dict[str, Optimum]:
    """The rows of a table (JSON lines), by task id; of several of a task the last counts, and all that are whole do.

    Raises:
        OneShotError: an unreadable or foreign file.
    """
    path = Path(path)
    try:
        found = find(path.read_bytes(), _parse)
        if found.problem:
            raise ValueError(found.problem)
    except (OSError, ValueError) as error:
        raise OneShotError(f"{path}: not a table of optima ({error}); make it with `oneshot-ml2 optimum`") from error
    told(path, found)
    return {row.task: row for row in found.entries}


def _parse(data: Any) -> Optimum:
    """The inverse of `_row`; raises ValueError, TypeError or KeyError."""
    if data["schema"] != SCHEMA:
        raise ValueError("another schema")
    row = Optimum(**{key: value for key, value in data.items() if key != "schema"})
    _check_row(row)
    return row


def _row(optimum: Optimum) -> dict[str, Any]:
    return {"schema": SCHEMA} | dataclasses.asdict(optimum)


def _check_row(row: Optimum) -> None:
    """Raise ValueError unless the values are of the types of their columns, and whole numbers have 64 bits."""
    for field in dataclasses.fields(row):
        value = getattr(row, field.name)
        if field.type == "int":
            whole_number(value, field.name, -1)
        elif field.type == "float":
            fits = type(value) in (int, float) and 0 <= value < math.inf
        elif field.type == "list[int]":
            fits = isinstance(value, list)
            for cycles in value if fits else ():
                whole_number(cycles, field.name, -1)
        else:
            fits = type(value) is {"str": str, "bool": bool}[str(field.type)]
        if field.type != "int" and not fits:
            raise ValueError(f"{field.name} is {shown(value)}; allowed: {field.type}")


def _find(job: tuple[Task, float, str | None]) -> Optimum:
    """`find_optimum` in a worker process, started from the network's picks if there are weights."""
    task, limit, weights = job
    first = None
    if weights is not None:
        network = picking.predictor_of(weights or None, design=task.accelerator.design)
        first = picking.rank(task.space(), network).best(64)
    return find_optimum(task, limit, first)


def search_all(
    tasks: list[Task], out: Path, limit: float, processes: int, weights: str | None = None
) -> Iterator[Optimum]:
    """Search every task that ``out`` has no row of this version for; each row is appended when it is known.

    A row whose search did not close counts for searches of no more seconds than it took.

    Args:
        limit: seconds for each task.
        weights: a name or a file, or empty for the shipped ones of each design; searches start from this network's
            picks, with None from none.

    Raises:
        OneShotError: ``out`` is no such table, or another process writes it.
    """
    with open_lines(out, _parse) as table:
        own = (row for row in table.entries if row.closed or row.seconds >= limit)
        done = {(row.task, row.version) for row in own}
        jobs = [(task, limit, weights) for task in tasks if (task.id, task.version) not in done]
        with ExitStack() as stack:
            results: Iterator[Optimum] = map(_find, jobs)
            if processes > 1 and jobs:
                context = multiprocessing.get_context("spawn")
                pool = stack.enter_context(context.Pool(processes, end_with_parent))
                results = pool.imap_unordered(_find, jobs)
            for optimum in results:
                table.append([_row(optimum)])
                yield optimum
