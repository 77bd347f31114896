"""Adapts shipped weights to one board by a few measurements.

Rounds of measurements, each four times as large as all before, are spread over workloads; what to measure is what the
weights adapted so far rank first, and by chance what they rank lower. What is adapted is a `Calibration`: so few
figures, all physical, that 64 measurements suffice; or that and boosted trees on what it leaves, where they choose
better. Of the budget nothing is set aside for validation: figures are those of cross-validation by workloads, each
workload judged by weights that saw none of its measurements.
"""

from __future__ import annotations

import datetime
import itertools
import json
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common import resources, tables
from oneshot_ml2.common.json_lines import Opened, open_lines
from oneshot_ml2.common.reading import whole_number
from oneshot_ml2.corpus.format import task_id
from oneshot_ml2.devices.base import Device, measurable
from oneshot_ml2.models.frontend import traced
from oneshot_ml2.network import picking
from oneshot_ml2.network.calibration import COSTS, RATES, Calibration
from oneshot_ml2.network.predictor import Predictor, digest
from oneshot_ml2.spaces.registry import backend
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.tuning.calibrate import Board, Measured, believed, can_boost, fit
from oneshot_ml2.tuning.log import LogError
from oneshot_ml2.tuning.measure import SURE, Doubt, Health, Kept, Limits, Measurer, Trial
from oneshot_ml2.tuning.plausible import too_good
from oneshot_ml2.vta.reasons import Reason
from oneshot_ml2.workload.base import Workload
from oneshot_ml2.workload.lists import read_layers

FORMAT = "oneshot-ml2 finetuning"
SCHEMA = 1
LEAST_BUDGET = 16
# The first round; each further one brings the total to so many times as much.
_FIRST, _GROWTH = 16, 4
# Of schedules that are not what is ranked first, the share drawn from everything that the SRAMs hold.
_ANYTHING = 0.25
FOLDS = 4
# Measurements that agree in the first round, which nothing can be held against yet.
_TWICE = 2
# Workloads of the shipped list that are measured when none are given.
_WORKLOADS = 24


# Validation ------------------------------------------------------------------------------------


def duels(cost: NDArray[np.float64], measured: Measured) -> float:
    """Of every two measured schedules of a workload the one of less ``cost`` (n,) is chosen: its T* / T, T* the better
    one's, 1/2 if it alone fails. Geometric mean over pairs, then over workloads; NaN without any."""
    means = []
    for task in np.unique(measured.task).tolist():
        own = np.flatnonzero((measured.task == task) & (measured.valid | measured.failed))
        first, second = (own[places] for places in np.triu_indices(len(own), 1))
        chosen, other = np.where(cost[first] <= cost[second], (first, second), (second, first))
        some = measured.valid[chosen] | measured.valid[other]
        chosen, other = chosen[some], other[some]
        if len(chosen):
            t = np.where(measured.valid, np.log(np.maximum(measured.cycles, 1)), np.inf)
            lost = np.where(np.isinf(t[chosen]), math.log(2.0), np.maximum(t[chosen] - t[other], 0.0))
            means.append(float(lost.mean()))
    return math.exp(-float(np.mean(means))) if means else float("nan")


def _figures(cost: NDArray[np.float64], log_cycles: NDArray[np.float64], measured: Measured) -> dict[str, float]:
    """``choice``: see `duels`; ``error``: mean |error of log T| of valid ones."""
    valid = measured.valid
    error = np.abs(np.log(np.maximum(measured.cycles, 1)) - log_cycles)[valid]
    return {"choice": duels(cost, measured), "error": float(error.mean()) if valid.any() else float("nan")}


def _judged(board: Board, known: Calibration, measured: Measured) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """log of the cost, and log T, of measured schedules (n,) with a calibration."""
    seen = board.seen(measured, known.latency, known.rates)
    log_cycles = seen.log_cycles + known.added(seen.given)
    risk = known.risk(seen.given.traffic)
    # What is more likely to fail than not comes last; a pick is stricter, see `picking.TRUSTED`.
    return log_cycles + 2.0 * risk + 1e3 * (seen.p_valid * (1.0 - risk) < 0.5), log_cycles


def folds(measured: Measured) -> NDArray[np.int64]:
    """Which part of `FOLDS` measurements (n,) are of: by workloads; of too few of these, by turns."""
    by_workload = len(np.unique(measured.task)) >= FOLDS
    return (measured.task if by_workload else np.arange(len(measured))) % FOLDS


