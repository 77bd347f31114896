"""Which measured times of a run are not believed, however often a device repeats them.

Two things tell: no program is faster than its schedule's proven bound, and none is far faster than what the network,
calibrated by all that was measured, predicts. Either says something of a measurement only where it does not hold of
most: a board may be faster than described.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.tuning.base import Outcomes
from oneshot_ml2.tuning.calibrate import too_good

# Valid trials from which predictions are held against times; share of a bound that rounding and noise may take.
_ENOUGH, _NOISE = 4, 0.03


def doubted(
    space: ScheduleSpace, outcomes: Outcomes, log_cycles: NDArray[np.float64] | None = None
) -> NDArray[np.bool_]:
    """Which valid outcomes (n,) are not believed; ``log_cycles``: predicted of each, (n,), None: there is no
    prediction."""
    found = np.zeros(len(outcomes), dtype=bool)
    valid = np.flatnonzero(outcomes.valid)
    times = np.log(outcomes.cycles[valid].astype(np.float64))
    if space.record.proven and len(valid):
        below = times < np.log(space.bound(outcomes.indices[valid])) - _NOISE
        if 2 * np.count_nonzero(below) < len(valid):
            found[valid] |= below
    if log_cycles is not None and len(valid) >= _ENOUGH:
        residual = times - log_cycles[valid]
        found[valid] |= residual < too_good(residual)
    return found
