"""Fits a `Calibration` to measurements: costs by least squares, limits by the likelihood of what failed, and trees.

Measurements that are far too good for what the others say are not believed, and nothing is fitted to them.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.network import picking
from oneshot_ml2.network.calibration import (
    AS_DESCRIBED,
    COSTS,
    LIMIT,
    PAIR,
    RATES,
    Calibration,
    Given,
    boards_of,
    given_of,
    limits_of,
    logarithm,
    pairs_of,
    told,
    traffic_of,
)
from oneshot_ml2.network.predictor import Predictor, bare
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.tuning import trees
from oneshot_ml2.tuning.plausible import below_bound, too_good
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.hls_keys import TICKS
from oneshot_ml2.vta.reasons import TRANSIENT, Reason

# A figure more has to leave so much less error, as a share: what is not needed does not carry over to other workloads.
_SIMPLER = 0.03
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
# How much less likely than one size a limit of two together is; thresholds of each, and half width of their stretch.
_TOGETHER, _CORNERS, _CORNER_WIDTH = 0.1, 12, 0.1
# Multiples of the HLS design's other rates that are tried, one after another, so often.
_RATES, _PASSES = (0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0), 2
# Trees that correct what the other figures leave: small steps, as few measurements say little of each.
_BOOSTING: dict[str, Any] = {"max_depth": 3, "eta": 0.1, "min_child_weight": 2.0, "lambda": 2.0}
_ROUNDS, _LEAST_BOOSTED = 60, 16
# Valid measurements from which anything is told but limits.
_LEAST_TOLD = 4


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
    """What is known of n schedules before they are measured, as a board is told.

    ``log_cycles``: log T by the networks that picks are made by; ``p_valid``; ``given``: what corrections are made of.
    """

    log_cycles: NDArray[np.float64]
    p_valid: NDArray[np.float64]
    given: Given


# What the networks are told of a board: its memory latency and `RATES`.
Told = tuple[int, tuple[float, ...]]


class Board:
    """A network, the spaces of some workloads, and what the network says of their schedules as it is told a board.

    ``traffic``: names of the columns of `Given.traffic`.
    """

    def __init__(self, spaces: Sequence[ScheduleSpace], network: Predictor) -> None:
        self.spaces, self.network = list(spaces), replace(network, tensors=bare(network.tensors))
        chip = self.spaces[0].accelerator
        self.described = chip.memory_latency
        self.traffic = boards_of(network.kind).TRAFFIC
        low, high = _trained(network, chip)
        tried = {min(max(round(self.described * factor), math.floor(low)), math.ceil(high)) for factor in _LATENCIES}
        self.latencies = sorted({max(1, latency) for latency in tried} | {self.described})
        self.rates = _trained_rates(network, chip)
        self._rows: dict[tuple[int, Told], dict[int, tuple[Any, ...]]] = {}

    def seen(self, measured: Measured, latency: int, rates: tuple[float, ...] = AS_DESCRIBED) -> Seen:
        """What is known of measured schedules where the networks are told so."""
        for task in np.unique(measured.task).tolist():
            known = self._rows.setdefault((task, (latency, rates)), {})
            wanted = np.unique(measured.index[measured.task == task])
            new = np.array([index for index in wanted.tolist() if index not in known], dtype=np.int64)
            if len(new):
                space = told(self.spaces[task], latency, rates)
                candidates = self.network.features.candidates_at(space, new)
                scores = voted = self.network.judge(space, candidates)
                if self.network.ranks_legal:
                    # Corrected is what picks are made by.
                    other, *advice = picking.other_votes(space, self.network, candidates)
                    voted = scores.with_both(other, bool(self.network.seen.beside), advice)
                given = given_of(space, candidates, traffic_of(space, candidates), voted.cycles)
                figures = zip(np.log(voted.cycles), scores.p_valid.astype(np.float64), given.terms, given.traffic)
                known.update(zip(new.tolist(), figures))
        keys = zip(measured.task.tolist(), measured.index.tolist())
        rows = [self._rows[task, (latency, rates)][index] for task, index in keys]
        log_cycles, p_valid, terms, traffic = (np.array([row[k] for row in rows], np.float64) for k in range(4))
        return Seen(log_cycles, p_valid, Given(terms.reshape(-1, len(COSTS)), traffic.reshape(-1, len(self.traffic))))

    def expected(self, known: Calibration, measured: Measured) -> NDArray[np.float64]:
        """log T (n,) of schedules by a calibration."""
        seen = self.seen(measured, known.latency, known.rates)
        return seen.log_cycles + known.added(seen.given)

    def adapted(self, known: Calibration) -> Predictor:
        """The network with a calibration."""
        return replace(self.network, tensors=self.network.tensors | known.to_tensors())


def _trained_rates(network: Predictor, chip: Accelerator) -> tuple[tuple[float, ...], ...]:
    """Multiples of each of `RATES` that are tried: those of which the network was trained on all of its fields."""
    if chip.hls is None:
        return ((1.0,),) * len(RATES)
    names, low, high = network.seen.task, network.tensors["low"], network.tensors["high"]

    def trained(field: str, value: int) -> bool:
        name = f"{field.replace('_', ' ')} cycles"
        place = names.index(name) if name in names else -1
        return place >= 0 and bool(low[place] <= math.log2(1 + value / TICKS) <= high[place])

    found = []
    for fields in RATES.values():
        scaled = {factor: chip.hls.scaled(dict.fromkeys(fields, factor)) for factor in _RATES}
        inside = {f for f, hls in scaled.items() if all(trained(field, getattr(hls, field)) for field in fields)}
        found.append(tuple(sorted(inside | {1.0})))
    return tuple(found)


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
    # Every choice of costs that may be above 0, bool (choices, k), all at once by their normal equations.
    chosen = (np.arange(1 << (k - 1))[:, None] >> np.arange(-1, k - 1).clip(0) & 1).astype(bool)
    chosen[:, 0] = True
    both = chosen[:, :, None] & chosen[:, None, :]
    fixed = np.where(np.eye(k, dtype=bool) & ~both, 1.0, 0.0)
    ridge = np.diag([0.0, *[1e-6 * len(terms)] * (k - 1)])
    products, goals = terms[:, :, None] * terms[:, None, :], terms * residual[:, None]
    w = np.broadcast_to(weight, (len(chosen), len(terms)))
    for _ in range(4):
        matrix = np.where(both, np.tensordot(w, products, 1) + ridge, fixed)
        costs = np.linalg.solve(matrix, np.where(chosen, w @ goals, 0.0)[:, :, None])[:, :, 0]
        error = np.abs(costs @ terms.T - residual)
        scale = np.maximum(np.average(error, axis=1, weights=weight), 1e-3)[:, None]
        w = weight / np.maximum(1.0, error / (_HUBER * scale))
    loss = np.average(np.minimum(error, 4.0 * scale), axis=1, weights=weight)
    loss = np.where((costs[:, 1:] >= 0).all(axis=1), loss, np.inf)
    # The fewest costs that leave hardly more: what is not needed does not carry over to other workloads.
    near = np.flatnonzero(loss <= (1.0 + _SIMPLER) * loss.min())
    best = int(near[np.lexsort((loss[near], chosen[near].sum(axis=1)))[0]])
    return costs[best], float(loss[best])


def fit_limits(traffic: NDArray[np.float64], failed: NDArray[np.bool_]) -> tuple[NDArray[np.void], NDArray[np.void]]:
    """Limits and pairs as of `Calibration` from what schedules (n, columns) failed (n,).

    Every column, direction, threshold between measured values and width of the stretch around it is a hypothesis, and
    so are two columns that are exceeded together; its share is its likelihood, times the prior: columns alike,
    thresholds evenly in the logarithm. Failures that the first limit explains say nothing about the second.
    """
    found, together = np.zeros(0, LIMIT), np.zeros(0, PAIR)
    open_ = np.ones(len(failed), dtype=bool)
    for group in range(_LIMITS):
        if (failed & open_).sum() < (1 if group == 0 else 3):
            break
        hypotheses, likelihoods = _hypotheses(traffic[open_], failed[open_])
        corners, by_corners = _corners(traffic[open_], failed[open_])
        nothing = _log_likelihood(np.zeros((1, int(open_.sum()))), failed[open_])[0]
        # The more limits, the less likely another one.
        joined = np.concatenate([likelihoods, by_corners, [nothing + 3.0 * group]])
        shares = np.exp(joined - joined.max())
        shares /= shares.sum()
        if shares[-1] > 0.5:
            break
        rows = [
            np.column_stack([np.full(int(keep.sum()), group), part[keep], table[keep]])
            for part, table in ((shares[: len(hypotheses)], hypotheses), (shares[len(hypotheses) : -1], corners))
            for keep in [part > _NEGLIGIBLE]
        ]
        own, pairs = limits_of(rows[0]), pairs_of(rows[1])
        found, together = np.concatenate([found, own]), np.concatenate([together, pairs])
        beyond = Calibration(1, np.zeros(len(COSTS)), own, pairs).risk(traffic)
        open_ &= ~(failed & (beyond > 0.5))
    return found, together


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


def _corners(
    traffic: NDArray[np.float64], failed: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What `_hypotheses` gives of two columns that are exceeded together: both sides of each (h, 8)."""
    sides, beyond = [], []
    for column in range(traffic.shape[1]):
        for sign in (1.0, -1.0):
            x = sign * logarithm(traffic[:, column])
            values = np.unique(x)
            if len(values) < 2:
                continue
            middles = (values[1:] + values[:-1]) / 2
            middles = np.unique(middles[np.linspace(0, len(middles) - 1, _CORNERS).round().astype(int)])
            low, high = middles - _CORNER_WIDTH, middles + _CORNER_WIDTH
            sides.append(np.column_stack([np.full(len(low), column), np.full(len(low), sign), low, high]))
            beyond.append(np.clip((x - low[:, None]) / (high - low)[:, None], 0.0, 1.0))
    rows: list[NDArray[np.float64]] = [np.zeros((0, 8))]
    likelihoods: list[NDArray[np.float64]] = [np.zeros(0)]
    pairs = [(i, j) for i in range(len(sides)) for j in range(i + 1, len(sides)) if sides[i][0, 0] != sides[j][0, 0]]
    for i, j in pairs:
        both = (beyond[i][:, None] * beyond[j][None, :]).reshape(-1, len(failed))
        likelihoods.append(_log_likelihood(both, failed))
        one, other = np.repeat(sides[i], len(sides[j]), axis=0), np.tile(sides[j], (len(sides[i]), 1))
        rows.append(np.concatenate([one, other], axis=1))
    found = np.concatenate(likelihoods)
    return np.concatenate(rows), found + math.log(_TOGETHER) - math.log(max(len(found), 1))