def cross_validate(
    board: Board, measured: Measured, boosted: bool = False
) -> tuple[dict[str, float], dict[str, float]]:
    """Figures before and after adaptation, every fold judged by a fit without its measurements."""
    before = _figures(*_judged(board, Calibration.none(board.described), measured), measured)
    cost, log_cycles = np.zeros(len(measured)), np.zeros(len(measured))
    parts = folds(measured)
    for fold in range(FOLDS):
        held = parts == fold
        if held.any():
            known = fit(board, measured.take(~held), boosted)
            cost[held], log_cycles[held] = _judged(board, known, measured.take(held))
    return before, _figures(cost, log_cycles, measured)


# Collection ------------------------------------------------------------------------------------


def round_ends(budget: int) -> list[int]:
    """Measurements in all after each round: 16, 64, 256 and so on, and the budget."""
    ends = [_FIRST]
    while ends[-1] < budget:
        ends.append(ends[-1] * _GROWTH)
    return [*(end for end in ends if end < budget), budget]


def choose(
    space: ScheduleSpace,
    network: Predictor,
    count: int,
    known: set[int],
    explore: bool,
    rng: np.random.Generator,
    among: NDArray[np.int64] | None = None,
) -> list[int]:
    """Up to ``count`` legal schedules that are not ``known``, which gets them; ``among``: all that can be measured,
    int64 (n,), None: everything.

    By turns the first that is left in the network's ranking, and one by chance: mostly from that ranking, the logarithm
    of the place uniform, the others from all that the SRAMs hold. With ``explore`` all of them by chance.
    """
    if among is None:
        ranking = picking.rank(space, network)
        ranked = ranking.best(len(ranking.indices))
        anything = picking.promising(space).indices
    else:
        ranked = among[picking.best_of(network.score(space, among), len(among))]
        anything = among
    draws = 4 * count + 8
    places = np.exp(rng.uniform(0.0, math.log(max(len(ranked), 2)), size=draws)).astype(np.int64) - 1
    by_chance = rng.choice(anything, size=draws) if len(anything) else np.empty(0, np.int64)
    if len(ranked):
        lower = ranked[np.minimum(places, len(ranked) - 1)]
        by_chance = np.where(rng.random(draws) < _ANYTHING, by_chance, lower)
    if among is not None:
        # Records may be few: after those that are drawn all others, so that none is out of reach.
        by_chance = np.concatenate([by_chance, rng.permutation(among)])
    first = np.empty(0, np.int64) if explore else ranked[: len(known) + 4 * count]
    both = np.unique(np.concatenate([first, by_chance]))
    legal = set(both[space.validity(both) == Reason.VALID].tolist()) if len(both) else set()
    queues = [[i for i in first.tolist() if i in legal], [i for i in by_chance.tolist() if i in legal]]
    chosen: list[int] = []
    turn = int(rng.integers(2))
    while len(chosen) < count and any(queues):
        queue = queues[turn % 2] or queues[(turn + 1) % 2]
        index = queue.pop(0)
        if index not in known:
            known.add(index)
            chosen.append(index)
            turn += 1
    return chosen


def collect(
    board: Board,
    device: Device,
    budget: int,
    seed: int = 0,
    log: Path | None = None,
    limits: Limits | None = None,
    done: Callable[[int], None] | None = None,
) -> Measured:
    """Measure ``budget`` schedules in rounds; with the log of an earlier run go on where it ended.

    What the first round measures, what is too good to be true, and all that a device says that was caught contradicting
    itself is measured again, see `measurer`; it counts once.

    ``done``: called with the number of measurements so far.

    Raises:
        LogError: the log is unreadable, of another run, or another process writes it.
        DeviceError: the device fails on one schedule after another, see `Limits.failures`.
    """
    limits = limits or Limits()
    header = {
        "format": FORMAT,
        "schema": SCHEMA,
        "tasks": [task_id(space.workload, space.accelerator, space.kind) for space in board.spaces],
        "space_version": max(backend(space.kind).version_of(space.workload) for space in board.spaces),
        "device": device.name,
        "weights": digest(board.network),
        "seed": seed,
        "retries": limits.retries,
    }
    with ExitStack() as stack:
        opened = None if log is None else stack.enter_context(open_lines(log, _parse, header, LogError, _different))
        session = _Session(board, device, limits, opened)
        among = [measurable(device, space) for space in board.spaces]
        order = np.random.default_rng([seed, 23]).permutation(len(board.spaces))
        known: list[set[int]] = [set() for _ in board.spaces]
        begin = 0
        for number, end in enumerate(round_ends(budget)):
            session.begin_round(number)
            tasks = order[np.arange(begin, end) % len(order)]
            for task in dict.fromkeys(tasks.tolist()):
                rng = np.random.default_rng([seed, number, task])
                count = int((tasks == task).sum())
                explore = number == 0
                chosen = choose(board.spaces[task], session.network, count, known[task], explore, rng, among[task])
                session.measure(task, chosen)
                if done is not None:
                    done(len(session.rows))
            begin = end
        session.kept.flush()
        return session.measured()


