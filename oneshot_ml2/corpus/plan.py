"""Collection plans: which tasks are measured, and how."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from oneshot_ml2.common.errors import CorpusError
from oneshot_ml2.common.names import unknown
from oneshot_ml2.common.reading import read_toml
from oneshot_ml2.corpus.format import task_id
from oneshot_ml2.spaces.registry import DEFAULT_KIND, backend, kinds
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.workload.base import Workload
from oneshot_ml2.workload.lists import Layer, read_layers
from oneshot_ml2.workload.registry import operators

Task: TypeAlias = tuple[Workload, Accelerator]


@dataclass(frozen=True)
class Plan:
    """What to collect.

    Attributes:
        layers: the workloads, different ones, with how often each occurs (the task prior).
        accelerators: different ones.
        tasks: number of (workload, accelerator) pairs; every workload occurs at least once.
        first: so many of them are measured, the first in their mixed order; 0: all.
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
    space: str = DEFAULT_KIND
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
    first: int = 0

    def __post_init__(self) -> None:
        if not self.layers or not self.accelerators:
            raise CorpusError("plan: no workloads or no accelerators are left to collect")
        if self.space not in kinds():
            raise CorpusError(f"plan: {unknown('schedule space', self.space, kinds())}")
        most = len(self.layers) * len(self.accelerators)
        _within("tasks", self.tasks, len(self.layers), most, "every workload once, up to every pair")
        _within("first", self.first, 0, self.tasks)
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
        """What is measured of :func:`draw_tasks`."""
        return draw_tasks(self)[: self.first or self.tasks]

    @cached_property
    def space_version(self) -> int:
        """The version of the space that last changed schedules of these workloads."""
        return max(backend(self.space).version_of(layer.workload) for layer in self.layers)

    def settings(self) -> dict[str, Any]:
        """The plan without its lists, JSON-able."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {key: value for key, value in fields.items() if key not in ("layers", "accelerators")}

    def digest(self, device: str) -> str:
        """SHA-256 of all that decides what is collected: settings, tasks, space version, device."""
        tasks = [task_id(workload, accelerator, self.space) for workload, accelerator in self.drawn]
        # The number of tasks in a shard does not change what is measured, and the tasks themselves are told.
        settings = {key: value for key, value in self.settings().items() if key not in ("shard_tasks", "first")}
        text = json.dumps([settings, tasks, self.space_version, device], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def _within(name: str, value: float, low: float, high: float, what: str = "") -> None:
    if not low <= value <= high:
        raise CorpusError(f"plan: {name} is {value}; allowed: {low} to {high}" + (f" ({what})" if what else ""))


_KEYS: dict[str, tuple[type, ...]] = {
    "workloads": (str, list),
    "accelerators": (str, list),
    "exclude_workloads": (str, list),
    "exclude_operators": (str, list),
    "exclude_accelerators": (str, list),
    "space": (str,),
    "split": (str,),
    "seed": (int,),
    "tasks": (int,),
    "first": (int,),
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

# Keys that are the plan's own fields.
_PLAIN = ("space", "split", "seed", "first", "samples", "invalid_share", "shard_tasks")


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
    kinds_left_out = _operators((own | given).get("exclude_operators", []))
    for path in paths("workloads"):
        for layer in read_layers(path):
            if layer.workload.op in kinds_left_out:
                continue
            known = counts.get(layer.workload)
            if known is not None:
                counts[layer.workload] = dataclasses.replace(known, count=known.count + layer.count)
            elif layer.workload.shape_key not in skipped:
                counts[layer.workload] = layer
    unwanted = set(read_accelerators(paths("exclude_accelerators")))
    chips = [chip for chip in read_accelerators(paths("accelerators")) if chip not in unwanted]
    flat = own | given
    values: dict[str, Any] = {key: flat[key] for key in _PLAIN if key in flat}
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


def _operators(given: str | list[str]) -> set[str]:
    """Names of operators.

    Raises:
        CorpusError: an unknown one.
    """
    names = [given] if isinstance(given, str) else given
    for name in names:
        if name not in operators():
            raise CorpusError(f"plan: {unknown('operator in exclude_operators', name, operators())}")
    return set(names)


def read_accelerators(paths: Sequence[Path]) -> list[Accelerator]:
    """The accelerators of folders (every ``*.json``) and files, each once, in the order of their names."""
    chips: dict[Accelerator, None] = {}
    for path in paths:
        names = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not names:
            raise CorpusError(f"plan: no accelerators (*.json) in {path}")
        for name in names:
            chips.setdefault(Accelerator.load(name, warn=False))
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
