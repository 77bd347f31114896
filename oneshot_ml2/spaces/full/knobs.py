"""Knobs of a `full` schedule: what each means, and the record by whose fields compiled code reads them.

Batches of schedules are int64 arrays (n, knobs) of knob values everywhere outside of compiled code; `schedules` is
the same memory as records.

Records of numpy are pointers for compiled code, and keep nothing alive: one is only used in a function that has its
array as an argument, returns it, or uses it later.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numba import from_dtype, types
from numpy.typing import NDArray

from oneshot_ml2.common.parts import part
from oneshot_ml2.vta import nest

KNOBS = (
    "tile_co",
    "tile_h",
    "tile_w",
    "tile_ci",
    "dataflow",
    "inp_buffers",
    "wgt_buffers",
    "acc_buffers",
    "fold",
    "pad",
    "head",
    "drain",
    "bias",
)
SCHEDULE = np.dtype((np.record, [(name, np.int64) for name in KNOBS]))
# Records of `SCHEDULE`.
Schedules: TypeAlias = NDArray[Any]

# Types of arguments, for functions that are called with constants: numba would compile them anew for each.
INT = types.int64
NEST = from_dtype(nest.DTYPE)  # type: ignore[no-untyped-call]
ONE_SCHEDULE = from_dtype(SCHEDULE)  # type: ignore[no-untyped-call]

# Dataflow: which loop is outer and which operand stays resident while it is reused.
FLOW_CO_STREAM, FLOW_CO_WGT, FLOW_CO_WGT_ALL_INP, FLOW_SP_INP, FLOW_SP_INP_ALL_WGT, FLOW_SP_ALL_WGT = 0, 1, 2, 3, 4, 5
# How an operand is held: a ring of chunks, the set of the current outer tile, or everything.
STREAM, SET, ALL = 0, 1, 2
INP_MODE = np.array([STREAM, STREAM, ALL, SET, SET, STREAM], dtype=np.int64)
WGT_MODE = np.array([STREAM, SET, SET, STREAM, ALL, ALL], dtype=np.int64)
# What the two loops of a GEMM iterate; the rest are micro-ops. With the last, every tap is a GEMM of its own, else all
# that touch as many outputs share one.
FOLD_SPACE, FOLD_CI_ROWS, FOLD_CI_CO, FOLD_TAPS = 0, 1, 2, 3
FOLDS = 4
PAD_SKIP, PAD_LOAD = 0, 1
# How the program starts: with whole chunks; with chunks of one channel block; with chunks that double. The last two
# also cut the very first step along the output channels.
HEAD_WHOLE, HEAD_SINGLE, HEAD_DOUBLING = 0, 1, 2
BIAS_ADD, BIAS_LOAD, BIAS_GEMM = 0, 1, 2
# Candidates of the drain knob: into how many pieces the exposed stores are cut.
DRAIN = (1, 4, 16)


def schedules(values: NDArray[np.int64]) -> Schedules:
    """Knob values, int64 (n, knobs), as records (n,) of `SCHEDULE`: the same memory where that is contiguous."""
    return np.ascontiguousarray(values, dtype=np.int64).view(SCHEDULE)[:, 0]


@part(INT(INT, INT))
def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@part()
def outer_is_co(flow: int) -> bool:
    """Whether output channels are the outer tile loop (else the spatial tiles are)."""
    return flow <= FLOW_CO_WGT_ALL_INP
