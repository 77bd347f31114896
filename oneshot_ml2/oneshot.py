"""The zero-measurement pick: score a whole space with the network, lower a few of the best, take the first that lowers."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2 import encode
from oneshot_ml2.predictor import Predictor, Scores
from oneshot_ml2.pretrained import load_pretrained
from oneshot_ml2.schedule import InvalidSchedule, Reason, Schedule, ScheduleSpace
from oneshot_ml2.vta import plan

if TYPE_CHECKING:
    from oneshot_ml2.accelerator import Accelerator
    from oneshot_ml2.vta.program import Program
    from oneshot_ml2.workload import Workload

# Lowerings that a pick may take (design, section 4.5).
MOST_LOWERED = 8
# Spaces up to this size are scored whole; of larger ones a guided sample.
_WHOLE = 2_000_000
_SAMPLE = 1_000_000
_ROUNDS = 4
_BREEDERS = 512
_STEP = 1 << 18


@dataclass(frozen=True)
class Pick:
    """A schedule picked for a task.

    Attributes:
        space: the space it is from.
        index: its index in the space.
        schedule: its knobs.
        predicted_cycles: what the network predicts (of a fallback: the closed-form estimate).
        p_valid: the network's probability that it is valid.
        spread: the network's standard deviation of log(T / LB): a warning if large.
        program: lowered.
        source: ``network``; ``fallback`` when none of the network's first 8 lowers; ``verified`` when timed on the
            simulator, as ``verify`` asks for.
        lowered: how many schedules were lowered for it.
        scored: how many schedules the network scored.
        warnings: lines on what lies outside the trained range.
        seconds: wall time of the pick.
    """

    space: ScheduleSpace
    index: int
    schedule: Schedule
    predicted_cycles: float
    p_valid: float
    spread: float
    program: Program = field(repr=False, compare=False)
    source: str
    lowered: int
    scored: int
    warnings: tuple[str, ...]
    seconds: float = field(compare=False)


@dataclass(frozen=True)
class Ranking:
    """Canonical schedules of a space with the network's scores: ``indices`` int64 (n,) and ``scores`` of each."""

    indices: NDArray[np.int64]
    scores: Scores

    def best(self, k: int) -> NDArray[np.int64]:
        """Positions of the ``k`` fastest by predicted cycles among those with p_valid >= 0.5, fastest first, (<= k,)."""
        trusted = np.flatnonzero(self.scores.p_valid >= 0.5)
        cycles = self.scores.cycles[trusted]
        if len(trusted) > k:
            near = np.argpartition(cycles, k - 1)[:k]
            trusted, cycles = trusted[near], cycles[near]
        return trusted[np.lexsort((self.indices[trusted], cycles))]


def predictor_of(weights: str | Path | Predictor | None) -> Predictor:
    """A network from shipped weights (None or a name), a file, or itself.

    Raises:
        WeightsError: no such weights, or unusable ones.
    """
    if isinstance(weights, Predictor):
        return weights
    if isinstance(weights, Path) or (weights is not None and str(weights).endswith(".safetensors")):
        return Predictor.load(weights)
    return load_pretrained(weights or "default")


def score(space: ScheduleSpace, indices: NDArray[np.int64], weights: str | Path | Predictor | None = None) -> Scores:
    """The network's scores of schedules (n,) of a space: see `Scores`.

    Raises:
        WeightsError: unusable weights.
        OneShotError: a space that the network does not know.
    """
    return predictor_of(weights).score(space, indices)


