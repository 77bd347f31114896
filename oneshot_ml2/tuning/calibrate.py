"""Fits a `Calibration` to measurements: costs by least squares, limits by the likelihood of what failed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.network.calibration import (
    COSTS,
    LIMIT,
    Calibration,
    boards_of,
    cost_terms,
    limits_of,
    logarithm,
    traffic_of,
)
from oneshot_ml2.network.predictor import Predictor, bare
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.hls_keys import TICKS
from oneshot_ml2.vta.reasons import TRANSIENT, Reason

# Memory latencies that are tried, as multiples of the described one, as far as the weights were trained on them.
_LATENCIES = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0, 12.0, 16.0)
# A valid schedule weighs (T* / T) to this power, T* the workload's fastest measured.
_FAST = 2.0
# Where residuals of log T count no longer in full, as a multiple of their mean.
_HUBER = 1.5
# How often a schedule fails within all limits, and succeeds beyond one.
_ODD_FAILURE, _ODD_SUCCESS = 0.01, 0.03
# Half widths (log) of the stretch where a limit lies, as the columns are not exact; most thresholds of a column.
_WIDTHS = (0.0, 0.05, 0.15, 0.3)
_THRESHOLDS = 128
# Limits that are told apart; hypotheses with less than this share are dropped.
_LIMITS, _NEGLIGIBLE = 2, 1e-4


@dataclass(frozen=True)
class Measured:
    """Measurements in order.

    ``task``: int64 (n,), which workload; ``index``: int64 (n,), of its space; ``reason``: uint8 (n,); ``cycles``: int64
    (n,), -1 where invalid; ``attempts``: int64 (n,), programs run for each.
    """

    task: NDArray[np.int64]
    index: NDArray[np.int64]
    reason: NDArray[np.uint8]
    cycles: NDArray[np.int64]
    attempts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.task)

    @classmethod
    def of(cls, rows: Sequence[tuple[int, int, int, int, int]]) -> Measured:
        """From (task, index, reason, cycles, attempts) each."""
        table = np.array(rows, dtype=np.int64).reshape(-1, 5).T
        return cls(table[0], table[1], table[2].astype(np.uint8), table[3], table[4])

    def take(self, places: NDArray[Any] | slice) -> Measured:
        """Those at some positions, or of a mask or slice."""
        return Measured(
            self.task[places], self.index[places], self.reason[places], self.cycles[places], self.attempts[places]
        )

    @property
    def valid(self) -> NDArray[np.bool_]:
        """Bool (n,)."""
        return self.reason == Reason.VALID

    @property
    def failed(self) -> NDArray[np.bool_]:
        """Bool (n,): the program is at fault, not the device."""
        return ~self.valid & ~np.isin(self.reason, TRANSIENT)


@dataclass(frozen=True)
class Seen:
    """What is known of n schedules before they are measured, at one memory latency.

    ``log_cycles``: the networks' log T; ``p_valid``; ``terms``: (n, len(COSTS)); ``traffic``: (n, columns).
    """

    log_cycles: NDArray[np.float64]
    p_valid: NDArray[np.float64]
    terms: NDArray[np.float64]
    traffic: NDArray[np.float64]

    def take(self, places: NDArray[Any]) -> Seen:
        """Those at some positions, or of a mask."""
        return Seen(self.log_cycles[places], self.p_valid[places], self.terms[places], self.traffic[places])


class Board:
    """A network, the spaces of some workloads, and what the network says of their schedules at several latencies.

    ``traffic``: names of the columns of `Seen.traffic`.
    """

    def __init__(self, spaces: Sequence[ScheduleSpace], network: Predictor) -> None:
        self.spaces, self.network = list(spaces), replace(network, tensors=bare(network.tensors))
        self.described = self.spaces[0].accelerator.memory_latency
        self.traffic = boards_of(network.kind).TRAFFIC
        low, high = _trained(network, self.spaces[0].accelerator)
        tried = {min(max(round(self.described * factor), math.floor(low)), math.ceil(high)) for factor in _LATENCIES}
        self.latencies = sorted({max(1, latency) for latency in tried} | {self.described})
        self._rows: dict[tuple[int, int], dict[int, tuple[Any, ...]]] = {}

    def seen(self, measured: Measured, latency: int) -> Seen:
        """What is known of measured schedules at a latency."""
        for task in np.unique(measured.task).tolist():
            known = self._rows.setdefault((task, latency), {})
            wanted = np.unique(measured.index[measured.task == task])
            new = np.array([index for index in wanted.tolist() if index not in known], dtype=np.int64)
            if len(new):
                space = Calibration.none(latency).board(self.spaces[task])
                given = self.network.features.candidates_at(space, new)
                scores = self.network.judge(space, given)
                traffic = traffic_of(space, given)
                terms = cost_terms(space, given, traffic, scores.cycles)
                figures = zip(np.log(scores.cycles), scores.p_valid.astype(np.float64), terms, traffic)
                known.update(zip(new.tolist(), figures))
        keys = zip(measured.task.tolist(), measured.index.tolist())
        rows = [self._rows[task, latency][index] for task, index in keys]
        columns = [np.array([row[k] for row in rows], dtype=np.float64) for k in range(4)]
        return Seen(
            columns[0], columns[1], columns[2].reshape(-1, len(COSTS)), columns[3].reshape(-1, len(self.traffic))
        )

    def adapted(self, known: Calibration) -> Predictor:
        """The network with a calibration."""
        return replace(self.network, tensors=self.network.tensors | known.to_tensors())


def _trained(network: Predictor, chip: Accelerator) -> tuple[float, float]:
    """The range of memory latencies that a network was trained on; on the HLS design rows in proportion to them."""
    slow, names = "memory latency" if chip.hls is None else "read row cycles", network.seen.task
    if slow not in names:
        return chip.memory_latency, chip.memory_latency
    low, high = (2.0 ** float(network.tensors[name][names.index(slow)]) - 1.0 for name in ("low", "high"))
    scale = 1.0 if chip.hls is None else chip.memory_latency * TICKS / chip.hls.read_row
    return low * scale, high * scale


def _weights(measured: Measured) -> NDArray[np.float64]:
    """Of valid measurements (n,): the faster among its workload's, the more."""
    log_cycles = np.log(measured.cycles.astype(np.float64))
    best = np.full(int(measured.task.max()) + 1, np.inf)
    np.minimum.at(best, measured.task, log_cycles)
    return np.exp(_FAST * (best[measured.task] - log_cycles))


