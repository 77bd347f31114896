"""Collecting a corpus: a plan draws tasks, samplers draw schedules, a device measures them, shards keep them.

The samplers are One-Shot Tuner's (CC'22): tasks from the prior that networks give, and schedules explored towards
the fast ones, beside uniform ones. Every task has its own seed, so that results do not depend on the workers.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import hashlib
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

import oneshot_ml2
from oneshot_ml2.accelerator import Accelerator
from oneshot_ml2.children import end_with_parent
from oneshot_ml2.corpus import SAMPLERS, TaskSamples, atomic_write, open_corpus, task_id, write_corpus
from oneshot_ml2.device import Device, open_device
from oneshot_ml2.errors import CorpusError, OneShotError
from oneshot_ml2.files import locked
from oneshot_ml2.reading import read_json, read_toml
from oneshot_ml2.schedule import BatchResult, Reason, ScheduleSpace, backend
from oneshot_ml2.workload import Layer, Workload, read_layers

MANIFEST = "manifest.json"
_RANDOM, _EXPLORE = (SAMPLERS.index(name) for name in ("random", "explore"))
# Spaces up to this size are listed whole; of larger ones schedules are drawn until enough are canonical.
_LISTED = 1 << 16
_DRAW = 1 << 13
_DRAWS = 256
# Spread (log) of the noise on closed-form estimates that seed the exploration.
_BLUR = 0.03

Task: TypeAlias = tuple[Workload, Accelerator]


# The plan ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What to collect.

    Attributes:
        layers: the workloads, different ones, with how often each occurs (the task prior).
        accelerators: different ones.
        tasks: number of (workload, accelerator) pairs; every workload occurs at least once.
        samples: schedules per task; fewer where the space holds fewer.
        space: kind of schedule space.
        split: what the tasks are for; stored with each.
        seed: of everything random.
        prior: share of the further tasks drawn from the prior; the others uniformly over the shapes.
        explore: share of the samples that exploration draws, below 1; the others are uniform.
        rounds, parents: of the exploration: batches, and how many of the fastest breed.
        seeded: share of the exploration that starts from the closed-form estimate instead of from measurements.
        crossover: share of the children that mix two parents instead of mutating one.
        invalid_share: most invalid schedules, as a share of ``samples``.
        shard_tasks: tasks per shard.
    """

    layers: tuple[Layer, ...]
    accelerators: tuple[Accelerator, ...]
    tasks: int
    samples: int = 512
    space: str = "full"
    split: str = "train"
    seed: int = 0
    prior: float = 0.5
    explore: float = 0.6
    rounds: int = 4
    parents: int = 32
    seeded: float = 0.0
    crossover: float = 0.3
    invalid_share: float = 0.2
    shard_tasks: int = 8

    def __post_init__(self) -> None:
        if not self.layers or not self.accelerators:
            raise CorpusError("plan: no workloads or no accelerators are left to collect")
        most = len(self.layers) * len(self.accelerators)
        _within("tasks", self.tasks, len(self.layers), most, "every workload once, up to every pair")
        _within("samples", self.samples, 1, 1 << 24)
        _within("seed", self.seed, 0, (1 << 63) - 1)
        _within("shard_tasks", self.shard_tasks, 1, 1 << 16)
        _within("exploration.rounds", self.rounds, 1, 1 << 16)
        _within("exploration.parents", self.parents, 1, 1 << 16)
        for name in ("prior", "explore", "seeded", "crossover", "invalid_share"):
            _within(name, getattr(self, name), 0.0, 1.0)
        if self.explore == 1.0:
            raise CorpusError("plan: samplers.random is 0; allowed: above 0, since exploration starts from random ones")
        if not 1 <= len(self.split.encode()) <= 16:
            raise CorpusError(f"plan: split is {self.split!r}; allowed: a name of 1 to 16 bytes")

    @cached_property
    def drawn(self) -> list[Task]:
        """See :func:`draw_tasks`."""
        return draw_tasks(self)

    def settings(self) -> dict[str, Any]:
        """The plan without its lists, JSON-able."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {key: value for key, value in fields.items() if key not in ("layers", "accelerators")}

    def digest(self, device: str) -> str:
        """SHA-256 of all that decides what is collected: settings, tasks, space version, device."""
        tasks = [task_id(workload, accelerator, self.space) for workload, accelerator in self.drawn]
        # The number of tasks in a shard does not change what is measured.
        settings = {key: value for key, value in self.settings().items() if key != "shard_tasks"}
        text = json.dumps([settings, tasks, backend(self.space).SPACE_VERSION, device], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def _within(name: str, value: float, low: float, high: float, what: str = "") -> None:
    if not low <= value <= high:
        raise CorpusError(f"plan: {name} is {value}; allowed: {low} to {high}" + (f" ({what})" if what else ""))


_KEYS: dict[str, tuple[type, ...]] = {
    "workloads": (str, list),
    "accelerators": (str, list),
    "exclude_workloads": (str, list),
    "exclude_accelerators": (str, list),
    "space": (str,),
    "split": (str,),
    "seed": (int,),
    "tasks": (int,),
    "samples": (int,),
    "invalid_share": (float, int),
    "shard_tasks": (int,),
    "task_draw.prior": (float, int),
    "task_draw.uniform": (float, int),
    "samplers.random": (float, int),
    "samplers.explore": (float, int),
    "exploration.rounds": (int,),
    "exploration.parents": (int,),
    "exploration.seeded": (float, int),
    "exploration.crossover": (float, int),
}


def read_plan(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Plan:
    """Read a plan file (TOML); `datasets/plans/train.toml` explains each key. Paths are relative to the file.

    ``overrides`` replaces top-level keys; its paths are relative to the working directory.

    Raises:
        CorpusError: an unreadable file, an unknown key, or a value out of range (says which).
        WorkloadError, AcceleratorError: from the files that the plan names.
    """
    path = Path(path)
    tables = read_toml(path, CorpusError)
    try:
        return _plan(tables, path.parent, overrides or {})
    except CorpusError as error:
        raise CorpusError(f"{path}: {error}") from error


def make_plan(settings: Mapping[str, Any]) -> Plan:
    """A plan without a file: the keys of a plan file, paths relative to the working directory.

    Raises:
        CorpusError, WorkloadError, AcceleratorError: see :func:`read_plan`.
    """
    return _plan({}, Path(), settings)


def _flat(tables: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tables.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{name}": entry for name, entry in value.items()}
        else:
            flat[key] = value
    for key, value in flat.items():
        if key not in _KEYS:
            raise CorpusError(f"plan: unknown key {key!r}; allowed: {', '.join(_KEYS)}")
        if not isinstance(value, _KEYS[key]) or isinstance(value, bool):
            raise CorpusError(f"plan: {key} is {value!r}; allowed: {_KEYS[key][0].__name__}")
    return flat


def _plan(tables: Mapping[str, Any], folder: Path, overrides: Mapping[str, Any]) -> Plan:
    own, given = _flat(tables), _flat(overrides)

    def paths(key: str) -> list[Path]:
        values, base = (given[key], Path()) if key in given else (own.get(key, []), folder)
        return [base / str(value) for value in ([values] if isinstance(values, str) else values)]

    for key in ("workloads", "accelerators"):
        if not paths(key):
            raise CorpusError(f"plan: {key} is missing; give it in the plan file or as --{key}")
    counts: dict[Workload, Layer] = {}
    skipped = {layer.workload.shape_key for path in paths("exclude_workloads") for layer in read_layers(path)}
    for path in paths("workloads"):
        for layer in read_layers(path):
            known = counts.get(layer.workload)
            if known is not None:
                counts[layer.workload] = dataclasses.replace(known, count=known.count + layer.count)
            elif layer.workload.shape_key not in skipped:
                counts[layer.workload] = layer
    unwanted = set(read_accelerators(paths("exclude_accelerators")))
    chips = [chip for chip in read_accelerators(paths("accelerators")) if chip not in unwanted]
    flat = own | given
    values: dict[str, Any] = {
        key: flat[key] for key in ("space", "split", "seed", "samples", "invalid_share", "shard_tasks") if key in flat
    }
    for field, name, rest in (
        ("prior", "task_draw.prior", "task_draw.uniform"),
        ("explore", "samplers.explore", "samplers.random"),
    ):
        if name in flat or rest in flat:
            share = float(flat.get(name, 1.0 - flat.get(rest, 0.0)))
            if abs(share + flat.get(rest, 1.0 - share) - 1.0) > 1e-9:
                raise CorpusError(f"plan: {name} and {rest} are shares; allowed: a sum of 1")
            values[field] = share
    values |= {key.partition(".")[2]: value for key, value in flat.items() if key.startswith("exploration.")}
    return Plan(tuple(counts.values()), tuple(chips), tasks=flat.get("tasks", len(counts)), **values)


def read_accelerators(paths: Sequence[Path]) -> list[Accelerator]:
    """The accelerators of folders (every ``*.json``) and files, each once, in the order of their names."""
    chips: dict[Accelerator, None] = {}
    for path in paths:
        names = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not names:
            raise CorpusError(f"plan: no accelerators (*.json) in {path}")
        for name in names:
            chips.setdefault(Accelerator.load(name))
    return list(chips)


def draw_tasks(plan: Plan) -> list[Task]:
    """The plan's tasks, all different, in a fixed order that mixes workloads and accelerators.

    Every workload comes once; the further draws follow the prior (a workload's count) or are uniform over the
    shapes. Each takes the accelerator used least so far among those that the workload has not had.
    """
    rng = np.random.default_rng([plan.seed, 0])
    shapes, chips = len(plan.layers), len(plan.accelerators)
    prior = np.array([layer.count for layer in plan.layers], dtype=np.float64)
    used = np.zeros((shapes, chips), dtype=bool)
    load = np.zeros(chips, dtype=np.int64)
    pairs: list[tuple[int, int]] = []
    for number in range(plan.tasks):
        if number < shapes:
            shape = number
        else:
            weights = (prior if rng.random() < plan.prior else np.ones(shapes)) * ~used.all(axis=1)
            shape = int(rng.choice(shapes, p=weights / weights.sum()))
        free = np.flatnonzero(~used[shape])
        least = free[load[free] == load[free].min()]
        chip = int(rng.choice(least))
        used[shape, chip] = True
        load[chip] += 1
        pairs.append((shape, chip))
    order = rng.permutation(len(pairs))
    return [(plan.layers[pairs[i][0]].workload, plan.accelerators[pairs[i][1]]) for i in order]


# Sampling one task ---------------------------------------------------------------------------


class _Sampler:
    """Draws and measures the schedules of one task."""

    def __init__(self, space: ScheduleSpace, plan: Plan, device: Device, rng: np.random.Generator) -> None:
        self.space, self.plan, self.device, self.rng = space, plan, device, rng
        self.radix = np.array([len(knob.values) for knob in space.knobs], dtype=np.int64)
        self.weights = np.concatenate(([1], np.cumprod(self.radix)[:-1])).astype(np.int64)
        self.free_knobs = np.flatnonzero(self.radix > 1)
        self.indices = np.empty(0, dtype=np.int64)
        self.sampler = np.empty(0, dtype=np.uint8)
        self.result = BatchResult(
            np.empty(0, dtype=np.uint8), np.empty(0, dtype=np.int64), np.empty((0, 3), dtype=np.int64)
        )

    def run(self) -> None:
        """Measure the plan's samples of the task."""
        explored = round(self.plan.samples * self.plan.explore)
        self._measure(self._fill(self._uniform(), self.plan.samples - explored), _RANDOM)
        seeded = round(explored * self.plan.seeded)
        self._measure(self._fill(self._promising(), seeded), _EXPLORE)
        for chunk in np.array_split(np.arange(explored - seeded), self.plan.rounds):
            if len(chunk):
                self._measure(self._fill(self._children(), len(chunk)), _EXPLORE)

    def _fill(self, candidates: Iterator[NDArray[np.int64]], n: int) -> NDArray[np.int64]:
        """Up to ``n`` new canonical schedules from a stream of them, invalid ones only up to their share."""
        picked = np.empty(0, dtype=np.int64)
        invalid_left = int(n * self.plan.invalid_share)
        while len(picked) < n and (batch := next(candidates, None)) is not None:
            _, first = np.unique(batch, return_index=True)
            batch = batch[np.sort(first)]
            batch = batch[~np.isin(batch, self.indices) & ~np.isin(batch, picked)]
            while len(batch) and len(picked) < n:
                # Telling validity costs about as much as measuring: look at few more than are needed.
                few = max(2 * (n - len(picked)), 64)
                part, batch = batch[:few], batch[few:]
                invalid = self.space.validity(part) != Reason.VALID
                keep = np.flatnonzero(~invalid | (np.cumsum(invalid) <= invalid_left))[: n - len(picked)]
                invalid_left -= int(invalid[keep].sum())
                picked = np.concatenate([picked, part[keep]])
        return picked

    def _uniform(self) -> Iterator[NDArray[np.int64]]:
        """Canonical schedules, uniformly."""
        size = len(self.space)
        if size <= _LISTED:
            yield self.rng.permutation(self.space.table())
            return
        for _ in range(_DRAWS):
            # A canonical schedule is its own alias, so that what remains is uniform over canonical ones.
            drawn = self.rng.integers(0, size, size=_DRAW)
            yield drawn[self.space.canonical(drawn) == drawn]

    def _promising(self) -> Iterator[NDArray[np.int64]]:
        """Canonical schedules in order of their closed-form estimate, blurred so that near ties mix."""
        candidates = np.concatenate(list(itertools.islice(self._uniform(), 8)))
        guess = self.space.estimate(candidates) * self.rng.lognormal(0.0, _BLUR, size=len(candidates))
        yield candidates[np.argsort(guess, kind="stable")]

    def _children(self) -> Iterator[NDArray[np.int64]]:
        """Canonical schedules bred from the fastest measured ones."""
        valid = np.flatnonzero(self.result.reason == Reason.VALID)
        if not len(valid) or not len(self.free_knobs):
            return
        fastest = valid[np.argsort(self.result.cycles[valid], kind="stable")[: self.plan.parents]]
        parents = self.space.digits(self.indices[fastest])
        count = max(4 * -(-self.plan.samples // self.plan.rounds), 256)
        for attempt in range(16):
            # Longer walks when near the parents everything has been measured.
            digits = _mutate(self.rng, parents[_ranked(self.rng, len(parents), count)], self.radix, self.free_knobs)
            for _ in range(attempt // 2):
                digits = _mutate(self.rng, digits, self.radix, self.free_knobs)
            mixed = self.rng.random(count) < self.plan.crossover
            pairs = parents[_ranked(self.rng, len(parents), (2, count))]
            crossed = np.where(self.rng.random((count, len(self.radix))) < 0.5, pairs[0], pairs[1])
            yield self.space.canonical(np.where(mixed[:, None], crossed, digits) @ self.weights)

    def _measure(self, indices: NDArray[np.int64], sampler: int) -> None:
        if not len(indices):
            return
        result = self.device.measure_schedules(self.space, indices)
        self.indices = np.concatenate([self.indices, indices])
        self.sampler = np.concatenate([self.sampler, np.full(len(indices), sampler, dtype=np.uint8)])
        self.result = BatchResult(
            np.concatenate([self.result.reason, result.reason]),
            np.concatenate([self.result.cycles, result.cycles]),
            np.concatenate([self.result.busy, result.busy]),
        )


def _ranked(rng: np.random.Generator, n: int, size: int | tuple[int, ...]) -> NDArray[np.int64]:
    """Ranks 0..n-1, the first ones more often (density falls as 1/sqrt of the rank)."""
    return np.minimum((rng.random(size) ** 2 * n).astype(np.int64), n - 1)


def _mutate(
    rng: np.random.Generator, digits: NDArray[np.int64], radix: NDArray[np.int64], free: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Digits (n, knobs) with one or two knobs moved: by one step or, as often, to anywhere."""
    digits = digits.copy()
    rows = np.arange(len(digits))
    for share in (1.0, 0.5):
        knob = rng.choice(free, size=len(digits))
        step = digits[rows, knob] + rng.choice([-1, 1], size=len(digits))
        anywhere = rng.integers(0, radix[knob])
        target = np.clip(np.where(rng.random(len(digits)) < 0.5, step, anywhere), 0, radix[knob] - 1)
        digits[rows, knob] = np.where(rng.random(len(digits)) < share, target, digits[rows, knob])
    return digits


def collect_task(task: Task, plan: Plan, device: Device) -> TaskSamples:
    """Measure one task. Its randomness depends on the plan's seed and on the task alone.

    Raises:
        OneShotError: the space cannot be made for this pair.
    """
    workload, accelerator = task
    space = ScheduleSpace(workload, accelerator, plan.space)
    rng = np.random.default_rng([plan.seed, 1, int(task_id(workload, accelerator, plan.space), 16)])
    sampler = _Sampler(space, plan, device, rng)
    sampler.run()
    result = sampler.result
    return TaskSamples(
        workload=workload,
        accelerator=accelerator,
        kind=plan.space,
        space_version=backend(plan.space).SPACE_VERSION,
        knobs=tuple(knob.name for knob in space.knobs),
        values=space.values(sampler.indices).astype(np.int32),
        reason=result.reason.astype(np.uint8),
        cycles=result.cycles.astype(np.int64),
        busy=result.busy.astype(np.int64),
        sampler=sampler.sampler,
        split=plan.split,
        provenance={},
    )


# Workers -------------------------------------------------------------------------------------

_worker: tuple[Plan, Device] | None = None


def _start_worker(plan: Plan, device: str) -> None:
    """Initialise a worker process."""
    global _worker
    end_with_parent()
    _worker = (plan, open_device(device))
    _warm_up(*_worker)


def attempt(task: Task, plan: Plan, device: Device) -> TaskSamples | OneShotError:
    """:func:`collect_task`, whose error is an outcome like any other."""
    try:
        return collect_task(task, plan, device)
    except OneShotError as error:
        return error


def _work(task: Task) -> TaskSamples | OneShotError:
    assert _worker is not None
    return attempt(task, *_worker)


def _warm_up(plan: Plan, device: Device) -> tuple[str, ...]:
    """Have the hot paths compiled (the cache on disk serves the workers); returns the space's knob names."""
    problem = OneShotError("no tasks")
    for workload, accelerator in plan.drawn:
        space = ScheduleSpace(workload, accelerator, plan.space)
        try:
            device.measure_schedules(space, space.canonical(np.zeros(1, dtype=np.int64)))
            return tuple(knob.name for knob in space.knobs)
        except OneShotError as error:
            problem = error
    raise problem


def _results(
    tasks: Sequence[Task], plan: Plan, device_name: str, device: Device, workers: int
) -> Generator[tuple[Task, TaskSamples | OneShotError], None, None]:
    """Each task with its outcome, as they come."""
    if workers == 1:
        for task in tasks:
            yield task, attempt(task, plan, device)
        return
    # Not fork: numba and HDF5 have threads and locks that a forked child would inherit.
    context = multiprocessing.get_context("spawn")
    pool = futures.ProcessPoolExecutor(workers, context, _start_worker, (plan, device_name))
    try:
        waiting = iter(tasks)
        running: dict[futures.Future[TaskSamples | OneShotError], Task] = {}
        while True:
            for task in itertools.islice(waiting, 2 * workers - len(running)):
                running[pool.submit(_work, task)] = task
            if not running:
                return
            done, _ = futures.wait(running, return_when=futures.FIRST_COMPLETED)
            for future in done:
                yield running.pop(future), future.result()
    except BrokenProcessPool as error:
        raise CorpusError(
            "a worker process died, perhaps for want of memory: run the same command again with fewer --workers"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _cluster_results(
    tasks: Sequence[Task],
    plan: Plan,
    device: str,
    address: str,
    workers: int | None,
    warn: Callable[[str], None] | None,
) -> Generator[tuple[Task, TaskSamples | OneShotError], None, None]:
    """Each task with its outcome, as they come; a cluster is only looked for if there are any."""
    if tasks:
        from oneshot_ml2 import cluster

        yield from cluster.results(tasks, plan, device, address, workers, warn)


# Collecting ----------------------------------------------------------------------------------


def _prepare(folder: Path, plan: Plan, device: str) -> set[str]:
    """Check or write the manifest, and return the ids of the tasks that are done."""
    path = folder / MANIFEST
    digest = plan.digest(device)
    shards = sorted(folder.glob("*.h5"))
    if path.exists():
        try:
            known = read_json(path)["plan_digest"]
        except (OneShotError, KeyError, TypeError, IndexError) as error:
            raise CorpusError(f"{path}: not a manifest ({error}); give another --out") from error
        if known != digest:
            raise CorpusError(
                f"{folder} was begun with another plan (or seed, workload list, space version or device); "
                "go on with that one, or give another --out"
            )
    elif shards:
        raise CorpusError(f"{folder} holds {shards[0].name} but no {MANIFEST}; give another --out")
    else:
        manifest = {
            "format": "oneshot-ml2 collection",
            "plan_digest": digest,
            "device": device,
            "space_version": backend(plan.space).SPACE_VERSION,
            "plan": plan.settings(),
            "workloads": len(plan.layers),
            "accelerators": [chip.name for chip in plan.accelerators],
        }
        atomic_write(path, (json.dumps(manifest, indent=2) + "\n").encode())
    if not shards:
        return set()
    with open_corpus(folder) as corpus:
        return set(corpus.ids)


def _commit() -> str:
    """The checkout's commit, ``-dirty`` if changed; empty outside one."""
    root = Path(oneshot_ml2.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


class _Shards:
    """Gathers finished tasks and writes them as shards."""

    def __init__(self, folder: Path, plan: Plan, device: str) -> None:
        self.folder, self.size = folder, plan.shard_tasks
        self.tasks: list[TaskSamples] = []
        numbers = [int(path.stem[6:]) for path in folder.glob("shard-*.h5") if path.stem[6:].isdigit()]
        self.next = max(numbers, default=-1) + 1
        self.origin = {
            "package": oneshot_ml2.__version__,
            "commit": _commit(),
            "device": device,
            "seed": plan.seed,
            "plan": plan.digest(device),
            "samplers": {
                key: plan.settings()[key]
                for key in ("prior", "explore", "rounds", "parents", "seeded", "crossover", "invalid_share")
            },
        }

    def add(self, task: TaskSamples) -> None:
        self.tasks.append(task)
        if len(self.tasks) >= self.size:
            self.flush()

    def flush(self) -> None:
        """Write what has been gathered."""
        if not self.tasks:
            return
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        origin = self.origin | {"time": now}
        tasks, self.tasks = self.tasks, []
        write_corpus(
            self.folder / f"shard-{self.next:05d}.h5", [dataclasses.replace(task, provenance=origin) for task in tasks]
        )
        self.next += 1


def collect(
    plan: Plan,
    out: str | Path,
    *,
    workers: int | None = None,
    device: str = "sim",
    cluster: str | None = None,
    progress: bool = True,
    warn: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Collect a plan's corpus into a folder of shards, going on from what is there.

    ``workers`` processes measure (default: this one), or a Ray ``cluster``: see :func:`oneshot_ml2.cluster.results`.
    Only this process writes.

    Ctrl-C (KeyboardInterrupt) writes what has been finished and is raised again. A pair for which the space cannot
    be made gets no samples, and ``warn`` is told.

    Returns:
        JSON-able: the folder, tasks (all and done before), samples and invalid ones of this run, seconds.

    Raises:
        CorpusError: another plan's folder, a damaged shard, a full disk, a dead worker, no cluster.
        DeviceError: an unknown device.
        ModuleNotFoundError: a cluster is asked for, and Ray is not installed.
    """
    from time import perf_counter

    from tqdm import tqdm

    begin = perf_counter()
    opened = open_device(device)
    out = Path(out)
    if workers is not None and workers < 1:
        raise CorpusError(f"--workers is {workers}; allowed: at least 1")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CorpusError(f"cannot write to {out}: {error.strerror}") from error
    busy = f"{out}: another collector is at work there; wait for it or give another --out"
    with locked(out / MANIFEST, busy, CorpusError):
        done = _prepare(out, plan, device)
        todo = [task for task in plan.drawn if task_id(*task, plan.space) not in done]
        samples = invalid = 0
        knobs = _warm_up(plan, opened) if todo else ()
        shards = _Shards(out, plan, device)
        with tqdm(
            total=len(todo) * plan.samples, unit="schedule", unit_scale=True, disable=not progress, desc="collect"
        ) as bar:
            if cluster is None:
                stream = _results(todo, plan, device, opened, min(workers or 1, max(len(todo), 1)))
            else:
                stream = _cluster_results(todo, plan, device, cluster, workers, warn)
            try:
                for task, outcome in stream:
                    if isinstance(outcome, OneShotError):
                        if warn is not None:
                            warn(f"{task[0]} on {task[1].name}: no samples: {outcome}")
                        outcome = _empty(task, plan, knobs)
                    samples += len(outcome)
                    invalid += int((~outcome.valid).sum())
                    bar.total -= plan.samples - len(outcome)
                    bar.update(len(outcome))
                    bar.set_postfix_str(f"invalid {invalid / max(samples, 1):.1%}", refresh=False)
                    shards.add(outcome)
            finally:
                # Also after Ctrl-C or a dead worker: what has been finished is kept.
                shards.flush()
                stream.close()
    return {
        "out": str(out),
        "tasks": len(plan.drawn),
        "tasks_before": len(done),
        "samples": samples,
        "invalid": invalid,
        "seconds": round(perf_counter() - begin, 3),
    }


def _empty(task: Task, plan: Plan, knobs: tuple[str, ...]) -> TaskSamples:
    """A task without samples, which marks it as done."""
    return TaskSamples(
        workload=task[0],
        accelerator=task[1],
        kind=plan.space,
        space_version=backend(plan.space).SPACE_VERSION,
        knobs=knobs,
        values=np.empty((0, len(knobs)), dtype=np.int32),
        reason=np.empty(0, dtype=np.uint8),
        cycles=np.empty(0, dtype=np.int64),
        busy=np.empty((0, 3), dtype=np.int64),
        sampler=np.empty(0, dtype=np.uint8),
        split=plan.split,
        provenance={},
    )


# Command line --------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``oneshot-ml2 collect``."""
    parser.add_argument("--plan", metavar="FILE", help="plan file (TOML), e.g. datasets/plans/train.toml")
    parser.add_argument(
        "--out", metavar="FOLDER", required=True, help="folder for the shards; goes on from what is there"
    )
    parser.add_argument("--workloads", metavar="FILE", help="workload list, in place of the plan's")
    parser.add_argument("--accelerators", metavar="FOLDER", help="folder of VTA JSON files, in place of the plan's")
    parser.add_argument("--tasks", type=int, help="number of (workload, accelerator) pairs, in place of the plan's")
    parser.add_argument("--samples", type=int, help="schedules per task, in place of the plan's")
    parser.add_argument("--seed", type=int, help="seed, in place of the plan's")
    parser.add_argument("--device", default="sim", help="who measures (default: %(default)s)")
    parser.add_argument(
        "--workers", type=int, default=0, metavar="N", help="processes (default: one per core, of all nodes)"
    )
    parser.add_argument(
        "--cluster",
        metavar="ADDRESS",
        help="measure on a Ray cluster: auto (the one that this machine belongs to), HOST:PORT of its head, "
        "or local (one on this machine)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def run(args: argparse.Namespace) -> int:
    """Run ``oneshot-ml2 collect``.

    Raises:
        OneShotError: for what the user can mend.
        KeyboardInterrupt: it was ended; says where what was finished is.
    """
    names = ("workloads", "accelerators", "tasks", "samples", "seed")
    overrides = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    plan = read_plan(args.plan, overrides) if args.plan else make_plan(overrides)
    workers = args.workers or (None if args.cluster else len(os.sched_getaffinity(0)))
    warnings: list[str] = []
    try:
        summary = collect(
            plan,
            args.out,
            workers=workers,
            device=args.device,
            cluster=args.cluster,
            progress=not args.quiet,
            warn=warnings.append,
        )
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"what was finished is in {args.out}: run the same command to go on") from stop
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if args.json:
        print(json.dumps(summary))
    else:
        rate = summary["samples"] / max(summary["seconds"], 1e-9)
        print(
            f"{summary['out']}: {summary['tasks']} tasks ({summary['tasks_before']} were done before), "
            f"{summary['samples']} schedules in {summary['seconds']:.1f} s ({rate:.0f}/s), {summary['invalid']} invalid"
        )
    return 0