def rank(space: ScheduleSpace, network: Predictor, seed: int = 0) -> Ranking:
    """Score all canonical schedules of a space, or of one beyond 2 million schedules a sample guided by the scores."""
    size = len(space)
    if size <= _WHOLE:
        parts = [encode.canonical_range(space, begin, min(begin + _STEP, size)) for begin in range(0, size, _STEP)]
        indices = np.concatenate(parts)
        return Ranking(indices, network.score(space, indices))
    rng = np.random.default_rng(seed)
    indices = np.unique(space.canonical(rng.integers(0, size, size=_SAMPLE)))
    ranking = Ranking(indices, network.score(space, indices))
    for _ in range(_ROUNDS):
        near = np.concatenate([space.neighbours(int(ranking.indices[i])) for i in ranking.best(_BREEDERS)] or [indices[:0]])
        fresh = np.setdiff1d(space.canonical(np.unique(near)), ranking.indices) if len(near) else near
        if not len(fresh):
            break
        more = network.score(space, fresh)
        old = ranking.scores
        ranking = Ranking(
            np.concatenate([ranking.indices, fresh]),
            Scores(
                np.concatenate([old.p_valid, more.p_valid]),
                np.concatenate([old.log_ratio, more.log_ratio]),
                np.concatenate([old.spread, more.spread]),
                np.concatenate([old.bound, more.bound]),
            ),
        )
    return ranking


def closed_form_pick(space: ScheduleSpace, indices: NDArray[np.int64]) -> tuple[int, float] | None:
    """The closed-form-legal schedule with the least closed-form estimate and that estimate; None if none is legal."""
    p = encode.nest_of(space)
    estimate = plan.summaries(p, space.values(indices))[:, plan.S_ESTIMATE]
    order = np.argsort(estimate, kind="stable")
    step = 256
    for begin in range(0, len(order), step):
        part = order[begin : begin + step]
        legal = np.flatnonzero(space.validity(indices[part]) == Reason.VALID)
        if len(legal):
            first = part[legal[0]]
            return int(indices[first]), float(estimate[first])
    return None


def pick(
    workload: Workload,
    accelerator: Accelerator,
    weights: str | Path | Predictor | None = None,
    verify: int = 0,
) -> Pick:
    """Pick a schedule of the ``full`` space without executing or timing anything.

    Args:
        weights: shipped weights by name (default: ``default``), a safetensors file, or a `Predictor`.
        verify: if above 0, time so many of the best on the simulator and take the fastest: then no longer a
            zero-measurement pick, and its ``source`` says so.

    Raises:
        WeightsError: unusable weights.
        InvalidSchedule: no schedule of the space is legal.
    """
    began = time.perf_counter()
    space = ScheduleSpace(workload, accelerator, "full")
    network = predictor_of(weights)
    ranking = rank(space, network)
    chosen, program, source, lowered = -1, None, "network", 0
    if verify > 0:
        first = ranking.best(verify)
        cycles = space.measure(ranking.indices[first]).cycles if len(first) else np.empty(0, dtype=np.int64)
        if (cycles > 0).any():
            chosen = int(first[np.where(cycles > 0, cycles, np.iinfo(np.int64).max).argmin()])
            program, source, lowered = space.lower(int(ranking.indices[chosen])), "verified", len(first)
    if program is None:
        for position in ranking.best(MOST_LOWERED):
            lowered += 1
            try:
                program = space.lower(int(ranking.indices[position]))
            except InvalidSchedule:
                continue
            chosen = int(position)
            break
    if program is None:
        found = closed_form_pick(space, ranking.indices)
        if found is None:
            raise InvalidSchedule(Reason.SRAM_OVERFLOW, f"no legal schedule for {workload} on {accelerator.name}")
        index, predicted = found
        chosen, source = int(np.flatnonzero(ranking.indices == index)[0]), "fallback"
        program = space.lower(index)
        lowered += 1
    else:
        index, predicted = int(ranking.indices[chosen]), float(ranking.scores.cycles[chosen])
    return Pick(
        space=space,
        index=index,
        schedule=space.schedule(index),
        predicted_cycles=predicted,
        p_valid=float(ranking.scores.p_valid[chosen]),
        spread=float(ranking.scores.spread[chosen]),
        program=program,
        source=source,
        lowered=lowered,
        scored=len(ranking.indices),
        warnings=tuple(network.outside(space)),
        seconds=time.perf_counter() - began,
    )
