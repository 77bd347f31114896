"""Tuners on simulated boards in `full`: the part of `tuning_study.py --part boards`.

Boards are `perturbed:KIND:SEED` of the four kinds whose rules docs/refinement.md wrote down before any tuner had seen
them. T* is the least noise-free time on the board of all that a search (`new_accelerator.Held`) and all runs looked at;
a row holds its run's improvements, so that the report judges all by the same T*.

Two more: `finetune` by 64 measurements on such boards, judged on workloads that were not measured; and a board that
tells a fifth of its programs faster than they are (``liar``) beside the same without lies.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import new_accelerator
import numpy as np
import resnet18_layers
from numpy.typing import NDArray

from oneshot_ml2.common.metrics import geometric_mean
from oneshot_ml2.devices.boards import draw
from oneshot_ml2.devices.perturbed import PerturbedDevice
from oneshot_ml2.network import picking
from oneshot_ml2.spaces.base import BatchResult
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.tuning import calibrate, finetune
from oneshot_ml2.tuning.base import Domain
from oneshot_ml2.tuning.measure import Limits
from oneshot_ml2.tuning.registry import make_tuner
from oneshot_ml2.tuning.run import Run
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.reasons import Reason

KINDS = ("slow-issue", "slow-alu", "banked", "two-sizes")
FINETUNE = "finetune"
LAYERS = {name: layer for name, layer in resnet18_layers.LAYERS.items() if name != "C2p"}
TUNERS = (
    "autotvm", "autotvm-visible", "rieber+autotvm", "validity+autotvm", "ml2-published", "ml2-scratch", "ml2-warm",
    FINETUNE,
)  # fmt: skip
BASELINE = "autotvm"
SEARCH, LIAR, HONEST = "search", "liar", "honest"
# In which batches; measurements of `finetune`, and how many workloads of two lists it is judged on, and gets.
BATCH, BUDGET, HELD, ADAPTED = 10, 64, (7, 3), (14, 6)


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
        return device_of(self.board)

    @functools.cached_property
    def domain(self) -> Domain:
        return Domain.of(ScheduleSpace(LAYERS[self.layer], Accelerator.load("pynq")))


def device_of(board: str) -> PerturbedDevice:
    """The device of ``KIND:SEED``; `HONEST` is a liar that tells the truth."""
    kind, _, seed = board.partition(":")
    if kind != HONEST:
        return PerturbedDevice(kind, int(seed))
    return PerturbedDevice(LIAR, int(seed), replace(draw(LIAR, int(seed)), liars=0.0))


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
        if self._device.differences.liars:
            return self._device.measure_schedules(space, indices)
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


def run_one(task: Task, tuner: str, seed: int, most: int) -> dict[str, Any]:
    """A run of a tuner, validity hidden from it: its improvements as [trials, invalid ones among them, cycles], and the
    true cycles of what it believes to be the best, ``chosen``.

    On a liar the improvements are those of what is believed after each batch.
    """
    began = time.perf_counter()
    board, domain = Board(task, seed), task.domain
    make = functools.partial(make_tuner, tuner, domain, seed)
    work = Run(domain.space, make, board, tuner, seed, Limits(batch=BATCH))
    believed: list[list[int]] = []
    with work:
        while len(work.history) < most and not work.exhausted:
            work.step(most - len(work.history))
            work.observe()
            best = work.history.best
            if best is not None:
                believed.append([len(work.history), 0, board.true[best[0]][1]])
        done = work.history.outcomes
    improvements: list[list[int]] = []
    invalid = 0
    for number, index in enumerate(done.indices.tolist(), 1):
        reason, cycles = board.true.get(index, (1, -1))
        invalid += reason != Reason.VALID
        if reason == Reason.VALID and (not improvements or cycles < improvements[-1][2]):
            improvements.append([number, invalid, cycles])
    if task.board.startswith((LIAR, HONEST)):
        improvements = believed
    return {
        "task": task.name,
        "tuner": tuner,
        "seed": seed,
        "trials": len(done),
        "invalid": invalid,
        "chosen": believed[-1][2] if believed else None,
        "improvements": improvements,
        "seconds": round(time.perf_counter() - began, 1),
    }


def finetune_one(name: str) -> dict[str, Any]:
    """`finetune` by `BUDGET` measurements on a board: T*, and cycles of the picks for `HELD` other workloads before and
    after; negative: the pick fails, and that is its first valid successor's; 0: there is none."""
    chip, device, network = Accelerator.load("pynq"), device_of(name), picking.predictor_of(None)
    held = [new_accelerator.Held(w, chip, device) for w in new_accelerator.spread(new_accelerator.HELD, HELD, chip)]
    closed = [one.search(network) for one in held]
    spaces = [ScheduleSpace(w, chip) for w in new_accelerator.spread(new_accelerator.ADAPTED, ADAPTED, chip)]
    board = calibrate.Board(spaces, network)
    measured = finetune.collect(board, device, BUDGET, 0)
    found = finetune.adapt(board, measured, {})
    picks: dict[str, list[int]] = {}
    for when, used in (("before", network), ("after", found.network if found.better else network)):
        picked = [one.picked(new_accelerator.ranking(one.space, used)) for one in held]
        picks[when] = [cycles if valid else -cycles for cycles, valid in picked]
    new_accelerator.deepen(held, found.network)
    card = found.network.card["finetuned"]
    known = {key: card[key] for key in ("method", "ways", "before", "memory_latency", "costs", "limits")}
    best = [one.best for one in held]
    return {
        "task": f"finetune {name}",
        "tuner": FINETUNE,
        "seed": 0,
        "best": best,
        "closed": closed,
        "picks": picks,
    } | {"known": known}


