"""Which measured times are not believed, however often a device repeats them.

Two things tell: no program is faster than its schedule's proven bound, and none is far faster than what the network,
calibrated by all that was measured, predicts. Either says something of a measurement only where it does not hold of
most: a board may be faster than described.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.tuning.base import Outcomes

# Valid trials from which predictions are held against times; share of a bound that rounding and noise may take.
_ENOUGH, _NOISE = 4, 0.03
# A measurement is too good to be believed whose log T is as much below what is predicted, beyond the median of all: at
# least so much, and so many times their spread.
_TOO_GOOD, _SPREADS = 0.25, 5.0
# Median absolute deviation of a normal distribution over its standard deviation.
_NORMAL_MAD = 0.6745


def too_good(residual: NDArray[np.float64]) -> float:
    """The residual (n,) of log T, of measured less predicted, below which a measurement is not believed."""
    middle = float(np.median(residual))
    spread = float(np.median(np.abs(residual - middle))) / _NORMAL_MAD
    return middle - max(_TOO_GOOD, _SPREADS * spread)


def below_bound(space: ScheduleSpace, indices: NDArray[np.int64], log_cycles: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which measured times (n,) of schedules are below what is proven of them; none where most are."""
    if not space.record.proven or not len(indices):
        return np.zeros(len(indices), dtype=bool)
    below = log_cycles < np.log(space.bound(indices)) - _NOISE
    return below & (2 * np.count_nonzero(below) < len(indices))


def doubted(
    space: ScheduleSpace, outcomes: Outcomes, log_cycles: NDArray[np.float64] | None = None
) -> NDArray[np.bool_]:
    """Which valid outcomes (n,) are not believed; ``log_cycles``: predicted of each, (n,), None: there is no
    prediction."""
    found = np.zeros(len(outcomes), dtype=bool)
    valid = np.flatnonzero(outcomes.valid)
    times = np.log(outcomes.cycles[valid].astype(np.float64))
    found[valid] = below_bound(space, outcomes.indices[valid], times)
    if log_cycles is not None and len(valid) >= _ENOUGH:
        residual = times - log_cycles[valid]
        found[valid] |= residual < too_good(residual)
    return found
