"""A baseline that works as AutoTVM's XGBTuner does with knob features and its rank loss.

Every 64 trials a pairwise ranking model is fitted to all trials, failed ones with a throughput of 0, and simulated
annealing on its scores makes the plan of the next 64; the last 5 % of a plan are random. Constants are AutoTVM's.
``autotvm-visible`` is the same with more to see: what ML2Tuner from scratch sees without lowering.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.tuning import trees
from oneshot_ml2.tuning.base import Domain, Outcomes, TunerKind, draw_unseen

_BOOSTING = {
    "max_depth": 3,
    "gamma": 1e-4,
    "min_child_weight": 1,
    "subsample": 1.0,
    "eta": 0.3,
    "lambda": 1.0,
    "alpha": 0.0,
    "objective": "rank:pairwise",
    # As xgboost did when AutoTVM used it: one random partner for each sample, no normalization, scores start at 0.5.
    "lambdarank_pair_method": "mean",
    "lambdarank_num_pair_per_sample": 1,
    "lambdarank_normalization": False,
    "base_score": 0.5,
}
_ROUNDS, _PATIENCE = 8000, 20
# Domains up to this size are scored as a whole; walks then look their scores up.
_LISTED = 1 << 14
# Score of what is known to lower, and of what is known, or expected, not to (Rieber et al.).
_KNOWN_VALID, _KNOWN_INVALID = 1.0, -1e6
# Behind an initialization its trials (E0) are the first training set: so many, or half if all of them are valid.
_INITIAL = 50


@dataclass(frozen=True)
class Annealing:
    """Parallel simulated annealing: chains, steps at most, and steps without a new candidate after which it ends."""

    chains: int = 128
    steps: int = 500
    early_stop: int = 50


class AutoTVM:
    """See the module. ``plan``: trials between two fits; ``greedy``: share of a plan that is not random; ``see``: the
    features of positions of a domain."""

    def __init__(
        self,
        domain: Domain,
        seed: int = 0,
        plan: int = 64,
        greedy: float = 0.95,
        annealing: Annealing | None = None,
        see: Callable[[Domain, NDArray[np.int64]], trees.Features] = trees.knob_features,
    ) -> None:
        self._domain, self._see = domain, see
        self._rng = np.random.default_rng(seed)
        self._seed = seed
        self._plan, self._random_tail = plan, int((1.0 - greedy) * plan + 1e-9)
        self._annealing = annealing or Annealing()
        self._visited = np.zeros(len(domain), dtype=bool)
        self._outcomes = Outcomes.none()
        self._fits = 0
        initial = _INITIAL if domain.doubted is None else _INITIAL // 2
        self._first_fit = min(plan, initial) if domain.known.any() else plan
        self._planned: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._next = 0
        # Raw indices of the chains, which go on from plan to plan.
        self._chains: NDArray[np.int64] | None = None

    def propose(self, n: int) -> NDArray[np.int64]:
        """See `Tuner.propose`."""
        chosen: list[int] = []
        while len(chosen) < n and not self._visited.all():
            while self._next < len(self._planned) and self._visited[self._planned[self._next]]:
                self._next += 1
            if self._next >= len(self._planned) - self._random_tail:
                position = self._random()
            else:
                position = int(self._planned[self._next])
            chosen.append(position)
            self._visited[position] = True
        return self._domain.indices[chosen]

    def _random(self) -> int:
        """A random unvisited position, one that is avoided only when there is no other."""
        avoided = self._visited | self._domain.avoided
        return int(draw_unseen(self._rng, self._visited if avoided.all() else avoided, 1)[0])

    def observe(self, results: Outcomes) -> None:
        """See `Tuner.observe`."""
        self._outcomes = self._outcomes + results
        self._visited[self._domain.positions(results.indices)] = True
        if len(self._outcomes) >= self._first_fit + self._plan * self._fits and self._outcomes.valid.any():
            model = self._fit()
            self._planned, self._next = self._maxima(model), 0
            self._fits += 1

    def _fit(self) -> trees.Trees:
        done = self._outcomes
        speed = np.where(done.valid, 1.0 / np.maximum(done.cycles, 1), 0.0)
        order = self._rng.permutation(len(done))
        features = self._see(self._domain, self._domain.positions(done.indices[order]))

        def metric(predicted: NDArray[np.float64], labels: NDArray[np.float64]) -> float:
            return average_recall(predicted, labels, self._plan)

        labels = (speed / speed.max())[order]
        return trees.fit_until(features, labels, _BOOSTING, metric, _ROUNDS, _PATIENCE, self._seed + self._fits)

    def _maxima(self, model: trees.Trees) -> NDArray[np.int64]:
        """The best unvisited positions that annealing finds, best first, int64 (<= plan,)."""
        # Where a model has judged the whole space, those that happen to be known are no better than the others.
        bonus = _KNOWN_VALID if self._domain.doubted is None else 0.0
        bias = np.select([self._domain.known > 0, self._domain.avoided], [bonus, _KNOWN_INVALID], 0.0)
        everything = np.arange(len(self._domain))
        listed: NDArray[np.float64] | None = None
        if len(everything) <= _LISTED:
            listed = model.predict(self._see(self._domain, everything)) + bias

        def score(positions: NDArray[np.int64]) -> NDArray[np.float64]:
            inside = np.maximum(positions, 0)
            if listed is not None:
                scores = listed[inside]
            else:
                scores = model.predict(self._see(self._domain, inside)) + bias[inside]
            return np.where(positions >= 0, scores, -np.inf)

        return self._anneal(score)

    def _anneal(self, score) -> NDArray[np.int64]:  # type: ignore[no-untyped-def]
        settings, rng, domain = self._annealing, self._rng, self._domain
        if self._chains is None:
            self._chains = domain.indices[rng.integers(len(domain), size=settings.chains)]
        points = self._chains
        positions = domain.position_of_raw[points]
        scores = score(positions)
        # The `plan` best so far as a heap; -1 and below fill it at first.
        heap: list[tuple[float, int]] = [(-np.inf, -1 - i) for i in range(self._plan)]
        held: set[int] = set()

        def keep(values: NDArray[np.float64], places: NDArray[np.int64]) -> bool:
            changed = False
            for i in np.flatnonzero((values > heap[0][0]) & (places >= 0)).tolist():
                value, place = float(values[i]), int(places[i])
                if value > heap[0][0] and place not in held and not self._visited[place]:
                    held.discard(heapq.heapreplace(heap, (value, place))[1])
                    held.add(place)
                    changed = True
            return changed

        keep(scores, positions)
        last, step = 0, 0
        while step < settings.steps and step < last + settings.early_stop:
            temperature = 1.0 - step / (settings.steps + 1)
            moved = walk(rng, domain, points)
            places = domain.position_of_raw[moved]
            values = score(places)
            with np.errstate(invalid="ignore"):
                chance = np.exp(np.minimum((values - scores) / (temperature + 1e-5), 1.0))
            accepted = rng.random(len(points)) < chance
            points, scores = np.where(accepted, moved, points), np.where(accepted, values, scores)
            if keep(values, places):
                last = step
            step += 1
        self._chains = points
        # AutoTVM drops what scores below 0.
        found = sorted((item for item in heap if item[0] >= 0.0), key=lambda item: -item[0])
        return np.array([place for _, place in found], dtype=np.int64)


def walk(rng: np.random.Generator, domain: Domain, points: NDArray[np.int64]) -> NDArray[np.int64]:
    """Raw indices (n,) after a random knob of each has got another random value."""
    digits = domain.space.digits(points)
    moved, left = points.copy(), np.arange(len(points))
    if (domain.radix <= 1).all():
        return moved
    while len(left):
        knob = rng.integers(len(domain.radix), size=len(left))
        value = rng.integers(domain.radix[knob])
        step = value - digits[left, knob]
        moved[left] = points[left] + step * domain.weights[knob]
        left = left[step == 0]
    return moved


def average_recall(predicted: NDArray[np.float64], labels: NDArray[np.float64], top: int) -> float:
    """AutoTVM's ``a-recall``: mean over k < top of the share of the best k + 1 among the first k by prediction."""
    by_prediction = np.argsort(predicted)[::-1]
    sorted_labels = labels[by_prediction]
    rank = np.empty(len(labels), dtype=np.int64)
    rank[np.argsort(-sorted_labels)] = np.arange(1, len(labels) + 1)
    # The first i by prediction hold so many ranks up to i; counted once with sorted events.
    n = min(top, len(labels))
    recall = [np.count_nonzero(rank[:i] <= i) / (i + 1) for i in range(n)]
    return float(np.sum(recall) / top)


AUTOTVM = TunerKind(
    "autotvm",
    "AutoTVM-like: a ranking model on knobs, simulated annealing",
    lambda given: AutoTVM(given.domain, given.seed),
    needs_xgboost=True,
)
VISIBLE = TunerKind(
    "autotvm-visible",
    "the same, whose model sees what ml2-scratch sees without lowering",
    lambda given: AutoTVM(given.domain, given.seed, see=trees.visible_features),
    needs_xgboost=True,
)
