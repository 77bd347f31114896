"""The zero-measurement pick: score a whole space, lower a few of the best, take the first that lowers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import WeightsError
from oneshot_ml2.network.errors_of_picks import PickErrors
from oneshot_ml2.network.predictor import Predictor, Scores
from oneshot_ml2.network.weights import load_pretrained
from oneshot_ml2.spaces.base import Schedule
from oneshot_ml2.spaces.registry import DEFAULT_KIND, space_kind
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta.accelerator import DESIGNS, Accelerator
from oneshot_ml2.vta.reasons import InvalidSchedule, NoSchedule, Reason

if TYPE_CHECKING:
    from oneshot_ml2.spaces.base import Candidates
    from oneshot_ml2.vta.program import Program
    from oneshot_ml2.workload.base import Workload

# Lowerings that a pick may take.
MOST_LOWERED = 8
# How many schedules of the least proven bounds the small network scores: a slow bound cannot be fast.
_SCANNED = 1 << 15
# How many if the closed form that knows what modules wait for tells which: it is nearer (docs/evaluation.md).
_SCANNED_WAITING = 1 << 13
# How many of the best by the small network the large one judges.
_SHORTLIST = 4096
# Least p_valid that is trusted: what lies between an even chance and this is overrated (docs/evaluation.md).
TRUSTED = 0.9
# What has less p_valid is not picked, even where nothing has more.
_HOPELESS = 1e-3
# Of how many schedules the closed-form validity is asked first.
_CHECKED = 256
# How many of the best legal ones by the small network both networks judge; fewer of one that knows what modules wait
# for, which orders them better.
_LEGAL, _LEGAL_KNOWING = 1024, 128
# Gap of the two networks' log T that is told: of 440 picks within the ranges none has so much.
_GAP = 0.2
# Picks that are made at the same time.
_AT_ONCE = 2
# Where a card names the shipped weights that know what lies far outside of the trained ranges; and how far that is, in
# powers of two: nearer, what was trained there is as good (docs/evaluation.md).
BEYOND = "beyond"
_FAR = 1.5
# Picks that are kept for the next model.
_KEPT = 1024


@dataclass(frozen=True)
class Pick:
    """A schedule picked for a task.

    Attributes:
        space: the space it is from.
        index: its index in the space.
        schedule: its knobs.
        predicted_cycles: what is predicted of picks: see `PickErrors`.
        p_valid: the network's probability that it is valid; outside of the trained ranges, where that is told
            exactly, 1.
        spread: standard deviation of log T: a warning if large.
        program: lowered.
        source: ``network``; ``fallback``, what the networks rank first among those that are legal in closed form, when
            none of the network's best lowers; ``verified`` when timed on the simulator, as ``verify`` asks for.
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
    """The best schedules of a space by the small network, judged by the large one, or by both (`rank_legal`).

    ``indices``: int64 (n,), ascending; ``scores``: their scores; ``scored``: how many schedules the small one scored;
    ``gap``: float64 (n,), see `Scores.gap` and `by_both`; ``legal``: whether the closed form calls all of them legal.
    """

    indices: NDArray[np.int64]
    scores: Scores
    scored: int
    gap: NDArray[np.float64]
    legal: bool = False

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """Positions (m,) of what is trusted, that of the least predicted cycles first: see `best_of`."""
        return best_of(self.scores, len(self.indices))

    def best(self, k: int) -> NDArray[np.int64]:
        """Indices of the first ``k`` in :attr:`order`, int64 (<= k,)."""
        return self.indices[self.order[:k]]


def best_of(scores: Scores, k: int) -> NDArray[np.int64]:
    """Positions (<= k,) of the ``k`` of least `Scores.cost` with p_valid >= `TRUSTED`, least first.

    Where no p_valid is as high, as on a board with a limit that most of a space may exceed, the bar is `TRUSTED` of the
    highest one, but never below `_HOPELESS`.
    """
    most = float(scores.p_valid.max(initial=0.0))
    bar = TRUSTED if most >= TRUSTED else max(TRUSTED * most, _HOPELESS)
    trusted = np.flatnonzero(scores.p_valid >= bar)
    cycles = scores.cost[trusted]
    if len(trusted) > k:
        near = np.argpartition(cycles, k - 1)[:k]
        trusted, cycles = trusted[near], cycles[near]
    return trusted[np.argsort(cycles, kind="stable")]


