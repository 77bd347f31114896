"""ML2Tuner (arXiv 2411.10764): P ranks, V filters, the best are lowered, A ranks those anew, and some are measured.

P predicts cycles from what can be seen of a schedule, V whether it is valid, A cycles from that and from the hidden
features of its program: from scratch, trees correct a sum of costs of what is counted there. P and A learn from valid
trials, V from all. Of the candidates that are lowered, N are measured; the others have no label and may come back, but
from scratch P learns from what A says of their cycles. Candidates that do not lower are trials.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.common.names import unknown
from oneshot_ml2.network.picking import predictor_of
from oneshot_ml2.tuning import trees
from oneshot_ml2.tuning.base import Domain, Given, Outcomes, TunerKind, draw_unseen
from oneshot_ml2.tuning.prior import Prior
from oneshot_ml2.vta import facts
from oneshot_ml2.vta.reasons import InvalidSchedule, Reason

SETTINGS = ("scratch", "warm", "frozen")
# A needs so many valid trials; P so many.
_ENOUGH_FOR_A, _ENOUGH_FOR_P = 4, 3
# Boosting of the three models; those that improve on the network take smaller steps.
_PERFORMANCE: dict[str, Any] = {"max_depth": 4, "eta": 0.1, "min_child_weight": 1.0}
_VALIDITY: dict[str, Any] = {"max_depth": 5, "eta": 0.2, "min_child_weight": 0.5}
# Where the network is sure, the logistic loss is almost flat: no leaf would have the weight above.
_WARM_VALIDITY: dict[str, Any] = {"max_depth": 4, "eta": 0.2, "min_child_weight": 0.0, "max_delta_step": 2.0}
_ROUNDS = 120
_WARM_ROUNDS = 40
# V from scratch: boosted forests, which say less for sure than single trees do of what few trials leave open.
_FOREST: dict[str, Any] = _VALIDITY | {"eta": 0.3, "num_parallel_tree": 4, "subsample": 0.9, "colsample_bynode": 0.4}
_FOREST_ROUNDS = 12
# So many schedules drawn from the pool stand for valid ones, together with the weight of so many trials: V has
# something to tell failures from before the first valid trial.
_BACKGROUND, _BACKGROUND_WEIGHT = 200, 2.0
# From scratch, V's logits from which a schedule is trusted, if fewer than half of the trials were valid, and else; and
# from which one is lowered that P does not rank first.
_WARY, _TRUSTED, _SURE = 1.2, 0.0, 2.0
# A round is at most the valid trials over this from scratch, all trials over this with the network: what each says is
# worth most at the start.
_VALID_PER_TRIAL, _TRIALS_PER_TRIAL = 6, 2
# P from scratch: boosting of what was measured and, weighing so much, of A's word on what was only lowered.
_TAUGHT: dict[str, Any] = {"max_depth": 6, "eta": 0.1, "min_child_weight": 1.0}
_TAUGHT_ROUNDS, _TAUGHT_WEIGHT, _MOST_TAUGHT = 150, 0.5, 3000
# Of a large domain, the pool's random part, its crossings of the best trials (so many, with this chance of another
# value for a knob).
_DRAWN, _PARENTS, _CROSSINGS, _MUTATION = 3072, 16, 2048, 0.1


@dataclass(frozen=True)
class Options:
    """``alpha``: candidates lowered for each that is measured, less one, with the network. From scratch up to
    ``lowered`` are, as long as V expects no more than ``failures`` of them not to lower; ``pool``: domains up to this
    size are looked at as a whole; ``explore``: share of a round that is drawn from what V trusts, whatever P says."""

    alpha: float = 1.0
    lowered: int = 300
    failures: float = 1.0
    pool: int = 1 << 13
    explore: float = 0.2


class ML2Tuner:
    """See the module.

    Settings: ``scratch``: P, V and A are trees that learn from nothing, as published; ``warm``: P and V are the
    network, corrected by trees as trials come in, and A sees its outputs too; ``frozen``: the network's ranking of what
    it trusts, measured in order; nothing is lowered for A, nothing is learnt.
    """

    def __init__(
        self,
        domain: Domain,
        seed: int = 0,
        setting: str = "warm",
        prior: Prior | None = None,
        options: Options | None = None,
    ) -> None:
        """``prior``: the network's scores, for all settings but ``scratch``.

        Raises:
            OneShotError: an unknown setting, or no prior where one is needed.
        """
        if setting not in SETTINGS:
            raise OneShotError(unknown("setting of ML2Tuner", setting, SETTINGS))
        if (setting != "scratch") != (prior is not None):
            raise OneShotError(f"ML2Tuner's setting {setting!r} takes {'no' if setting == 'scratch' else 'a'} network")
        self._domain, self._setting, self._options = domain, setting, options or Options()
        self._rng = np.random.default_rng(seed)
        self._seed = seed
        self._seen = domain.known < 0
        self._outcomes = Outcomes.none()
        # Whether no trial of the last batch was valid.
        self._lost = False
        self._hidden: dict[int, NDArray[np.float64] | None] = {}
        self._a: tuple[trees.Trees, trees.Costs | None] | None = None
        self._prior = prior

    def propose(self, n: int) -> NDArray[np.int64]:
        """See `Tuner.propose`; candidates that do not lower come first. There are fewer than ``n`` while few trials
        were made (from scratch: were valid)."""
        if self._setting == "scratch":
            n = min(n, max(1, int(self._outcomes.valid.sum()) // _VALID_PER_TRIAL))
        elif self._setting == "warm" and self._prior is not None:
            n = min(n, max(1, len(self._outcomes) // _TRIALS_PER_TRIAL))
            self._prior.refresh()
        self._a = self._fit_a()
        chosen, drawn = self._candidates(n)
        if self._a is not None:
            failed = [position for position in (*chosen.tolist(), *drawn.tolist()) if self._hidden_of(position) is None]
            chosen, drawn = np.setdiff1d(chosen, failed), np.setdiff1d(drawn, failed)
            if len(chosen):
                chosen = chosen[np.argsort(self._by_a(chosen), kind="stable")]
            chosen = np.concatenate([np.array(failed, dtype=np.int64), chosen[: n - len(drawn)]])
        chosen = np.concatenate([chosen, drawn])
        self._seen[chosen] = True
        return self._domain.indices[chosen]

    def observe(self, results: Outcomes) -> None:
        """See `Tuner.observe`."""
        self._outcomes = self._outcomes + results
        self._lost = self._setting != "frozen" and not results.valid.any()
        self._seen[self._domain.positions(results.indices)] = True
        if self._setting == "warm" and self._prior is not None:
            self._prior.observe(self._outcomes)

    # The models ---------------------------------------------------------------------------------
    def _trials(self) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.float64]]:
        """Positions of the trials (n,), which are valid, and the logarithms of the valid ones' cycles."""
        done = self._outcomes
        return self._domain.positions(done.indices), done.valid, np.log(done.cycles[done.valid].astype(np.float64))

    def _visible(self, positions: NDArray[np.int64]) -> trees.Features:
        features = trees.visible_features(self._domain, positions)
        if self._prior is None:
            return features
        return np.concatenate([features, self._prior.features(positions)], axis=1)

    def _fit_p(self) -> trees.Trees | None:
        """P on the valid trials, from scratch also on A's cycles of what was only lowered; None while they are too
        few."""
        tried, valid, log_cycles = self._trials()
        if valid.sum() < _ENOUGH_FOR_P:
            return None
        good = tried[valid]
        if self._prior is not None:
            margin = self._prior.log_cycles(good)
            return fit_performance(self._visible(good), log_cycles, margin, _WARM_ROUNDS, self._seed)
        lowered = [position for position, row in self._hidden.items() if row is not None]
        taught = np.setdiff1d(np.array(lowered[-_MOST_TAUGHT:], dtype=np.int64), good)
        if self._a is None or not len(taught):
            return fit_performance(self._visible(good), log_cycles, seed=self._seed)
        return trees.fit(
            self._visible(np.concatenate([good, taught])),
            np.concatenate([log_cycles, self._by_a(taught)]),
            "reg:squarederror",
            rounds=_TAUGHT_ROUNDS,
            seed=self._seed,
            weights=np.concatenate([np.ones(len(good)), np.full(len(taught), _TAUGHT_WEIGHT)]),
            **_TAUGHT,
        )

    def _predict(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Log cycles by P and validity logits by V of positions (n,) of a setting with a network."""
        assert self._prior is not None
        cycles, logits = self._prior.log_cycles(positions), self._prior.logits(positions)
        if self._setting == "frozen" or not len(self._outcomes):
            return cycles, logits
        seen, p = self._visible(positions), self._fit_p()
        return cycles if p is None else p.predict(seen, cycles), self._validity(positions, seen, logits)

    def _validity(
        self, positions: NDArray[np.int64], seen: trees.Features, prior: NDArray[np.float64] | None
    ) -> NDArray[np.float64]:
        """V's logits of positions (n,) with visible features ``seen`` and the network's logits.

        V learns in which way trials end, not only whether they are valid: a schedule that fails for one reason says
        nothing against others. What is known not to lower without a trial is a class of its own.
        """
        done = self._outcomes
        tried = self._domain.positions(done.indices)
        told = np.setdiff1d(np.flatnonzero(self._domain.known < 0), tried)
        ended = np.concatenate([done.reason.astype(np.int64), np.full(len(told), len(Reason))])
        known = np.concatenate([tried, told])
        classes = np.unique(np.concatenate([[Reason.VALID], ended]))
        if len(classes) == 1:
            # Nothing has failed so far.
            return np.full(len(positions), _SURE) if prior is None else prior
        others = len(classes) - 1

        def margin(logits: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.concatenate([logits[:, None], np.full((len(logits), others), -np.log(others))], axis=1)

        rows, labels = self._visible(known), np.searchsorted(classes, ended).astype(np.float64)
        fit = functools.partial(trees.fit, objective="multi:softprob", seed=self._seed, num_class=len(classes))
        if self._prior is None:
            some = self._rng.choice(len(seen), size=min(_BACKGROUND, len(seen)), replace=False)
            model = fit(
                np.concatenate([rows, seen[some]]),
                np.concatenate([labels, np.zeros(len(some))]),
                weights=np.concatenate([np.ones(len(rows)), np.full(len(some), _BACKGROUND_WEIGHT / len(some))]),
                rounds=_FOREST_ROUNDS,
                **_FOREST,
            )
        else:
            start = margin(self._prior.logits(known))
            model = fit(rows, labels, margin=start, rounds=_WARM_ROUNDS, **_WARM_VALIDITY)
        scores = model.predict(seen, None if prior is None else margin(prior))
        return scores[:, 0] - np.logaddexp.reduce(scores[:, 1:], axis=1)

    def _a_inputs(self, positions: NDArray[np.int64]) -> tuple[trees.Features, NDArray[np.float64]]:
        """What A sees of positions (n,) that lower, float32 (n, f), and their hidden features, float64 (n, h)."""
        rows = [self._hidden_of(position) for position in positions.tolist()]
        own = np.array([row for row in rows if row is not None]).reshape(len(rows), -1)
        return np.concatenate([own.astype(np.float32), self._visible(positions)], axis=1), own

    def _fit_a(self) -> tuple[trees.Trees, trees.Costs | None] | None:
        """A on the valid trials, and what it corrects; None while they are too few."""
        tried, valid, log_cycles = self._trials()
        if self._setting == "frozen" or valid.sum() < _ENOUGH_FOR_A:
            return None
        good = tried[valid]
        # A board may run what this compiler refuses.
        lowers = np.array([self._hidden_of(position) is not None for position in good.tolist()], dtype=bool)
        if np.count_nonzero(lowers) < _ENOUGH_FOR_A:
            return None
        good, log_cycles = good[lowers], log_cycles[lowers]
        features, own = self._a_inputs(good)
        if self._prior is None:
            return fit_with_costs(features, own, log_cycles, self._seed)
        margin = self._prior.log_cycles(good)
        return fit_performance(features, log_cycles, margin, _WARM_ROUNDS, self._seed), None

    def _by_a(self, positions: NDArray[np.int64]) -> NDArray[np.float64]:
        """A's log cycles of positions (n,) that lower."""
        assert self._a is not None
        model, costs = self._a
        features, own = self._a_inputs(positions)
        if costs is not None:
            return model.predict(features, costs.log_cycles(own))
        assert self._prior is not None
        return model.predict(features, self._prior.log_cycles(positions))

    def _hidden_of(self, position: int) -> NDArray[np.float64] | None:
        """Hidden features (f,) of a schedule's program; None if it does not lower."""
        if position not in self._hidden:
            self._hidden[position] = hidden_features(self._domain, position)
        return self._hidden[position]

    # Candidates ---------------------------------------------------------------------------------
    def _pool(self) -> NDArray[np.int64]:
        """Unseen positions to look at: all of them if they are few, else a sample and what is near the best trials."""
        if self._prior is None and len(self._domain) <= self._options.pool:
            return np.flatnonzero(~self._seen)
        tried, valid, log_cycles = self._trials()
        best = tried[valid][np.argsort(log_cycles, kind="stable")[:_PARENTS]]
        parts = [self._domain.one_knob_away(position) for position in best[:8].tolist()]
        if self._prior is not None:
            parts.append(self._prior.pool)
        else:
            parts += [draw_unseen(self._rng, self._seen, _DRAWN), self._crossings(best)]
        pool = np.unique(np.concatenate(parts))
        pool = pool[~self._seen[pool]]
        return pool if len(pool) else draw_unseen(self._rng, self._seen, self._options.pool)

    def _threshold(self) -> float:
        """V's logit from which a schedule is trusted, from scratch."""
        return _TRUSTED if 2 * np.count_nonzero(self._outcomes.valid) >= len(self._outcomes) else _WARY

    def _crossings(self, parents: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions of schedules with each knob of one of two parents, or at random, int64 (k,)."""
        if len(parents) < 2:
            return np.empty(0, dtype=np.int64)
        rng, digits = self._rng, self._domain.digits(parents)
        shape = (_CROSSINGS, digits.shape[1])
        pairs = rng.integers(len(parents), size=(_CROSSINGS, 2))
        child = np.where(rng.random(shape) < 0.5, digits[pairs[:, 0]], digits[pairs[:, 1]])
        child = np.where(rng.random(shape) < _MUTATION, rng.integers(self._domain.radix, size=shape), child)
        found = np.unique(self._domain.positions_of_raw(child @ self._domain.weights))
        return found[found >= 0]

    def _candidates(self, n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Unseen positions for a round of ``n``: those that A may choose from, or without A the round's; and some at
        random, which are measured whatever A says."""
        pool = self._pool()
        if not len(pool):
            return pool, pool
        # Ties, as all are at the start of a run from scratch, are broken at random.
        pool = pool[self._rng.permutation(len(pool))]
        if self._prior is None:
            p, seen = self._fit_p(), self._visible(pool)
            cycles = np.zeros(len(pool)) if p is None else p.predict(seen)
            logits, threshold = self._validity(pool, seen, None), self._threshold()
            random = int(self._options.explore * n)
        else:
            (cycles, logits), threshold, random = self._predict(pool), 0.0, 0
        trusted = logits >= threshold
        # What V trusts in P's order, then the others by V.
        ranked = np.lexsort((np.where(trusted, cycles, -logits), ~trusted))
        if self._lost:
            # What V and P say led nowhere: half of the next ones are drawn from all there are.
            random = n // 2
        chosen = np.arange(min(n, len(ranked)))
        if self._a is not None and self._prior is None:
            chosen = self._to_lower(n, logits[ranked], int(trusted.sum()))
        elif self._a is not None:
            chosen = np.arange(min(math.ceil((self._options.alpha + 1) * n), len(ranked)))
        rest = np.delete(ranked, chosen)
        if not self._lost:
            rest = rest[trusted[rest]]
        if not random or len(rest) <= random:
            return pool[ranked[chosen]], pool[:0]
        if self._a is None:
            chosen = chosen[: n - random]
        return pool[ranked[chosen]], pool[self._rng.choice(rest, size=random, replace=False)]

    def _to_lower(self, n: int, logits: NDArray[np.float64], trusted: int) -> NDArray[np.int64]:
        """Places to lower in a ranking with V's ``logits`` (m,), of which the first so many are ``trusted``.

        By turns the first that is left, and one of which V is sure by chance, the logarithm of its place uniform: what
        P ranks first alone would be more of the same. They end where V expects too many not to lower.
        """
        most = self._options.lowered
        places = np.arange(min(most, len(logits)))
        if trusted > n:
            by_chance = np.exp(self._rng.uniform(0.0, math.log(trusted), size=4 * most)).astype(np.int64) - 1
            by_chance = by_chance[logits[by_chance] >= _SURE]
            turns = np.stack([places[: len(by_chance)], by_chance[: len(places)]], axis=1).ravel()
            _, first = np.unique(turns, return_index=True)
            turns = turns[np.sort(first)]
            places = np.concatenate([np.arange(n), turns[turns >= n]])
        expected = np.cumsum(1.0 / (1.0 + np.exp(logits[places])))
        count = int(np.searchsorted(expected, self._options.failures))
        return places[: min(max(count, n), most)]


def hidden_features(domain: Domain, position: int) -> NDArray[np.float64] | None:
    """Hidden features (h,) of a schedule's program; None if it does not lower."""
    try:
        return facts.features(domain.space.lower(int(domain.indices[position])))
    except InvalidSchedule:
        return None


def fit_performance(
    features: trees.Features,
    log_cycles: NDArray[np.float64],
    margin: NDArray[np.float64] | None = None,
    rounds: int = _ROUNDS,
    seed: int = 0,
) -> trees.Trees:
    """P, or A, on features (n, f) of valid trials; ``margin``: log cycles (n,) to improve on."""
    return trees.fit(features, log_cycles, "reg:squarederror", margin, rounds, seed, **_PERFORMANCE)


def fit_with_costs(
    features: trees.Features, own: NDArray[np.float64], log_cycles: NDArray[np.float64], seed: int = 0
) -> tuple[trees.Trees, trees.Costs]:
    """A from scratch: costs of the hidden features ``own`` (n, h), corrected by trees on ``features`` (n, f)."""
    costs = trees.Costs.fit(own, log_cycles)
    return fit_performance(features, log_cycles, costs.log_cycles(own), seed=seed), costs


def _scratch(given: Given) -> ML2Tuner:
    return ML2Tuner(given.domain, given.seed, "scratch")


def _with_network(given: Given, setting: str) -> ML2Tuner:
    network = predictor_of(given.network, given.domain.space.kind, given.domain.space.accelerator.design)
    return ML2Tuner(given.domain, given.seed, setting, Prior(given.domain, network, given.closed_form, given.evidence))


SCRATCH = TunerKind("ml2-scratch", "ML2Tuner: P, V and A learn from the trials alone", _scratch, needs_xgboost=True)
WARM = TunerKind(
    "ml2-warm",
    "ML2Tuner: P and V start from the shipped network",
    functools.partial(_with_network, setting="warm"),
    needs_network=True,
    needs_xgboost=True,
    shares_evidence=True,
)
FROZEN = TunerKind(
    "ml2-frozen",
    "the shipped network's ranking, nothing is learnt",
    functools.partial(_with_network, setting="frozen"),
    needs_network=True,
)