class _Session:
    """Measurements on a board so far, ``rows``: (task, trial) each, and the ``network`` adapted to them."""

    def __init__(self, board: Board, device: Device, limits: Limits, log: Opened[tuple[int, Trial]] | None) -> None:
        self.network = board.network
        self.rows: list[tuple[int, Trial]] = []
        self._board, self._device, self._limits, self._log = board, device, limits, log
        self._health = Health(limits.failures)
        self._earlier = [] if log is None else log.entries
        self._known = {} if log is None else {(task, trial.index): trial for task, trial in reversed(log.known)}
        self.kept = Kept(lambda lines: None if log is None else log.append(lines))
        self._fitted: tuple[Calibration, float] | None = None

    def measured(self) -> Measured:
        """The rows as a table."""
        return Measured.of([(task, t.index, t.reason, t.cycles, t.programs) for task, t in self.rows])

    def begin_round(self, number: int) -> None:
        """Adapt the network to what was measured; and tell from which residual of log T on the next is too good."""
        if number == 0:
            return
        measured = self.measured()
        measured = measured.take(believed(self._board, measured))
        known = fit(self._board, measured)
        self.network = self._board.adapted(known)
        valid = measured.take(measured.valid)
        if len(valid):
            self._fitted = known, too_good(np.log(valid.cycles) - self._board.expected(known, valid))

    def _doubt(self, task: int, indices: list[int]) -> Doubt:
        """See `measure.Doubt`, for schedules of a task."""
        if self._fitted is None:
            return lambda index, cycles, health: SURE if health.caught else _TWICE
        known, least = self._fitted
        rows = [(task, index, int(Reason.VALID), 1, 1) for index in indices]
        floor = dict(zip(indices, np.exp(self._board.expected(known, Measured.of(rows)) + least).tolist()))
        return lambda index, cycles, health: SURE if health.caught or cycles < floor[index] else 0

    def measure(self, task: int, chosen: list[int]) -> None:
        """Rows of schedules of a task: those that the log has, the others measured and logged."""
        logged = self._earlier[len(self.rows) : len(self.rows) + len(chosen)]
        if any(row[0] != task or row[1].index != index for row, index in zip(logged, chosen)):
            assert self._log is not None
            raise LogError(f"{self._log.path} does not fit this version's choices; give another file, or remove it")
        left = chosen[len(logged) :]
        measurer = Measurer(self._device, self._board.spaces[task], self._limits, self._health)
        given = len(self.rows) + len(logged)
        try:
            self._recall(logged)
            doubt = self._doubt(task, left) if left else None
            for known, part in itertools.groupby(left, lambda index: (task, index) in self._known):
                if known:
                    self._recall([(task, self._known[task, index]) for index in part])
                    continue
                for trial in measurer(np.array(list(part), dtype=np.int64), doubt):
                    self.rows.append((task, trial))
        finally:
            measurer.close()
            new = self.rows[given:]
            self.kept.add([_line(*row) for row in new], [trial.failed for _, trial in new])

    def _recall(self, rows: Sequence[tuple[int, Trial]]) -> None:
        for row in rows:
            self._health.recall(row[1])
            self.rows.append(row)


def _line(task: int, trial: Trial) -> list[Any]:
    """A measurement as the log has it."""
    row: list[Any] = [task, trial.index, trial.reason, trial.cycles, trial.attempts]
    if trial.board:
        return [*row, trial.repeats, trial.board]
    return [*row, trial.repeats] if trial.repeats else row


def _parse(row: Any) -> tuple[int, Trial]:
    """The inverse of `_line`; raises ValueError or TypeError."""
    if not isinstance(row, list) or not 5 <= len(row) <= 7:
        raise ValueError(f"{row!r:.40} is no measurement")
    task, index, reason, cycles, attempts = (whole_number(value, "a number", -1, (1 << 62) - 1) for value in row[:5])
    if min(task, index) < 0 or attempts < 1 or (Reason(reason) == Reason.VALID) != (cycles > 0):
        raise ValueError(f"{row!r:.40} is no measurement")
    repeats = tuple(whole_number(value, "a number", -1, (1 << 62) - 1) for value in row[5]) if len(row) > 5 else ()
    return task, Trial(index, reason, cycles, attempts, repeats, str(row[6]) if len(row) > 6 else "")


def _different(rows: Sequence[tuple[int, Trial]]) -> bool:
    """Whether no schedule was measured twice, as two writers do."""
    return len({(task, trial.index) for task, trial in rows}) == len(rows)