def predictor_of(
    weights: str | Path | Predictor | None, kind: str = DEFAULT_KIND, design: str = DESIGNS[0]
) -> Predictor:
    """A network from shipped weights (a name; None: those of a kind of space and a design), a file, or itself.

    Raises:
        WeightsError: no such weights, or unusable ones.
    """
    if isinstance(weights, Predictor):
        return weights
    if isinstance(weights, Path) or (weights is not None and str(weights).endswith(".safetensors")):
        return Predictor.load(weights)
    return load_pretrained(weights or space_kind(kind).shipped(design))


def knowing(network: Predictor, space: ScheduleSpace) -> Predictor:
    """The network; far outside of its trained ranges the shipped one that its card names for there, if it names one.

    A network that was fitted to a board stays, as only it knows that board.

    Raises:
        WeightsError: the card names no shipped weights.
    """
    named = network.card.get(BEYOND)
    if named is None or network.calibration is not None or network.octaves_outside(space) <= _FAR:
        return network
    if not isinstance(named, str):
        raise WeightsError(f"the model card's {BEYOND!r} is {named!r}; use the card that came with the weights")
    return load_pretrained(named)


def score(space: ScheduleSpace, indices: NDArray[np.int64], weights: str | Path | Predictor | None = None) -> Scores:
    """The network's scores of schedules (n,) of a space: see `Scores`.

    Raises:
        WeightsError: unusable weights.
        OneShotError: a space that the network does not know.
    """
    return predictor_of(weights, space.kind, space.accelerator.design).score(space, indices)


def promising(space: ScheduleSpace, waits: bool = False, listed: Candidates | None = None) -> Candidates:
    """Canonical schedules that the SRAMs hold, without hazards, of the least proven bounds if there are many.

    ``waits``: of the least closed forms that know what modules wait for, which a bound cannot; they are kept.
    ``listed``: all that the SRAMs hold, where they are known already: `protocols.Listing.held_by`.

    Raises:
        OneShotError: a space that there are no features for.
    """
    features = space.record.features
    given = listed
    if given is None:
        given = features.without_hazards(space, features.all_candidates(space, fitting=True))
    if waits:
        given = features.with_waits(space, given)
    most = _SCANNED_WAITING if waits else _SCANNED
    if len(given) > most:
        least = features.waiting(space, given) if waits else given.bound
        given = given.take(np.sort(np.argpartition(least, most)[:most]))
    return given


def rank(
    space: ScheduleSpace, network: Predictor, closed_form: bool = True, listed: Candidates | None = None
) -> Ranking:
    """Score the canonical schedules of a space with the small network, and the best of them with the large one.

    Of a large space, those of the least proven bounds that the SRAMs hold; with ``closed_form`` false all of it, so
    that the networks alone decide. Outside of what they were trained on it is `rank_legal` of the `knowing` ones, if
    the closed form may. ``listed``: see `promising`.

    Raises:
        OneShotError: a space that the network does not know.
    """
    network.check_space(space)
    if closed_form and (network.outside(space) or network.ranks_legal):
        return rank_legal(space, knowing(network, space), listed)
    scanned = promising(space, listed=listed) if closed_form else network.features.all_candidates(space)
    first = network.judge(space, scanned, "scan")
    places = np.sort(best_of(first, _SHORTLIST))
    near = scanned.take(places)
    scores = network.judge(space, near)
    return Ranking(near.indices, scores, len(scanned), scores.gap(first.take(places)))


def rank_legal(space: ScheduleSpace, network: Predictor, listed: Candidates | None = None) -> Ranking:
    """What `rank` does where the networks may be wrong: validity is told by the closed form, latency by both together.

    Empty if none of the `promising` schedules is legal. ``listed``: see there.

    Raises:
        OneShotError: a space that the network does not know.
    """
    waits = bool(network.seen.beside)
    scanned, enough = promising(space, waits, listed), _LEGAL_KNOWING if waits else _LEGAL
    first = network.judge(space, scanned, "scan")
    order = np.argsort(first.cost, kind="stable")
    legal = order[:0]
    # Telling it of all takes long where programs are.
    for part in (order[:_SHORTLIST], order[_SHORTLIST:]):
        if not len(legal):
            legal = part[legal_positions(space, scanned.indices[part], enough)]
    legal = np.sort(legal)
    return by_both(space, network, scanned.take(legal), first.take(legal), len(scanned))


