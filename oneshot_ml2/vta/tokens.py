"""Dependency tokens in program order: whether a program can end, and what it leaves behind.

Tokens outlive a submission: one that nothing has taken lets the next program on the device start something early.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.common.kernels import njit
from oneshot_ml2.common.parts import part
from oneshot_ml2.vta.program import Flag, Insns, Memory, Opcode

QUEUES = ("load-to-compute", "compute-to-load", "compute-to-store", "store-to-compute")
# The modules, in the order of the pipeline.
MODULES = ("load", "compute", "store")
LOADS, COMPUTES, STORES = 0, 1, 2
# By module: which of `QUEUES` a flag takes from or gives to, NO_QUEUE if there is none on that side.
NO_QUEUE = -1
POPS_PREV, POPS_NEXT = np.array((NO_QUEUE, 0, 2)), np.array((1, 3, NO_QUEUE))
PUSHES_PREV, PUSHES_NEXT = np.array((NO_QUEUE, 1, 3)), np.array((0, 2, NO_QUEUE))


@part()
def module_of(insn):  # type: ignore[no-untyped-def]
    """The module that executes an instruction (an `INSN` record): LOADS, COMPUTES or STORES."""
    if insn.op == Opcode.STORE:
        return STORES
    return LOADS if insn.op == Opcode.LOAD and (insn.mem == Memory.INP or insn.mem == Memory.WGT) else COMPUTES


def modules(insns: Insns) -> NDArray[np.int64]:
    """`module_of` each of some instructions (n,), int64 (n,)."""
    loads = (insns["op"] == Opcode.LOAD) & np.isin(insns["mem"], (Memory.INP, Memory.WGT))
    return np.where(insns["op"] == Opcode.STORE, STORES, np.where(loads, LOADS, COMPUTES))


@part()
def move(insn, tokens) -> bool:  # type: ignore[no-untyped-def]
    """Move ``tokens``, int64 (4,) in the order of `QUEUES`, as an instruction does; see `flow`."""
    sound, module = True, module_of(insn)
    for flag, queue in ((Flag.POP_PREV, POPS_PREV[module]), (Flag.POP_NEXT, POPS_NEXT[module])):
        if insn.flags & flag:
            sound = sound and queue >= 0 and tokens[queue] > 0
            if queue >= 0:
                tokens[queue] -= 1
    for flag, queue in ((Flag.PUSH_PREV, PUSHES_PREV[module]), (Flag.PUSH_NEXT, PUSHES_NEXT[module])):
        if insn.flags & flag:
            sound = sound and queue >= 0
            if queue >= 0:
                tokens[queue] += 1
    return sound


@njit(cache=True, nogil=True)
def flow(insns, tokens) -> bool:  # type: ignore[no-untyped-def]
    """Move ``tokens``, int64 (4,) in the order of `QUEUES`, as instructions (n,) do in program order.

    Returns whether every pop finds its token and every flag has a queue. Counts go below zero where a pop does not;
    flags without a queue move nothing.
    """
    sound = True
    for i in range(len(insns)):
        sound = move(insns[i], tokens) and sound
    return sound


@njit(cache=True, nogil=True)
def runs_in_order(insns) -> bool:  # type: ignore[no-untyped-def]
    """Whether every pop finds its token when instructions run in program order, and none is left over.

    Then no queue length can make the program hang: the oldest unfinished instruction can always start.
    """
    tokens = np.zeros(4, dtype=np.int64)
    sound = flow(insns, tokens)
    return sound and not tokens.any()


def left(insns: Insns) -> tuple[int, int, int, int]:
    """Tokens that a program's instructions (n,) leave in each of `QUEUES`, up to FINISH.

    Below zero where it waits for tokens that it does not push itself.
    """
    ends = np.flatnonzero(insns["op"] == Opcode.FINISH)
    tokens = np.zeros(4, dtype=np.int64)
    flow(insns[: ends[0] + 1] if len(ends) else insns, tokens)
    a, b, c, d = tokens.tolist()
    return a, b, c, d


def describe(tokens: tuple[int, int, int, int]) -> str:
    """Tokens by queue in words, as in ``1 store-to-compute``; empty if there are none."""
    return ", ".join(f"{count} {queue}" for queue, count in zip(QUEUES, tokens) if count)


def check_submission(insns: Insns) -> None:
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