# The command -----------------------------------------------------------------------------------


# What may be adapted -> whether it has trees.
WAYS = {"calibration": False, "calibration and trees": True}


@dataclass(frozen=True)
class Finetuned:
    """Adapted weights, what they learnt, and figures of `cross_validate`."""

    network: Predictor
    calibration: Calibration
    measured: Measured
    before: dict[str, float]
    after: dict[str, float]

    @property
    def better(self) -> bool:
        """What was held out is chosen at least as well as before."""
        return self.after["choice"] >= self.before["choice"]


def adapt(board: Board, measured: Measured, about: dict[str, Any]) -> Finetuned:
    """Fit all measurements that are believed, in that of `WAYS` which cross-validation finds better; ``about``: what
    the card says of them."""
    trusted = measured.take(believed(board, measured))
    # Within a workload trees may do better, and yet carry nothing over to others.
    parts = "workloads" if len(np.unique(trusted.task)) >= FOLDS else "measurements"
    boosting = can_boost() and parts == "workloads"
    ways = {name: boosted for name, boosted in WAYS.items() if not boosted or boosting}
    found = {name: cross_validate(board, trusted, boosted) for name, boosted in ways.items()}
    # Of equal ones the first, which is simpler; NaN, of too few measurements, is no reason for the other.
    way = max(found, key=lambda name: np.nan_to_num(found[name][1]["choice"], nan=-1.0))
    before, after = found[way]
    known = fit(board, trusted, ways[way])
    labels = {reason: int((measured.reason == reason).sum()) for reason in Reason}
    card = dict(board.network.card) | {
        "finetuned": about
        | {
            "base": digest(board.network),
            "accelerator": json.loads(board.spaces[0].accelerator.to_json()),
            "method": way,
            "ways": {name: {k: tables.finite(v) for k, v in figures[1].items()} for name, figures in found.items()},
            "measurements": len(measured),
            "not_believed": len(measured) - len(trusted),
            "attempts": int(measured.attempts.sum()),
            "outcomes": {reason.label: count for reason, count in labels.items() if count},
            "validation": f"{FOLDS}-fold cross-validation by {parts}, all measurements used",
            "before": {name: tables.finite(value) for name, value in before.items()},
            "after": {name: tables.finite(value) for name, value in after.items()},
            "memory_latency": known.latency,
            "rates": dict(zip(RATES, known.rates)),
            "costs": dict(zip(COSTS, known.costs.tolist())),
            "limits": described_limits(known, board.traffic),
            "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        }
    }
    return Finetuned(replace(board.adapted(known), card=card), known, measured, before, after)


def described_limits(known: Calibration, names: Sequence[str]) -> list[dict[str, Any]]:
    """The likeliest hypothesis of each limit, and its column's share of the probability; ``names``: of the columns."""
    found = []
    groups = np.unique(np.concatenate([known.limits["group"], known.pairs["group"]]))
    for group in groups:
        limits, pairs = (table[table["group"] == group] for table in (known.limits, known.pairs))
        together = float(pairs["share"].sum()) > float(limits["share"].sum())
        table = pairs if together else limits
        best = table[table["share"].argmax()]
        prefixes = ("", "second_") if together else ("",)
        sides = [_described_side(best, prefix, names) for prefix in prefixes]
        prefixed = [prefix + name for prefix in prefixes for name in ("column", "sign")]
        alike = np.ones(len(table), dtype=bool)
        for name in prefixed:
            alike &= table[name] == best[name]
        share = {"probability": round(float(table["share"][alike].sum()), 4)}
        found.append(sides[0] | share | ({"and": sides[1]} if together else {}))
    return found


def _described_side(limit: np.void, prefix: str, names: Sequence[str]) -> dict[str, Any]:
    ends = sorted(float(np.exp(limit[prefix + "sign"] * limit[prefix + end])) for end in ("low", "high"))
    kind = "at most" if limit[prefix + "sign"] > 0 else "at least"
    return {"what": names[int(limit[prefix + "column"])], "kind": kind, "between": ends}


def workloads_of(source: str | None, size: int = 224) -> list[Workload]:
    """Different workloads of a list (``.toml``), of a model by name, or of the shipped training list.

    Raises:
        OneShotError: an unreadable list, or no such model.
    """
    if source is None:
        layers = read_layers(resources.find("workloads", "train.toml"))
        small = [layer for layer in layers if layer.workload.real_macs <= 3e7]
        layers = [small[i] for i in np.linspace(0, len(small) - 1, _WORKLOADS).round().astype(int)]
    elif source.endswith(".toml"):
        layers = read_layers(source)
    else:
        layers = traced.trace(source, size)
    return list(dict.fromkeys(layer.workload for layer in layers))