def by_both(
    space: ScheduleSpace, network: Predictor, legal: Candidates, other: Scores | None = None, scored: int = 1
) -> Ranking:
    """Legal schedules, judged by both networks, and by `Predictor.advisers`, which are told of a board what the network
    was told; ``other``: their scores by the small one, if they are known.

    The gap is that of the large network and another one that votes; without advisers, where the networks know what
    modules wait for, also how far that closed form is from their mean. It votes, too, but of a board that the networks
    were told of, which it does not know.
    """
    one = network.judge(space, legal)
    other, *advice = other_votes(space, network, legal, other)
    waits, gap = bool(network.seen.beside), np.max([one.gap(vote) for vote in (other, *advice)], axis=0)
    vote = None
    if waits and not advice:
        guess = network.features.waiting(space, legal)
        gap = np.maximum(gap, np.abs(0.5 * (np.log(one.cycles) + np.log(other.cycles)) - np.log(guess)))
        vote = guess if network.calibration is None else None
    return Ranking(legal.indices, one.with_both(other, waits, advice, vote), scored, gap, legal=True)


def other_votes(
    space: ScheduleSpace, network: Predictor, legal: Candidates, other: Scores | None = None
) -> list[Scores]:
    """Scores of schedules by all that votes beside the large network: the small one (``other``, if they are known), and
    the large ones of advisers. See `by_both`.
    """
    other = network.judge(space, legal, "scan") if other is None else other
    return [other, *(load_pretrained(name).told_as(network).judge(space, legal) for name in network.advisers)]


def _fallback(space: ScheduleSpace, network: Predictor, listed: Candidates | None) -> Ranking:
    """`rank_legal`, or, where nothing promising is legal, the same of the least estimates that are.

    Raises:
        NoSchedule: none is legal.
    """
    ranking = rank_legal(space, network, listed)
    if len(ranking.indices):
        return ranking
    legal = np.sort(legal_by_estimate(space, _LEGAL))
    given = network.features.candidates_at(space, legal)
    return by_both(space, network, given, scored=len(space.table()))


def legal_by_estimate(space: ScheduleSpace, k: int) -> NDArray[np.int64]:
    """Of the schedules that are legal in closed form the ``k`` of the least closed-form estimates, int64 (1..k,).

    Raises:
        NoSchedule: none is legal; of how many of the canonical schedules each reason is.
    """
    indices = space.table()
    indices = indices[np.argsort(space.estimate(indices), kind="stable")]
    counts: Counter[Reason] = Counter()
    found: list[NDArray[np.int64]] = []
    for begin, reasons in _reasons(space, indices):
        found.append(indices[begin + np.flatnonzero(reasons == Reason.VALID)])
        if sum(map(len, found)) >= k:
            break
        counts.update({Reason(reason): int(n) for reason, n in enumerate(np.bincount(reasons)) if n})
    legal = np.concatenate(found)[:k]
    if not len(legal):
        raise NoSchedule.counted(space.workload, space.accelerator, counts)
    return legal


