"""ML2Tuner (arXiv 2411.10764): P ranks, V filters, the best are lowered, A ranks those anew, and some are measured.

P predicts cycles from what can be seen of a schedule, V whether it is valid, A cycles from that and from the hidden
features of its program. P and A learn from valid trials, V from all. Of (alpha + 1) N candidates that are lowered, N
are measured; the others have no label and may come back. Candidates that do not lower are trials.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.errors import OneShotError
from oneshot_ml2.schedule import InvalidSchedule, Reason
from oneshot_ml2.tuner import Domain, Outcomes, draw_unseen, trees
from oneshot_ml2.vta import hidden

if TYPE_CHECKING:
    from oneshot_ml2.predictor import Predictor

SETTINGS = ("scratch", "warm", "frozen")
# A needs so many valid trials; P so many.
_ENOUGH_FOR_A, _ENOUGH_FOR_P = 6, 3
# Boosting of the three models; those that improve on the network take smaller steps.
_PERFORMANCE = {"max_depth": 4, "eta": 0.1, "min_child_weight": 1.0}
_VALIDITY = {"max_depth": 5, "eta": 0.2, "min_child_weight": 0.5}
# Where the network is sure, the logistic loss is almost flat: no leaf would have the weight above.
_WARM_VALIDITY = {"max_depth": 4, "eta": 0.2, "min_child_weight": 0.0, "max_delta_step": 2.0}
_ROUNDS = 120
_WARM_ROUNDS = 40
_LARGEST_LOGIT = 4.0


@dataclass(frozen=True)
class Options:
    """``alpha``: candidates lowered for each that is measured, less one; ``pool``: schedules that P and V look at in a
    round at most; ``explore``: share of a round that is drawn from what V trusts, whatever P says of it."""

    alpha: float = 1.0
    pool: int = 1 << 13
    explore: float = 0.1


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
            raise OneShotError(f"no setting {setting!r} of ML2Tuner; there are: {', '.join(SETTINGS)}")
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
        self._prior = prior

    def propose(self, n: int) -> NDArray[np.int64]:
        """See `Tuner.propose`; candidates that do not lower come first."""
        a = self._fit_a()
        lowering = self._setting != "frozen" and a is not None
        wanted = math.ceil((self._options.alpha + 1) * n) if lowering else n
        chosen = self._candidates(wanted)
        if lowering and a is not None:
            rows = [self._hidden_of(position) for position in chosen.tolist()]
            failed = np.array([row is None for row in rows], dtype=bool)
            lowered = chosen[~failed]
            if len(lowered):
                lowered = lowered[np.argsort(a.predict(*self._a_inputs(lowered)), kind="stable")]
            chosen = np.concatenate([chosen[failed], lowered[:n]])
        self._seen[chosen] = True
        return self._domain.indices[chosen]

    def observe(self, results: Outcomes) -> None:
        """See `Tuner.observe`."""
        self._outcomes = self._outcomes + results
        self._lost = self._setting != "frozen" and not results.valid.any()
        self._seen[self._domain.positions(results.indices)] = True

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

    def _log_cycles_prior(self, positions: NDArray[np.int64]) -> NDArray[np.float64] | None:
        return None if self._prior is None else self._prior.log_cycles(positions)

    def _predict(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Log cycles by P and validity logits by V of positions (n,); 0 where a model has nothing to go by."""
        tried, valid, log_cycles = self._trials()
        cycles, logits = np.zeros(len(positions)), np.zeros(len(positions))
        cycles_prior, logit_prior = self._log_cycles_prior(positions), None
        if self._prior is not None:
            logit_prior = self._prior.logits(positions)
            cycles, logits = self._prior.log_cycles(positions), logit_prior
            if self._setting == "frozen":
                return cycles, logits
        rounds = _ROUNDS if self._prior is None else _WARM_ROUNDS
        seen = self._visible(positions) if len(tried) else None
        if seen is not None and valid.sum() >= _ENOUGH_FOR_P:
            good = tried[valid]
            p = trees.fit(
                self._visible(good), log_cycles, "reg:squarederror", self._log_cycles_prior(good), rounds, self._seed,
                **_PERFORMANCE,
            )  # fmt: skip
            cycles = p.predict(seen, cycles_prior)
        if seen is not None:
            logits = self._validity(positions, seen, logit_prior)
        return cycles, logits

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
        if len(classes) == 1 or (self._prior is None and not (ended == Reason.VALID).any()):
            return np.zeros(len(positions)) if prior is None else prior
        others = len(classes) - 1

        def margin(logits: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.concatenate([logits[:, None], np.full((len(logits), others), -np.log(others))], axis=1)

        settings = _VALIDITY if self._prior is None else _WARM_VALIDITY
        model = trees.fit(
            self._visible(known),
            np.searchsorted(classes, ended).astype(np.float64),
            "multi:softprob",
            None if self._prior is None else margin(self._prior.logits(known)),
            _ROUNDS if self._prior is None else _WARM_ROUNDS,
            self._seed,
            num_class=len(classes),
            **settings,
        )
        scores = model.predict(seen, None if prior is None else margin(prior))
        return scores[:, 0] - np.logaddexp.reduce(scores[:, 1:], axis=1)

    def _a_inputs(self, positions: NDArray[np.int64]) -> tuple[trees.Features, NDArray[np.float64] | None]:
        rows = [self._hidden_of(position) for position in positions.tolist()]
        own = np.array([row for row in rows if row is not None], dtype=np.float32).reshape(len(rows), -1)
        return np.concatenate([own, self._visible(positions)], axis=1), self._log_cycles_prior(positions)

    def _fit_a(self) -> trees.Trees | None:
        """A on the valid trials; None while they are too few."""
        if self._setting == "frozen":
            return None
        tried, valid, log_cycles = self._trials()
        if valid.sum() < _ENOUGH_FOR_A:
            return None
        features, margin = self._a_inputs(tried[valid])
        rounds = _ROUNDS if self._prior is None else _WARM_ROUNDS
        return trees.fit(features, log_cycles, "reg:squarederror", margin, rounds, self._seed, **_PERFORMANCE)

    def _hidden_of(self, position: int) -> NDArray[np.float64] | None:
        """Hidden features (f,) of a schedule's program; None if it does not lower."""
        if position not in self._hidden:
            try:
                program = self._domain.space.lower(int(self._domain.indices[position]))
                self._hidden[position] = hidden.features(program)
            except InvalidSchedule:
                self._hidden[position] = None
        return self._hidden[position]

    # Candidates ---------------------------------------------------------------------------------
    def _pool(self) -> NDArray[np.int64]:
        """Unseen positions to look at: all of them if they are few, else a sample and what is near the best trials."""
        if self._prior is not None:
            pool = self._prior.pool
        elif len(self._domain) <= self._options.pool:
            pool = np.arange(len(self._domain))
        else:
            pool = draw_unseen(self._rng, self._seen, self._options.pool)
        tried, valid, log_cycles = self._trials()
        near = tried[valid][np.argsort(log_cycles, kind="stable")[:8]]
        around = [self._domain.one_knob_away(position) for position in near.tolist()]
        if len(self._domain) > self._options.pool or self._prior is not None:
            pool = np.unique(np.concatenate([pool, *around]))
        pool = pool[~self._seen[pool]]
        return pool if len(pool) else draw_unseen(self._rng, self._seen, self._options.pool)

    def _candidates(self, n: int) -> NDArray[np.int64]:
        """``n`` unseen positions: those that V trusts in P's order, then the others by V; some at random."""
        pool = self._pool()
        if not len(pool):
            return pool
        cycles, logits = self._predict(pool)
        # Ties, as all are at the start of a run from scratch, are broken at random.
        shuffled = self._rng.permutation(len(pool))
        pool, cycles, logits = pool[shuffled], cycles[shuffled], logits[shuffled]
        trusted = logits >= 0.0
        ranked = np.lexsort((np.where(trusted, cycles, -logits), ~trusted))
        chosen, rest = ranked[:n], ranked[n:]
        if self._lost:
            # What V and P say led nowhere: half of the next ones are drawn from all there are.
            random = n // 2
        else:
            random = int(self._options.explore * n) if self._setting == "scratch" else 0
            rest = rest[trusted[rest]]
        if random and len(rest) > random:
            chosen = np.concatenate([chosen[: n - random], self._rng.choice(rest, size=random, replace=False)])
        return pool[chosen]


class Prior:
    """What the network says of a domain: its best candidates, and scores of any others when they are asked for.

    ``pool``: positions of the best, int64 (m,). ``closed_form``: as of `oneshot.rank`; off, the networks alone decide.

    Raises:
        OneShotError: a space that the network does not know.
    """

    def __init__(self, domain: Domain, network: Predictor, closed_form: bool = False) -> None:
        from oneshot_ml2 import oneshot

        self._domain, self._network = domain, network
        ranking = oneshot.rank(domain.space, network, closed_form)
        found = domain.positions(ranking.indices)
        inside = found >= 0
        self.pool = found[inside]
        self._scores: dict[int, tuple[float, float, float]] = {}
        self._keep(
            self.pool, ranking.scores.p_valid[inside], ranking.scores.cycles[inside], ranking.scores.spread[inside]
        )

    def _keep(self, positions, p_valid, cycles, spread) -> None:  # type: ignore[no-untyped-def]
        p = np.clip(p_valid.astype(np.float64), 1e-9, 1.0 - 1e-9)
        logits = np.clip(np.log(p / (1.0 - p)), -_LARGEST_LOGIT, _LARGEST_LOGIT)
        rows = zip(np.log(cycles).tolist(), logits.tolist(), spread.astype(np.float64).tolist(), strict=True)
        self._scores.update(zip(positions.tolist(), rows, strict=True))

    def _rows(self, positions: NDArray[np.int64]) -> NDArray[np.float64]:
        """Log cycles, validity logit and spread, float64 (n, 3)."""
        wanted = positions.tolist()
        new = np.array([position for position in wanted if position not in self._scores], dtype=np.int64)
        if len(new):
            scores = self._network.score(self._domain.space, self._domain.indices[new])
            self._keep(new, scores.p_valid, scores.cycles, scores.spread)
        return np.array([self._scores[position] for position in wanted], dtype=np.float64).reshape(-1, 3)

    def log_cycles(self, positions: NDArray[np.int64]) -> NDArray[np.float64]:
        """Logarithms of the predicted cycles, float64 (n,)."""
        return self._rows(positions)[:, 0]

    def logits(self, positions: NDArray[np.int64]) -> NDArray[np.float64]:
        """Validity logits, float64 (n,), bounded, so that trials can outweigh them."""
        return self._rows(positions)[:, 1]

    def features(self, positions: NDArray[np.int64]) -> trees.Features:
        """What A, and the corrections of P and V, see of the network, float32 (n, 3)."""
        return self._rows(positions).astype(np.float32)