def _best_told(board: Board, valid: Measured, weight: NDArray[np.float64]) -> Calibration:
    """What the networks are best told of a board, and the costs beside it: one figure after another."""
    log_cycles = np.log(valid.cycles)

    @functools.cache
    def fitted(latency: int, rates: tuple[float, ...]) -> tuple[float, NDArray[np.float64]]:
        seen = board.seen(valid, latency, rates)
        costs, loss = fit_costs(seen.given.terms, log_cycles - seen.log_cycles, weight)
        return loss, costs

    def choose(figures: Sequence[Told], now: Told) -> Told:
        """That of the least loss, if it is less than what is told ``now`` leaves by more than chance."""
        best = min(figures, key=lambda tried: fitted(*tried)[0])
        return best if fitted(*best)[0] < (1.0 - _SIMPLER) * fitted(*now)[0] else now

    now: Told = (board.described, AS_DESCRIBED)
    for _ in range(_PASSES if any(len(tried) > 1 for tried in board.rates) else 1):
        now = choose([(latency, now[1]) for latency in board.latencies], now)
        for place, factors in enumerate(board.rates):
            latency, rates = now
            now = choose([(latency, (*rates[:place], factor, *rates[place + 1 :])) for factor in factors], now)
    return Calibration(now[0], fitted(*now)[1], np.zeros(0, LIMIT), rates=now[1])