def _reasons(space: ScheduleSpace, indices: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """The closed-form validity of some schedules (n,) part by part, and where each part begins.

    Parts grow, as mostly a first schedule is legal, and many at once take less time each.
    """
    begin, step = 0, _CHECKED
    while begin < len(indices):
        yield begin, space.validity(indices[begin : begin + step])
        begin += step
        step = min(begin, _SCANNED)


def first_legal(space: ScheduleSpace, indices: NDArray[np.int64]) -> int | None:
    """Position of the first of some schedules (n,) that the closed form calls legal; None if none is."""
    found = legal_positions(space, indices, 1)
    return int(found[0]) if len(found) else None


def legal_positions(space: ScheduleSpace, indices: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    """Positions of the first ``k`` of some schedules (n,) that the closed form calls legal, int64 (<= k,)."""
    found = np.empty(0, dtype=np.int64)
    for begin, reasons in _reasons(space, indices):
        found = np.concatenate([found, begin + np.flatnonzero(reasons == Reason.VALID)])
        if len(found) >= k:
            break
    return found[:k]


def pick(
    workload: Workload,
    accelerator: Accelerator | str | Path,
    weights: str | Path | Predictor | None = None,
    verify: int = 0,
    listed: Candidates | None = None,
) -> Pick:
    """Pick a schedule of the default space without executing or timing anything.

    The closed-form validity passes over those that the network trusts in vain, so that the first lowering succeeds.

    Args:
        accelerator: one, or what `Accelerator.load` takes.
        weights: shipped weights by name (default: those of the accelerator's design), a safetensors file, or a
            `Predictor`.
        verify: if above 0, time so many of the best on the simulator and take the fastest: then no longer a
            zero-measurement pick, and its ``source`` says so.
        listed: see `promising`.

    Raises:
        AcceleratorError: a name that is no accelerator's.
        WeightsError: unusable weights.
        NoSchedule: no schedule of the space is legal, or the workload is larger than VTA can address.
    """
    began = time.perf_counter()
    space = ScheduleSpace(workload, Accelerator.of(accelerator))
    network = knowing(predictor_of(weights, design=space.accelerator.design), space)
    ranking = rank(space, network, listed=listed)
    candidates = ranking.best(len(ranking.indices))
    if not ranking.legal:
        # Mostly the very first are; where none of many is, the network has not seen what makes them illegal.
        candidates = candidates[legal_positions(space, candidates, max(verify, MOST_LOWERED))]
    source = "network"
    if verify > 0 and len(candidates):
        candidates = candidates[:verify]
        cycles = space.measure(candidates).cycles
        candidates = candidates[np.argsort(np.where(cycles > 0, cycles, np.inf), kind="stable")]
        source = "verified"
    program, lowered, index = None, 0, -1
    for index in candidates[:MOST_LOWERED].tolist():
        lowered += 1
        try:
            program = space.lower(index)
        except InvalidSchedule:
            continue
        break
    if program is None:
        ranking, source = _fallback(space, network, listed), "fallback"
        index = int(ranking.indices[ranking.scores.cost.argmin()])
        program = space.lower(index)
        lowered += 1
    place = np.flatnonzero(ranking.indices == index)
    scores, gap = ranking.scores.take(place), ranking.gap[place]
    outside = network.outside(space)
    warnings = list(outside)
    if gap[0] > _GAP:
        warnings.append(f"the two networks differ by {np.expm1(gap[0]):.0%} here: the prediction may be poor")
    scores = PickErrors.of(network.card).corrected(scores, gap, bool(outside))
    return as_pick(space, index, program, scores, source, began, lowered, ranking.scored, tuple(warnings))


def pick_all(
    workloads: Sequence[Workload],
    accelerator: Accelerator,
    weights: str | Path | Predictor | None = None,
    done: Callable[[Workload], None] | None = None,
) -> dict[Workload, Pick | InvalidSchedule]:
    """`pick` of every workload, two at a time: while one waits for Python, the other computes.

    What the same weights have picked in this process is not picked again, as models share layers.

    Args:
        done: called with each workload as soon as it has its pick, in any order.

    Returns:
        By workload its pick, or why there is none.

    Raises:
        WeightsError: unusable weights.
    """
    network = predictor_of(weights, design=accelerator.design)

    def one(workload: Workload) -> Pick | InvalidSchedule:
        known = network.picks.get((workload, accelerator))
        if known is not None:
            return known
        try:
            made = pick(workload, accelerator, network)
        except InvalidSchedule as error:
            return error
        if len(network.picks) < _KEPT:
            network.picks[workload, accelerator] = made
        return made

    found: dict[Workload, Pick | InvalidSchedule] = {}
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        futures = {pool.submit(one, workload): workload for workload in dict.fromkeys(workloads)}
        try:
            for future in as_completed(futures):
                found[futures[future]] = future.result()
                if done is not None:
                    done(futures[future])
        except BaseException:
            # What has not begun yet need not delay an interrupt.
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return found


def as_pick(
    space: ScheduleSpace,
    index: int,
    program: Program,
    scores: Scores,
    source: str,
    began: float,
    lowered: int = 1,
    scored: int = 1,
    warnings: tuple[str, ...] = (),
) -> Pick:
    """A schedule, however it was chosen, as a pick with the network's ``scores`` of it alone; ``began``: by
    `perf_counter`.
    """
    return Pick(
        space=space,
        index=index,
        schedule=space.schedule(index),
        predicted_cycles=float(scores.cycles[0]),
        p_valid=float(scores.p_valid[0]),
        spread=float(scores.spread[0]),
        program=program,
        source=source,
        lowered=lowered,
        scored=scored,
        warnings=warnings,
        seconds=time.perf_counter() - began,
    )
