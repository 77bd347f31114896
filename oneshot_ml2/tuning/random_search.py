"""Random search: every schedule is as likely as any other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.tuning.base import Domain, Outcomes, TunerKind, draw_unseen


class RandomSearch:
    """Draws without replacement; learns nothing. What is known not to lower is left out, what is doubted comes last."""

    def __init__(self, domain: Domain, seed: int = 0) -> None:
        self._domain = domain
        self._rng = np.random.default_rng(seed)
        self._seen = domain.known < 0

    def propose(self, n: int) -> NDArray[np.int64]:
        """See `Tuner.propose`."""
        chosen = draw_unseen(self._rng, self._seen | self._domain.avoided, n)
        self._seen[chosen] = True
        rest = draw_unseen(self._rng, self._seen, n - len(chosen))
        self._seen[rest] = True
        chosen = np.concatenate([chosen, rest])
        return self._domain.indices[chosen]

    def observe(self, results: Outcomes) -> None:
        """Trials that others proposed are not proposed again."""
        self._seen[self._domain.positions(results.indices)] = True


RANDOM = TunerKind("random", "draws schedules at random", lambda given: RandomSearch(given.domain, given.seed))