def believed(board: Board, measured: Measured) -> NDArray[np.bool_]:
    """Which measurements (n,) are believed: all but those below a proven bound, and those that are `too_good` for what
    the others say, in two looks."""
    proven = np.ones(len(measured), dtype=bool)
    for task in np.unique(measured.task).tolist():
        own = np.flatnonzero(measured.valid & (measured.task == task))
        proven[own] = ~below_bound(board.spaces[task], measured.index[own], np.log(measured.cycles[own]))
    keep = proven.copy()
    for _ in range(2):
        valid = measured.take(keep & measured.valid)
        if len(valid) < _LEAST_TOLD:
            return keep
        # As if none were faster than another: who lies looks fast.
        known = _best_told(board, valid, np.ones(len(valid)))
        places = np.flatnonzero(measured.valid)
        every = measured.take(places)
        residual = np.log(every.cycles) - board.expected(known, every)
        doubted = places[residual < too_good(residual)]
        if not keep[doubted].any():
            return keep
        keep = proven.copy()
        keep[doubted] = False
    return keep


def fit(board: Board, measured: Measured, boosted: bool = False) -> Calibration:
    """The calibration that measurements speak for; that of a board as described while fewer than four are valid.

    ``boosted``: with trees, where there are enough measurements; needs xgboost.
    """
    usable = measured.take(measured.valid | measured.failed)
    limits, pairs = np.zeros(0, LIMIT), np.zeros(0, PAIR)
    if len(usable):
        limits, pairs = fit_limits(board.seen(usable, board.described).given.traffic, usable.failed)
    valid = measured.take(measured.valid)
    if len(valid) < _LEAST_TOLD:
        return replace(Calibration.none(board.described), limits=limits, pairs=pairs)
    weight = _weights(valid)
    known = _best_told(board, valid, weight)
    # The constant does not change an order; below 0 it would let predictions fall under proven bounds.
    costs = known.costs.copy()
    costs[0] = max(costs[0], 0.0)
    known = replace(known, costs=costs, limits=limits, pairs=pairs)
    if not boosted or len(valid) < _LEAST_BOOSTED:
        return known
    residual = np.log(valid.cycles) - board.expected(known, valid)
    inputs = board.seen(valid, known.latency, known.rates).given.inputs.astype(np.float32)
    model = trees.fit(inputs, residual, "reg:squarederror", np.zeros(len(valid)), _ROUNDS, weights=weight, **_BOOSTING)
    return replace(known, forest=model.forest())


def can_boost() -> bool:
    """Whether xgboost is installed."""
    return importlib.util.find_spec("xgboost") is not None
