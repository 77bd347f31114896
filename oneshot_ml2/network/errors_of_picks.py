"""What picks turn out to take beside what the networks predict of them, as picks of validation tasks tell.

A pick is the least of many uncertain predictions, so it mostly takes longer than predicted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import WeightsError

if TYPE_CHECKING:
    from oneshot_ml2.network.predictor import Scores

# Where the figures stand in a card.
KEY = "picks"


@dataclass(frozen=True)
class PickErrors:
    """Log T of a pick is the predicted one + ``shift`` spreads + ``lean`` x the gap of the two networks' log T, with a
    standard deviation of ``scale`` spreads, and another one of ``reach`` gaps. Outside of the trained ranges that is a
    whole gap at least.
    """

    shift: float = 0.0
    lean: float = 0.0
    scale: float = 1.0
    reach: float = 0.0

    @classmethod
    def of(cls, card: Mapping[str, Any]) -> PickErrors:
        """Those of a model card; nothing is known of weights whose card has none.

        Raises:
            WeightsError: no finite numbers.
        """
        given = card.get(KEY, {})
        try:
            if not isinstance(given, Mapping):
                raise ValueError("no table")
            found = cls(**{field.name: float(given[field.name]) for field in fields(cls) if field.name in given})
        except (ValueError, TypeError) as error:
            raise WeightsError(
                f"the model card's {KEY!r} are {given!r}; use the card that came with the weights"
            ) from error
        if not all(map(math.isfinite, asdict(found).values())):
            raise WeightsError(f"the model card's {KEY!r} are not finite; use the card that came with the weights")
        return found

    def corrected(self, scores: Scores, gap: NDArray[np.float64], outside: bool) -> Scores:
        """Scores of picks (n,) whose networks are a ``gap`` (n,) apart, with what is known of the errors of picks;
        ``outside``: of the trained ranges.
        """
        ratio = np.maximum(scores.log_ratio, 0.0) + self.shift * scores.spread + self.lean * gap
        spread = np.hypot(self.scale * scores.spread, (max(self.reach, 1.0) if outside else self.reach) * gap)
        return replace(scores, log_ratio=ratio.astype(np.float32), spread=spread.astype(np.float32))