def make_rows(
    boards: Sequence[str], layers: Sequence[str], tuners: Sequence[str], seeds: int, most: int, done: set[Any]
) -> Iterator[dict[str, Any]]:
    """The rows that are not ``done``, (task, tuner, seed) each, as they are made."""
    for board in boards if FINETUNE in tuners else ():
        if (f"finetune {board}", FINETUNE, 0) not in done and not board.startswith((LIAR, HONEST)):
            yield finetune_one(board)
    tuners = [tuner for tuner in tuners if tuner != FINETUNE]
    for seed in range(seeds if tuners else 0):
        for layer in layers:
            for board in boards:
                task = Task(layer, board)
                if (task.name, SEARCH, 0) not in done and seed == 0:
                    yield search(task)
                for tuner in tuners:
                    if (task.name, tuner, seed) not in done:
                        yield run_one(task, tuner, seed, most)


# The report --------------------------------------------------------------------------------------
def reached(row: dict[str, Any], best: float, share: float) -> tuple[float, float]:
    """Trials until within a share of T*, and invalid ones among them; one trial more than were made if never."""
    for number, invalid, cycles in row["improvements"]:
        if cycles <= (1.0 + share) * best:
            return float(number), float(invalid)
    return float(row["trials"] + 1), float(row["invalid"])


