"""What the network says of a domain, and how trials on a board correct it: the prior of ML2Tuner's warm setting."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.network import picking
from oneshot_ml2.spaces.registry import space_kind
from oneshot_ml2.tuning import calibrate
from oneshot_ml2.tuning.base import Domain, Outcomes
from oneshot_ml2.tuning.trees import Features

if TYPE_CHECKING:
    from oneshot_ml2.network.predictor import Predictor
    from oneshot_ml2.spaces.space import ScheduleSpace
    from oneshot_ml2.tuning.calibrate import Board

_LARGEST_LOGIT = 4.0


class Evidence:
    """What was measured on one board, of all layers that are tuned there, and the network calibrated by it.

    Not every kind of space has calibrations. That of weights which were fine-tuned on the board is kept.
    """

    def __init__(self, network: Predictor) -> None:
        self.network = self._given = network
        self._outcomes: list[Outcomes] = []
        self._stale = False
        self._board: Board | None = None

    def add(self, space: ScheduleSpace) -> int:
        """Another layer; its number."""
        calibrates = space_kind(self._given.kind).boards is not None and self._given.calibration is None
        if self._board is None and calibrates:
            self._board = calibrate.Board([space], self._given)
        elif self._board is not None:
            self._board.spaces.append(space)
        self._outcomes.append(Outcomes.none())
        return len(self._outcomes) - 1

    def observe(self, layer: int, outcomes: Outcomes) -> None:
        """All trials of a layer so far."""
        self._outcomes[layer] = outcomes
        self._stale = True

    def calibrated(self) -> Predictor:
        """The network with a `Calibration` that is fitted to all trials; the same object as long as it stays equal."""
        if self._board is not None and self._stale:
            together = functools.reduce(operator.add, self._outcomes)
            layer = np.repeat(np.arange(len(self._outcomes)), [len(own) for own in self._outcomes])
            once = np.ones(len(together), dtype=np.int64)
            measured = calibrate.Measured(layer, together.indices, together.reason, together.cycles, once)
            trusted = measured.take(calibrate.believed(self._board, measured))
            adapted = self._board.adapted(calibrate.fit(self._board, trusted))
            if not _same(adapted.tensors, self.network.tensors):
                self.network = adapted
        self._stale = False
        return self.network


class Prior:
    """The network's best candidates of a domain, and its scores of any others when they are asked for.

    ``pool``: positions of the best, int64 (m,). ``closed_form``: as of `picking.rank`; off, the networks alone decide.
    ``evidence``: what is measured on the board, shared with other layers; None: of this domain alone.

    Raises:
        OneShotError: a space that the network does not know.
    """

    def __init__(
        self, domain: Domain, network: Predictor, closed_form: bool = False, evidence: Evidence | None = None
    ) -> None:
        self._domain, self._closed_form = domain, closed_form
        self._evidence = evidence or Evidence(network)
        self._layer = self._evidence.add(domain.space)
        self._rank(network)

    def _rank(self, network: Predictor) -> None:
        self._network = network
        ranking = picking.rank(self._domain.space, network, self._closed_form)
        found = self._domain.positions(ranking.indices)
        inside = found >= 0
        self.pool = found[inside]
        self._scores: dict[int, tuple[float, float, float]] = {}
        self._keep(
            self.pool, ranking.scores.p_valid[inside], ranking.scores.cycles[inside], ranking.scores.spread[inside]
        )

    def observe(self, outcomes: Outcomes) -> None:
        """All trials of the domain so far."""
        self._evidence.observe(self._layer, outcomes)

    def refresh(self) -> None:
        """Rank anew if what was measured on the board says anything else than before."""
        network = self._evidence.calibrated()
        if network is not self._network:
            self._rank(network)

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

    def features(self, positions: NDArray[np.int64]) -> Features:
        """What A, and the corrections of P and V, see of the network, float32 (n, 3)."""
        return self._rows(positions).astype(np.float32)


def _same(tensors: Mapping[str, NDArray[np.float32]], others: Mapping[str, NDArray[np.float32]]) -> bool:
    return set(tensors) == set(others) and all(np.array_equal(tensor, others[name]) for name, tensor in tensors.items())