def fit_costs(
    terms: NDArray[np.float64], residual: NDArray[np.float64], weight: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    """Costs (k,) of `COSTS` for residuals (n,) of log T, and the robust mean error that they leave.

    Least squares, reweighted where residuals are large, the costs but the constant not below 0: the best of the fits
    with some of them 0.
    """
    k = terms.shape[1]
    found = np.zeros(k), np.inf
    for chosen in range(1 << (k - 1)):
        columns = [0, *(j for j in range(1, k) if chosen >> (j - 1) & 1)]
        a, w = terms[:, columns], weight
        ridge = 1e-3 * math.sqrt(len(a)) * np.eye(len(columns))
        ridge[0, 0] = 0.0
        for _ in range(4):
            root = np.sqrt(w)[:, None]
            goal = np.concatenate([residual * root[:, 0], np.zeros(len(ridge))])
            costs = np.linalg.lstsq(np.concatenate([a * root, ridge]), goal, rcond=None)[0]
            error = np.abs(a @ costs - residual)
            scale = max(float(np.average(error, weights=weight)), 1e-3)
            w = weight / np.maximum(1.0, error / (_HUBER * scale))
        loss = float(np.average(np.minimum(error, 4.0 * scale), weights=weight))
        if (costs[1:] >= 0).all() and loss < found[1]:
            full = np.zeros(k)
            full[columns] = costs
            found = full, loss
    return found


def fit_limits(traffic: NDArray[np.float64], failed: NDArray[np.bool_]) -> NDArray[np.void]:
    """Limits as of `Calibration` from what schedules (n, columns) failed (n,).

    Every column, direction, threshold between measured values and width of the stretch around it is a hypothesis; its
    share is its likelihood, times the prior: columns alike, thresholds evenly in the logarithm. Failures that the first
    limit explains say nothing about the second.
    """
    found: list[NDArray[np.void]] = []
    open_ = np.ones(len(failed), dtype=bool)
    for group in range(_LIMITS):
        if (failed & open_).sum() < (1 if group == 0 else 3):
            break
        hypotheses, likelihoods = _hypotheses(traffic[open_], failed[open_])
        nothing = _log_likelihood(np.zeros((1, int(open_.sum()))), failed[open_])[0]
        # The more limits, the less likely another one.
        joined = np.append(likelihoods, nothing + 3.0 * group)
        shares = np.exp(joined - joined.max())
        shares /= shares.sum()
        if shares[-1] > 0.5:
            break
        keep = shares[:-1] > _NEGLIGIBLE
        rows = limits_of(np.column_stack([np.full(int(keep.sum()), group), shares[:-1][keep], hypotheses[keep]]))
        found.append(rows)
        beyond = Calibration(1, np.zeros(len(COSTS)), rows).risk(traffic)
        open_ &= ~(failed & (beyond > 0.5))
    return np.concatenate(found) if found else np.zeros(0, LIMIT)


def _log_likelihood(beyond: NDArray[np.float64], failed: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Of outcomes (n,) under hypotheses that schedules are beyond a limit with probabilities (h, n)."""
    p = _ODD_FAILURE + (1.0 - _ODD_FAILURE - _ODD_SUCCESS) * beyond
    return np.where(failed, np.log(p), np.log1p(-p)).sum(axis=1)


def _hypotheses(
    traffic: NDArray[np.float64], failed: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(column, sign, low, high) of hypotheses (h, 4), and the logarithms (h,) of their likelihood times prior."""
    rows, likelihoods = [], []
    columns = traffic.shape[1]
    for column in range(columns):
        for sign in (1.0, -1.0):
            x = sign * logarithm(traffic[:, column])
            values = np.unique(x)
            if len(values) > _THRESHOLDS:
                # Thresholds near failures and successes that are close to each other say most.
                values = np.unique(np.quantile(x, np.linspace(0.0, 1.0, _THRESHOLDS)))
            ends = np.concatenate([[values[0] - 1.0], values, [values[-1] + 1.0]])
            low, high = ends[:-1], ends[1:]
            prior = np.log((high - low) / (ends[-1] - ends[0])) - math.log(2 * columns * len(_WIDTHS))
            for width in _WIDTHS:
                a, b = low - width, high + width
                beyond = np.clip((x - a[:, None]) / (b - a)[:, None], 0.0, 1.0)
                likelihoods.append(_log_likelihood(beyond, failed) + prior)
                rows.append(np.column_stack([np.full(len(a), column), np.full(len(a), sign), a, b]))
    return np.concatenate(rows), np.concatenate(likelihoods)


def fit(board: Board, measured: Measured) -> Calibration:
    """The calibration that measurements speak for; that of a board as described while fewer than four are valid."""
    limits = np.zeros(0, LIMIT)
    usable = measured.take(measured.valid | measured.failed)
    if len(usable):
        limits = fit_limits(board.seen(usable, board.described).traffic, usable.failed)
    valid = measured.take(measured.valid)
    if len(valid) < 4:
        return replace(Calibration.none(board.described), limits=limits)
    weight, best = _weights(valid), (np.inf, board.described, np.zeros(len(COSTS)))
    for latency in board.latencies:
        seen = board.seen(valid, latency)
        costs, loss = fit_costs(seen.terms, np.log(valid.cycles) - seen.log_cycles, weight)
        best = min(best, (loss, latency, costs), key=lambda found: found[0])
    # The constant does not change an order; below 0 it would let predictions fall under proven bounds.
    costs = best[2]
    costs[0] = max(costs[0], 0.0)
    return Calibration(best[1], costs, limits)
