"""Rieber et al.'s hardware-aware initialization (arXiv 2205.15568), in front of any tuner.

Whether a schedule lowers is asked of the compiler, for up to 1,000 schedules and without measuring any: neighbours of
those that lower come first (their Algorithm 1). From these, 50 schedules far apart from one another, half of them
valid, are the first trials (E0), and the tuner behind is told which schedules are known to lower and which not.

In a large space 1,000 are few. With ``generalize``, trees learn from them what lowers, the tuner behind avoids all that
they doubt, and of E0 the valid half alone is measured: that the others fail is known already.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.tuning import trees
from oneshot_ml2.tuning.base import Domain, Initialization, Outcomes, Tuner, TunerFactory, draw_unseen
from oneshot_ml2.vta.reasons import Reason

# Probability of lowering below which the model of validity doubts a schedule; how many are judged at a time.
_DOUBT, _AT_ONCE = 0.3, 1 << 14


class ValidityInit:
    """See the module.

    Attributes:
        presampled: schedules that were lowered, not measured, for it.
    """

    def __init__(
        self,
        domain: Domain,
        behind: TunerFactory,
        seed: int = 0,
        presample: int = 1000,
        batch: int = 64,
        first: int = 50,
        generalize: bool = False,
    ) -> None:
        rng = np.random.default_rng([seed, 2])
        known = presampled(domain, rng, presample, batch)
        self.presampled = int(np.count_nonzero(known))
        self._domain = replace(domain, known=known, doubted=doubted(domain, known, seed) if generalize else None)
        if generalize:
            self._first = far_apart(self._domain, np.flatnonzero(known > 0), first // 2, rng)
        else:
            self._first = initial(self._domain, rng, first)
        self._used = 0
        self._tuner: Tuner = behind(self._domain)

    def propose(self, n: int) -> NDArray[np.int64]:
        """See `Tuner.propose`; E0 first, n at a time."""
        if self._used < len(self._first):
            chosen = self._first[self._used : self._used + n]
            self._used += len(chosen)
            return self._domain.indices[chosen]
        return self._tuner.propose(n)

    def observe(self, results: Outcomes) -> None:
        """See `Tuner.observe`."""
        self._tuner.observe(results)


def presampled(domain: Domain, rng: np.random.Generator, most: int = 1000, batch: int = 64) -> NDArray[np.int8]:
    """Algorithm 1: what of up to ``most`` schedules is known after lowering them, int8 (m,) as `Domain.known`.

    One that lowers puts its unseen neighbours in the frontier, one that does not a random unseen schedule; batches are
    drawn from the frontier and filled up at random.
    """
    wanted = min(most, len(domain))
    known = np.zeros(len(domain), dtype=np.int8)
    frontier: set[int] = set()
    seen = 0
    while seen < wanted:
        size = min(batch, wanted - seen)
        waiting = np.array(sorted(frontier), dtype=np.int64)
        chosen = rng.choice(waiting, size=min(size, len(waiting)), replace=False)
        if len(chosen) < size:
            taken = known != 0
            taken[chosen] = True
            chosen = np.concatenate([chosen, draw_unseen(rng, taken, size - len(chosen))])
        lowers = domain.space.validity(domain.indices[chosen]) == Reason.VALID
        known[chosen] = np.where(lowers, 1, -1)
        seen += len(chosen)
        frontier.difference_update(chosen.tolist())
        for position, valid in zip(chosen.tolist(), lowers.tolist(), strict=True):
            if valid:
                found = domain.neighbours(position)
                frontier.update(found[known[found] == 0].tolist())
            else:
                frontier.update(draw_unseen(rng, known != 0, 1).tolist())
    return known


def doubted(domain: Domain, known: NDArray[np.int8], seed: int = 0) -> NDArray[np.bool_]:
    """Which of a domain's schedules lower with a probability below `_DOUBT`, by trees that learn from what is
    ``known``, int8 (m,); bool (m,), nowhere where it is known."""
    told = np.flatnonzero(known)
    found = np.zeros(len(domain), dtype=bool)
    if (known[told] > 0).all():
        return found
    labels = (known[told] > 0).astype(np.float64)
    model = trees.fit(trees.visible_features(domain, told), labels, "binary:logistic", seed=seed, max_depth=6)
    for begin in range(0, len(domain), _AT_ONCE):
        some = np.arange(begin, min(begin + _AT_ONCE, len(domain)))
        found[some] = model.predict(trees.visible_features(domain, some)) < np.log(_DOUBT / (1.0 - _DOUBT))
    return found & (known == 0)


def initial(domain: Domain, rng: np.random.Generator, n: int = 50) -> NDArray[np.int64]:
    """E0: up to ``n`` positions, half of them valid as far as known, each half far apart, in random order."""
    half = n // 2
    parts = [far_apart(domain, np.flatnonzero(domain.known == state), half, rng) for state in (1, -1)]
    return rng.permutation(np.concatenate(parts))


def far_apart(domain: Domain, positions: NDArray[np.int64], n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """``n`` of some positions, the first at random, each next as far as can be from all before it.

    Distance: sum over the knobs of the differences of ranks (the grid in which neighbours are 1 apart).
    """
    if len(positions) <= n:
        return positions
    digits = domain.digits(positions)
    chosen = [int(rng.integers(len(positions)))]
    distance = np.full(len(positions), np.iinfo(np.int64).max)
    while len(chosen) < n:
        distance = np.minimum(distance, np.abs(digits - digits[chosen[-1]]).sum(axis=1))
        chosen.append(int(distance.argmax()))
    return positions[chosen]


def _rieber(domain: Domain, behind: TunerFactory, seed: int) -> ValidityInit:
    return ValidityInit(domain, behind, seed)


def _generalized(domain: Domain, behind: TunerFactory, seed: int) -> ValidityInit:
    return ValidityInit(domain, behind, seed, generalize=True)


RIEBER = Initialization("rieber+", "lowers neighbours of what lowers first, as Rieber et al. published it", _rieber)
VALIDITY = Initialization("validity+", "the same, and trees (xgboost) tell from it what lowers elsewhere", _generalized)
