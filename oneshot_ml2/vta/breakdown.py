"""A program's cycles, divided by what compute did in each of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.vta import tokens
from oneshot_ml2.vta.program import Flag, Insns, Opcode

# Where the cycles go, in the table's order; see `split_cycles`.
PARTS = ("gemm", "alu", "load", "store", "rest")


def split_cycles(insns: Insns, trace: NDArray[np.int64], cycles: int) -> dict[str, int]:
    """What the compute engine did in every cycle of a run: ``PARTS`` -> cycles, which add up to ``cycles``.

    ``insns``: (n,); ``trace``: (n, 2), execution cycles [start, done). ``gemm`` and ``alu`` are the execution
    of GEMMs and of resets and ALU instructions; ``load`` is the start up to the first of them, gaps that a token
    from the load module ends, and LOADs that the compute module executes itself; ``store`` is the gaps that a
    token from the store module ends, and all that follows the last of them; ``rest`` is what remains (turnover and
    fetch).
    """
    op, flags, modules = insns["op"], insns["flags"], tokens.modules(insns)
    compute = modules == tokens.COMPUTES
    engine = (op == Opcode.GEMM) | (op == Opcode.ALU)
    first, last = int(trace[engine, 0].min()), int(trace[engine, 1].max())
    kinds = np.select(
        [op == Opcode.LOAD, (op == Opcode.GEMM) & (insns["reset"] == 0), engine], ["load", "gemm", "alu"], "rest"
    ).tolist()

    # When the token that each compute instruction pops was pushed; the k-th pop takes the k-th push.
    arrival = np.zeros((2, len(insns)), dtype=np.int64)
    for row, pop, giver, push in (
        (0, Flag.POP_PREV, tokens.LOADS, Flag.PUSH_NEXT),
        (1, Flag.POP_NEXT, tokens.STORES, Flag.PUSH_PREV),
    ):
        takers = np.flatnonzero(compute & (flags & pop != 0))
        pushed = trace[(modules == giver) & (flags & push != 0), 1]
        arrival[row, takers] = pushed[: len(takers)]

    parts = dict.fromkeys(PARTS, 0)
    parts["load"], parts["store"] = first, cycles - last
    previous = first
    for i in np.flatnonzero(compute):
        start, done = int(trace[i, 0]), int(trace[i, 1])
        if start < first or start >= last:
            continue
        by_load, by_store = arrival[:, i]
        cause = "rest" if max(by_load, by_store) <= previous else "load" if by_load >= by_store else "store"
        parts[cause] += start - previous
        parts[kinds[i]] += done - start
        previous = done
    return parts
