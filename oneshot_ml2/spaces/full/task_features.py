"""What the task network sees of a layer on an accelerator: sizes, and closed forms of the best schedules by each.

Everything is told in logarithms, and cycles beside the least guess in closed form, which T* lies near: the network
says how near.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.spaces.full.families import OBJECTIVES, cautious_of, guess_of
from oneshot_ml2.spaces.full.features import ACCELERATOR_LOGS, FLAGS, WORKLOAD_LOGS
from oneshot_ml2.spaces.full.totals import SUMMARY
from oneshot_ml2.vta.hls_keys import TICKS
from oneshot_ml2.vta.nest import HLS_RATES

# Raised whenever a feature changes its meaning; weights of another version are refused.
VERSION = 2

_SIZES = {**ACCELERATOR_LOGS, **WORKLOAD_LOGS, "accumulator distance": "acc_distance"}
# Fields of a nest that play no part on the HLS design.
_OF_RTL = ("burst", "latency")
_USES = ("inp_use", "wgt_use", "acc_use")
_COUNTS = ("loads", "gemms", "steps", "tiles", "instructions")
_CYCLES = tuple(name for name in SUMMARY if name not in (*_USES, *_COUNTS, "uops", "recurrence"))
_LINEAR_LIMIT = 4.0
# Cycles that an instruction or a row may cost, about.
_EACH = 16.0
FEATURES = (
    *(f"log {name}" for name in _SIZES),
    *FLAGS,
    "HLS design",
    *(f"log {name}" for name in HLS_RATES),
    "log guess",
    *(f"{form} {name}" for name in _CYCLES for form in ("log", "linear")),
    *(text for name in _COUNTS for text in (f"log {name}", f"linear {name}")),
    *_USES,
    "recurrence",
    "micro-ops of limit",
    "log latency of loads",
    "log elements of a load",
    *(f"log least {name}" for name in OBJECTIVES[1:]),
    *(f"log guess at the least {name}" for name in OBJECTIVES[1:]),
    "log cautious at the least guess",
    *(f"log {name} at the least {objective}" for objective in OBJECTIVES[1:] for name in (*_CYCLES, *_COUNTS)),
    *(f"{name} at the least {objective}" for objective in OBJECTIVES[1:] for name in _USES),
)


def _share(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """log2((1 + part) / whole)."""
    return np.log2((1.0 + part) / whole)


def reference(closed: NDArray[np.float64]) -> NDArray[np.float64]:
    """The cycles that T* is told beside, float64 (n,): the least that the closed form guesses."""
    return np.maximum(guess_of(closed[:, 0]), 1.0)


def encode(nests: NDArray[np.record], closed: NDArray[np.float64]) -> NDArray[np.float32]:
    """`FEATURES` of pairs, float32 (n, len(FEATURES)).

    Args:
        nests: loop nests (n,), records of `nest.DTYPE`.
        closed: float64 (n, objectives, len(SUMMARY)), closed forms of the best schedule by each of `OBJECTIVES`.
    """
    likely = dict(zip(SUMMARY, closed[:, 0].T, strict=True))
    whole, hls = reference(closed), nests["hls"].astype(np.float64)
    columns = [
        np.log2(1.0 + nests[field] * (1.0 - hls if field in _OF_RTL else 1.0)).astype(np.float64)
        for field in _SIZES.values()
    ]
    columns += [nests[field].astype(np.float64) for field in FLAGS.values()]
    columns += [hls, *(np.log2(1.0 + hls * nests[rate] / TICKS) for rate in HLS_RATES), np.log2(whole)]
    for name in _CYCLES:
        columns += [_share(likely[name], whole), np.minimum(likely[name] / whole, _LINEAR_LIMIT)]
    for name in _COUNTS:
        columns += [np.log2(1.0 + likely[name]), np.minimum(_EACH * likely[name] / whole, _LINEAR_LIMIT)]
    columns += [likely[name] for name in _USES]
    columns += [np.minimum(likely["recurrence"], 8.0), likely["uops"] / nests["uop_limit"]]
    columns += [_share((1.0 - hls) * nests["latency"] * likely["loads"], whole)]
    columns += [np.log2((1.0 + likely["inp_beats"] + likely["wgt_beats"]) / (1.0 + likely["loads"]))]
    floor, safe = closed[:, 1], closed[:, 2]
    columns += [_share(floor[:, SUMMARY.index("bound")], whole), _share(cautious_of(safe), whole)]
    columns += [_share(guess_of(floor), whole), _share(guess_of(safe), whole), _share(cautious_of(closed[:, 0]), whole)]
    others = [dict(zip(SUMMARY, closed[:, number].T, strict=True)) for number in range(1, len(OBJECTIVES))]
    columns += [_share(other[name], whole) for other in others for name in (*_CYCLES, *_COUNTS)]
    columns += [other[name] for other in others for name in _USES]
    return np.stack(columns, axis=1).astype(np.float32)
