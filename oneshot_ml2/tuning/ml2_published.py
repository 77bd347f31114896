"""ML2Tuner (arXiv 2411.10764) as it was published, for studies: `ml2` has what is more in ours.

P and V see the knobs alone, A the knobs and what is counted in a program, without an analysis of what waits for what. P
and A learn from valid trials, V from all whether they are valid. P ranks, V filters, twice as many as are measured are
lowered, and A ranks those anew. What does not lower is a trial. The publication names no parameters of the boosting:
those of `ml2` are taken.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.tuning import trees
from oneshot_ml2.tuning.base import Domain, Outcomes, TunerKind, draw_unseen
from oneshot_ml2.tuning.ml2 import fit_performance, hidden_features
from oneshot_ml2.vta.facts import NAMES

# Valid trials from which P and A are fitted; schedules that are looked at in a round; lowered for each measured one.
_ENOUGH, _LOOKED, _LOWERED = 4, 1 << 14, 2
# What is counted, not found by following dependences.
_COUNTED = [place for place, name in enumerate(NAMES) if not name.startswith("path_")]


class Published:
    """See the module."""

    def __init__(self, domain: Domain, seed: int = 0) -> None:
        self._domain, self._seed = domain, seed
        self._rng = np.random.default_rng(seed)
        self._seen = domain.known < 0
        self._outcomes = Outcomes.none()
        self._hidden: dict[int, NDArray[np.float64] | None] = {}

    def propose(self, n: int) -> NDArray[np.int64]:
        """See `Tuner.propose`; candidates that do not lower come first."""
        # In random order: so ties, as all are at the start, are broken.
        pool = draw_unseen(self._rng, self._seen, _LOOKED)
        done, knobs = self._outcomes, trees.knob_features(self._domain, pool)
        tried, valid = self._domain.positions(done.indices), done.valid
        good, log_cycles = tried[valid], np.log(done.cycles[valid].astype(np.float64))
        fitted = len(good) >= _ENOUGH
        cycles, logits = np.zeros(len(pool)), np.zeros(len(pool))
        if fitted:
            p = fit_performance(trees.knob_features(self._domain, good), log_cycles, seed=self._seed)
            cycles = p.predict(knobs)
        if valid.any() and not valid.all():
            seen = trees.knob_features(self._domain, tried)
            v = trees.fit(seen, valid.astype(np.float64), "binary:logistic", seed=self._seed)
            logits = v.predict(knobs)
        # What V trusts in P's order; where that is not enough, what V trusts most.
        trusted = logits >= 0.0
        chosen = pool[np.lexsort((np.where(trusted, cycles, -logits), ~trusted))][: _LOWERED * n if fitted else n]
        if fitted:
            chosen = self._by_a(chosen, good, log_cycles, n)
        self._seen[chosen] = True
        return self._domain.indices[chosen]

    def observe(self, results: Outcomes) -> None:
        """See `Tuner.observe`."""
        self._outcomes = self._outcomes + results
        self._seen[self._domain.positions(results.indices)] = True

    def _by_a(
        self, chosen: NDArray[np.int64], good: NDArray[np.int64], log_cycles: NDArray[np.float64], n: int
    ) -> NDArray[np.int64]:
        """Of chosen positions those that do not lower, and the ``n`` best others by A, which learns from ``good`` ones
        with their log cycles."""
        lowers, known = self._lowers(chosen), self._lowers(good)
        failed, lowered = chosen[~lowers], chosen[lowers]
        if len(lowered) and known.any():
            a = fit_performance(self._rows(good[known]), log_cycles[known], seed=self._seed)
            lowered = lowered[np.argsort(a.predict(self._rows(lowered)), kind="stable")]
        return np.concatenate([failed, lowered[:n]])

    def _lowers(self, positions: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which positions (n,) lower; a board may run what this compiler refuses."""
        return np.array([self._counts(position) is not None for position in positions.tolist()], dtype=bool)

    def _rows(self, positions: NDArray[np.int64]) -> trees.Features:
        """What A sees of positions (n,) that lower, float32 (n, f)."""
        counts = [row[_COUNTED] for position in positions.tolist() if (row := self._counts(position)) is not None]
        knobs = trees.knob_features(self._domain, positions)
        return np.concatenate([np.array(counts, dtype=np.float32).reshape(len(knobs), -1), knobs], axis=1)

    def _counts(self, position: int) -> NDArray[np.float64] | None:
        if position not in self._hidden:
            self._hidden[position] = hidden_features(self._domain, position)
        return self._hidden[position]


PUBLISHED = TunerKind(
    "ml2-published",
    "ML2Tuner as published: P and V see knobs alone, A counts of the program",
    lambda given: Published(given.domain, given.seed),
    needs_xgboost=True,
)
