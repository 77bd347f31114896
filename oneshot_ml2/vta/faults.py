"""What a board that is not as described does to a program: a slower memory, and limits that make results wrong."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.kernels import njit
from oneshot_ml2.vta import program as G
from oneshot_ml2.vta.accelerator import Accelerator

# When results are wrong: never, by a strided STORE of short rows, by a GEMM of many operations, by a large LOAD of INP.
RULES = ("none", "short_strided_store", "long_gemm", "wide_load")
_NONE, _SHORT_STORE, _LONG_GEMM, _WIDE_LOAD = range(4)
# Columns of `Faults.limits`: micro-ops that there is room for; which of `RULES`, and from where on; bytes of a page.
L_UOPS, L_RULE, L_LIMIT, L_PAGE = range(4)


@dataclass(frozen=True)
class Faults:
    """A board's faults.

    Attributes:
        board: the accelerator as it is, with the memory latency of the board.
        limits: int64 (4,), columns ``L_*``.
        slow: additional cycles that a beat of the memory port takes.
        miss: additional cycles of a request to another DRAM page than that before.
    """

    board: Accelerator
    limits: NDArray[np.int64]
    slow: float
    miss: float


@njit(cache=True, nogil=True)
def is_wrong(insns, limits):  # type: ignore[no-untyped-def]
    """Whether a program's micro-ops do not fit, or the rule strikes; ``limits``: of `Faults`."""
    rule, limit = limits[L_RULE], limits[L_LIMIT]
    for i in range(len(insns)):
        row = insns[i]
        op, x, y = row[G.C_OP], row[G.C_X], row[G.C_Y]
        if op == G.LOAD and x > 0:
            if row[G.C_MEM] == G.UOP and row[G.C_SRAM] + x * y > limits[L_UOPS]:
                return True
            if rule == _WIDE_LOAD and row[G.C_MEM] == G.INP and x * y > limit:
                return True
        elif rule == _SHORT_STORE and op == G.STORE and y > 1 and x < row[G.C_STRIDE] and x <= limit:
            return True
        elif rule == _LONG_GEMM and op == G.GEMM and row[G.C_RESET] == 0:
            span = max(row[G.C_UOP_END] - row[G.C_UOP_BGN], 0)
            if row[G.C_ITER_OUT] * row[G.C_ITER_IN] * span > limit:
                return True
    return False


@njit(cache=True, nogil=True)
def page_misses(insns, sizes, page):  # type: ignore[no-untyped-def]
    """Requests of LOADs and STOREs, in program order, that begin in another DRAM page than the one before ended in, and
    page borders within requests; ``sizes``: bytes of an element of each memory."""
    misses, last = 0, -1
    for i in range(len(insns)):
        row = insns[i]
        if (row[G.C_OP] != G.LOAD and row[G.C_OP] != G.STORE) or row[G.C_X] * row[G.C_Y] <= 0:
            continue
        size = sizes[G.OUT] if row[G.C_OP] == G.STORE else sizes[row[G.C_MEM]]
        for y in range(row[G.C_Y]):
            begin = (row[G.C_DRAM] + y * row[G.C_STRIDE]) * size
            first, end = begin // page, (begin + row[G.C_X] * size - 1) // page
            misses += end - first
            if first != last:
                misses += 1
            last = end
    return misses
