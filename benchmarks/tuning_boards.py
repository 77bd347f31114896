"""Tuners on simulated boards in `full`: the part of `tuning_study.py --part boards`.

Boards are `perturbed:KIND:SEED` of the four kinds whose rules docs/refinement.md wrote down before any tuner had seen
them. T* is the least noise-free time on the board of all that a search (`new_accelerator.Held`) and all runs looked at;
a row holds its run's improvements, so that the report judges all by the same T*.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import new_accelerator
import numpy as np
import resnet18_layers
from numpy.typing import NDArray

from oneshot_ml2.common.metrics import geometric_mean
from oneshot_ml2.devices.perturbed import PerturbedDevice
from oneshot_ml2.network import picking
from oneshot_ml2.spaces.base import BatchResult
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.tuning.base import Domain
from oneshot_ml2.tuning.measure import Limits
from oneshot_ml2.tuning.registry import make_tuner
from oneshot_ml2.tuning.run import Run
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.reasons import Reason

KINDS = ("slow-issue", "slow-alu", "banked", "two-sizes")
LAYERS = {name: layer for name, layer in resnet18_layers.LAYERS.items() if name != "C2p"}
TUNERS = (
    "autotvm", "autotvm-visible", "rieber+autotvm", "validity+autotvm", "ml2-published", "ml2-scratch", "ml2-warm",
)  # fmt: skip
BASELINE = "autotvm"
SEARCH = "search"
# What a run makes at most, and in which batches.
MOST, BATCH = 400, 10


@dataclass(frozen=True)
class Task:
    """A layer on ``pynq`` on a board."""

    layer: str
    board: str

    @property
    def name(self) -> str:
        return f"full perturbed:{self.board} {self.layer}"

    @property
    def device(self) -> PerturbedDevice:
        kind, _, seed = self.board.partition(":")
        return PerturbedDevice(kind, int(seed))

    @functools.cached_property
    def domain(self) -> Domain:
        return Domain.of(ScheduleSpace(LAYERS[self.layer], Accelerator.load("pynq")))


class Board:
    """A board whose noise-free times are kept, with its noise, seeded by run and schedule."""

    def __init__(self, task: Task, seed: int) -> None:
        self._device, self._seed = task.device, seed
        self.name = self._device.name
        self.true: dict[int, tuple[int, int]] = {}

    def measure_schedules(self, space: ScheduleSpace, indices: NDArray[np.int64]) -> BatchResult:
        """See `Device.measure_schedules`."""
        new = np.array([index for index in indices.tolist() if index not in self.true], dtype=np.int64)
        if len(new):
            exact = self._device.true_cycles(space, new)
            self.true.update(zip(new.tolist(), zip(exact.reason.tolist(), exact.cycles.tolist())))
        found = BatchResult.untimed(np.array([self.true[index][0] for index in indices.tolist()], dtype=np.uint8))
        noise = self._device.differences.noise
        for i, index in enumerate(indices.tolist()):
            if found.reason[i] == Reason.VALID:
                normal = np.random.default_rng([self._seed, index]).standard_normal()
                found.cycles[i] = max(1, round(self.true[index][1] * np.exp(noise * normal)))
        return found

    def measure(self, programs: object) -> list[object]:
        """It is asked for schedules only."""
        raise NotImplementedError


def search(task: Task) -> dict[str, Any]:
    """The least time that the search finds, and whether a proven bound says that it is T*."""
    held = new_accelerator.Held(LAYERS[task.layer], Accelerator.load("pynq"), task.device)
    closed = held.search(picking.predictor_of(None))
    return {"task": task.name, "tuner": SEARCH, "seed": 0, "best": held.best, "closed": closed}


def run_one(task: Task, tuner: str, seed: int) -> dict[str, Any]:
    """A run of a tuner, validity hidden from it: its improvements as [trials, invalid ones among them, cycles]."""
    began = time.perf_counter()
    board, domain = Board(task, seed), task.domain
    make = functools.partial(make_tuner, tuner, domain, seed)
    work = Run(domain.space, make, board, tuner, seed, Limits(batch=BATCH))
    with work:
        while len(work.history) < MOST and not work.exhausted:
            work.step(MOST - len(work.history))
        done = work.history.outcomes
    improvements: list[list[int]] = []
    invalid = 0
    for number, index in enumerate(done.indices.tolist(), 1):
        reason, cycles = board.true.get(index, (1, -1))
        invalid += reason != Reason.VALID
        if reason == Reason.VALID and (not improvements or cycles < improvements[-1][2]):
            improvements.append([number, invalid, cycles])
    return {
        "task": task.name,
        "tuner": tuner,
        "seed": seed,
        "trials": len(done),
        "invalid": invalid,
        "improvements": improvements,
        "seconds": round(time.perf_counter() - began, 1),
    }


def make_rows(
    boards: Sequence[str], layers: Sequence[str], tuners: Sequence[str], seeds: int, done: set[Any]
) -> Iterator[dict[str, Any]]:
    """The rows that are not ``done``, (task, tuner, seed) each, as they are made."""
    for seed in range(seeds):
        for layer in layers:
            for board in boards:
                task = Task(layer, board)
                if (task.name, SEARCH, 0) not in done and seed == 0:
                    yield search(task)
                for tuner in tuners:
                    if (task.name, tuner, seed) not in done:
                        yield run_one(task, tuner, seed)


# The report --------------------------------------------------------------------------------------
def reached(row: dict[str, Any], best: float, share: float) -> tuple[float, float]:
    """Trials until within a share of T*, and invalid ones among them; one trial more than were made if never."""
    for number, invalid, cycles in row["improvements"]:
        if cycles <= (1.0 + share) * best:
            return float(number), float(invalid)
    return float(row["trials"] + 1), float(row["invalid"])


def report(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown: by kind of board, medians over seeds, then geometric means over tasks."""
    least: dict[str, float] = {}
    for row in rows:
        known = [row["best"]] if row["tuner"] == SEARCH else [step[2] for step in row["improvements"][-1:]]
        least[row["task"]] = min([least.get(row["task"], float("inf")), *known])
    runs = [row for row in rows if row["tuner"] != SEARCH]
    searched = [row for row in rows if row["tuner"] == SEARCH]
    tuners = [tuner for tuner in TUNERS if any(row["tuner"] == tuner for row in runs)]
    lines = ["| kind | " + " | ".join(tuners) + " |", "|---|" + "---|" * len(tuners)]
    for kind in KINDS:
        tasks = [task for task in least if f" perturbed:{kind}:" in task]
        cells = []
        for tuner in tuners:
            ratios, counts, invalid, theirs = [], [], 0.0, 0.0
            for task in tasks:
                own, base = (_medians(runs, task, name, least[task]) for name in (tuner, BASELINE))
                if own is None or base is None:
                    continue
                counts.append(own[0])
                ratios.append(own[0] / base[0])
                invalid, theirs = invalid + own[1], theirs + base[1]
            if not counts:
                cells.append("-")
                continue
            avoided = f"{invalid / theirs - 1:+.1%}" if theirs else "-"
            cells.append(f"{geometric_mean(counts):.1f} ({geometric_mean(ratios):.1%}, {avoided})")
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    layers = sorted({row["task"].rpartition(" ")[2] for row in runs})
    boards = sorted({row["task"].split(" ")[1].removeprefix("perturbed:") for row in runs})
    seeds, closed = len({row["seed"] for row in runs}), sum(row["closed"] for row in searched)
    parts = [
        "# Tuners on boards whose rules were written down before",
        "Written by `python benchmarks/tuning_study.py --part boards`. Space `full`, validity hidden. Trials until "
        f"within 2 % of T*, {MOST} at most: median over seeds, geometric mean over layers and boards; in brackets "
        f"against {BASELINE}'s, and invalid trials against its. A run that did not get there counts as one trial more "
        "than it made.",
        f"Boards: {', '.join(boards)}; layers: {', '.join(layers)}; seeds: {seeds}. T* is proven for {closed} of "
        f"{len(searched)} tasks, and for the others the least time that anything found.",
        "\n".join(lines),
    ]
    return "\n\n".join(parts) + "\n"


def _medians(runs: Sequence[dict[str, Any]], task: str, tuner: str, best: float) -> tuple[float, float] | None:
    own = [reached(row, best, 0.02) for row in runs if row["task"] == task and row["tuner"] == tuner]
    return (float(np.median([t for t, _ in own])), float(np.median([i for _, i in own]))) if own else None


def told(row: dict[str, Any]) -> str:
    """A row in a line."""
    if row["tuner"] == SEARCH:
        return f"{row['task']}: {row['best']:,} cycles, {'proven' if row['closed'] else 'the least found'}"
    last = row["improvements"][-1] if row["improvements"] else None
    return f"{row['task']}, {row['tuner']}, seed {row['seed']}: {last}, {row['invalid']} invalid, {row['seconds']} s"
