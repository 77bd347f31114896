"""What counts of an accelerator, and which ones no other beats."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from oneshot_ml2.codesign.fpga import Fpga
    from oneshot_ml2.codesign.resources import Resources

# What is minimised: milliseconds of all models, weighted; milliseconds an image with the batch filled; and squared
# milliseconds times the share of the FPGA's scarcest resource, as nothing is known of power.
OBJECTIVES = ("latency", "throughput", "edp-like")


def share_of(taken: Resources, fpga: Fpga) -> float:
    """The share of an FPGA's scarcest resource that is taken."""
    return max(taken.bram36 / fpga.bram36, taken.dsp / fpga.dsp, taken.lut / fpga.lut)


def score(objective: str, ms: float, taken: Resources, fpga: Fpga) -> float:
    """What an accelerator is ranked by, the less the better."""
    return ms * ms * share_of(taken, fpga) if objective == "edp-like" else ms


def pareto(costs: NDArray[np.float64]) -> NDArray[np.int64]:
    """Positions of the rows (n, k) of costs that no other row is below or equal to in all and below in one, int64 (m,),
    ascending by the first column; of equal rows the first."""
    order = np.lexsort(costs.T[::-1])
    front: list[int] = []
    kept = np.empty((0, costs.shape[1]))
    for place in order.tolist():
        # What comes earlier is no worse in the first column, so only those can be below.
        if np.isfinite(costs[place]).all() and not (kept <= costs[place]).all(axis=1).any():
            front.append(place)
            kept = np.vstack([kept, costs[place]])
    return np.array(front, dtype=np.int64)