def report(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    tuned = [row for row in rows if row["tuner"] == FINETUNE]
    searched = [row for row in rows if row["tuner"] == SEARCH]
    runs = [row for row in rows if row["tuner"] not in (SEARCH, FINETUNE)]
    least = {row["task"]: float(row["best"]) for row in searched}
    for row in runs:
        for step in row["improvements"]:
            least[row["task"]] = min(least.get(row["task"], float("inf")), step[2])
    parts = [
        "# Boards whose rules were written down before",
        "Written by `python benchmarks/tuning_study.py --part boards`.",
    ]
    if runs:
        layers, boards = ({row["task"].split(" ")[place] for row in runs} for place in (2, 1))
        seeds, closed = len({row["seed"] for row in runs}), sum(row["closed"] for row in searched)
        most = max(row["trials"] for row in runs)
        parts += [
            "## Trials",
            f"Space `full`, validity hidden, {most} trials at most. Until within 2 % of T*: median over seeds, "
            f"geometric mean over layers and boards; in brackets against {BASELINE}'s, and invalid trials against its. "
            "A run that did not get there counts as one trial more than it made.",
            f"Boards: {', '.join(sorted(boards))}; layers: {', '.join(sorted(layers))}; seeds: {seeds}. T* is proven "
            f"for {closed} of {len(searched)} tasks, and for the others the least time that anything found.",
            _trials(runs, least),
        ]
    if any(f":{LIAR}:" in row["task"] for row in runs):
        parts += [
            "## A board that lies",
            "A fifth of the programs are told in 0.6 of their time, always. What is believed at the end, by its true "
            "time over T*, and trials until what is believed is within 2 %, beside the same board without lies.",
            _lies(runs, least),
        ]
    if tuned:
        parts += [
            f"## `finetune` with {BUDGET} measurements",
            f"T* / T of the picks for {sum(HELD)} workloads that were not measured: geometric mean, worst.",
            "| board | before | after | by |\n|---|---|---|---|\n" + "\n".join(_tuned(row) for row in tuned),
        ]
    return "\n\n".join(parts) + "\n"


def _trials(runs: Sequence[dict[str, Any]], least: dict[str, float]) -> str:
    tuners = [tuner for tuner in TUNERS if any(row["tuner"] == tuner for row in runs)]
    lines = ["| kind | " + " | ".join(tuners) + " |", "|---|" + "---|" * len(tuners)]
    for kind in KINDS:
        cells = []
        for tuner in tuners:
            tasks = [task for task in least if f" perturbed:{kind}:" in task]
            pairs = [[_medians(runs, task, name, least[task]) for name in (tuner, BASELINE)] for task in tasks]
            both = [(own, base) for own, base in pairs if own is not None and base is not None]
            if not both:
                cells.append("-")
                continue
            count = geometric_mean([own[0] for own, _ in both])
            ratio = geometric_mean([own[0] / base[0] for own, base in both])
            invalid, theirs = (sum(pair[place][1] for pair in both) for place in (0, 1))
            avoided = f"{invalid / theirs - 1:+.1%}" if theirs else "-"
            cells.append(f"{count:.1f} ({ratio:.1%}, {avoided})")
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _lies(runs: Sequence[dict[str, Any]], least: dict[str, float]) -> str:
    lines = [
        "| task | tuner | seed | T / T* | trials | T / T* without lies | trials |",
        "|---|---|---|---|---|---|---|",
    ]
    known = {(row["task"], row["tuner"], row["seed"]): row for row in runs}
    for (task, tuner, seed), row in known.items():
        other = known.get((task.replace(f":{LIAR}:", f":{HONEST}:"), tuner, seed))
        if f":{LIAR}:" not in task or other is None:
            continue
        best = min(least[task], least[other["task"]])
        cells = [f"{one['chosen'] / best:.3f} | {reached(one, best, 0.02)[0]:g}" for one in (row, other)]
        lines.append(f"| {task} | {tuner} | {seed} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _tuned(row: dict[str, Any]) -> str:
    cells = []
    for when in ("before", "after"):
        values = new_accelerator.qualities(row, when)
        cells.append(f"{geometric_mean(values):.1%}, {min(values):.1%}")
    return f"| {row['task'].removeprefix('finetune ')} | {' | '.join(cells)} | {row['known']['method']} |"


def _medians(runs: Sequence[dict[str, Any]], task: str, tuner: str, best: float) -> tuple[float, float] | None:
    own = [reached(row, best, 0.02) for row in runs if row["task"] == task and row["tuner"] == tuner]
    return (float(np.median([t for t, _ in own])), float(np.median([i for _, i in own]))) if own else None


def told(row: dict[str, Any]) -> str:
    """A row in a line."""
    if row["tuner"] == FINETUNE:
        return _tuned(row)
    if row["tuner"] == SEARCH:
        return f"{row['task']}: {row['best']:,} cycles, {'proven' if row['closed'] else 'the least found'}"
    last = row["improvements"][-1] if row["improvements"] else None
    return f"{row['task']}, {row['tuner']}, seed {row['seed']}: {last}, {row['invalid']} invalid, {row['seconds']} s"
