"""Dependency tokens in program order: whether a program can end, and what it leaves behind (VTA reference, section 4).

Tokens outlive a submission: one that nothing has taken lets the next program on the device start something early.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.common.kernels import njit
from oneshot_ml2.vta.program import (
    C_FLAGS,
    C_MEM,
    C_OP,
    FINISH,
    INP,
    LOAD,
    POP_NEXT,
    POP_PREV,
    PUSH_NEXT,
    PUSH_PREV,
    STORE,
    WGT,
)

QUEUES = ("load-to-compute", "compute-to-load", "compute-to-store", "store-to-compute")


@njit(cache=True, nogil=True)
def flow(insns, tokens) -> bool:  # type: ignore[no-untyped-def]
    """Move ``tokens``, int64 (4,) in the order of `QUEUES`, as instructions, int64 (n, COLUMNS), do in program order.

    Returns whether every pop finds its token and every flag has a queue. Counts go below zero where a pop does not;
    flags without a queue move nothing.
    """
    sound = True
    for i in range(len(insns)):
        op, flags = insns[i, C_OP], insns[i, C_FLAGS]
        if op == STORE:
            pop_prev, pop_next, push_prev, push_next = 2, -1, 3, -1
        elif op == LOAD and (insns[i, C_MEM] == INP or insns[i, C_MEM] == WGT):
            pop_prev, pop_next, push_prev, push_next = -1, 1, -1, 0
        else:
            pop_prev, pop_next, push_prev, push_next = 0, 3, 1, 2
        for flag, queue in ((POP_PREV, pop_prev), (POP_NEXT, pop_next)):
            if flags & flag:
                sound = sound and queue >= 0 and tokens[queue] > 0
                if queue >= 0:
                    tokens[queue] -= 1
        for flag, queue in ((PUSH_PREV, push_prev), (PUSH_NEXT, push_next)):
            if flags & flag:
                sound = sound and queue >= 0
                if queue >= 0:
                    tokens[queue] += 1
    return sound


@njit(cache=True, nogil=True)
def runs_in_order(insns) -> bool:  # type: ignore[no-untyped-def]
    """Whether every pop finds its token when instructions run in program order, and none is left over.

    Then no queue length can make the program hang: the oldest unfinished instruction can always start.
    """
    tokens = np.zeros(4, dtype=np.int64)
    sound = flow(insns, tokens)
    return sound and not tokens.any()


def left(insns: NDArray[np.int64]) -> tuple[int, int, int, int]:
    """Tokens that a program, int64 (n, COLUMNS), leaves in each of `QUEUES`, up to FINISH.

    Below zero where it waits for tokens that it does not push itself.
    """
    ends = np.flatnonzero(insns[:, C_OP] == FINISH)
    tokens = np.zeros(4, dtype=np.int64)
    flow(insns[: ends[0] + 1] if len(ends) else insns, tokens)
    a, b, c, d = tokens.tolist()
    return a, b, c, d


def describe(tokens: tuple[int, int, int, int]) -> str:
    """Tokens by queue in words, as in ``1 store-to-compute``; empty if there are none."""
    return ", ".join(f"{count} {queue}" for queue, count in zip(QUEUES, tokens) if count)


def check_submission(insns: NDArray[np.int64]) -> None:
    """Refuse a program that does not leave every queue as it found it.

    Raises:
        OneShotError: tokens are left for the next program, or it takes more than it pushes.
    """
    tokens = left(insns)
    if any(tokens):
        raise OneShotError(
            f"the program does not leave its token queues empty ({describe(tokens)}), so the next one on the device"
            " would go wrong; let it pop as many tokens as it pushes before FINISH ends it"
        )
