"""The critical path of a program: its longest chain of instructions of which each waits for the one before.

An instruction waits for the one before it in its module (load, compute, store) and for the tokens that it takes. An
operation or a bus beat is a cycle, and nothing else takes any time: no latencies, no fetch, no shared port. So the
path tells how far the modules overlap, and leaves it to a model what a board's memory adds to that.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.kernels import njit
from oneshot_ml2.common.parts import part
from oneshot_ml2.vta import tokens as queues
from oneshot_ml2.vta.program import ITERATIONS, Flag, Insns, Memory, Opcode
from oneshot_ml2.vta.writing import fill

# What is told of a path: its cycles; LOADs of the load module, GEMM and ALU instructions, STOREs, and LOADs of the
# compute module on it; requests and bursts of all these LOADs and STOREs.
PATH = ("cycles", "loads", "computes", "stores", "compute_loads", "requests", "bursts")
_PATH = np.dtype([(name, np.int64) for name in PATH])


@part()
def rows(first, count, x_bytes, stride, bus, burst):  # type: ignore[no-untyped-def]
    """Beats and bursts of a rectangle's rows: ``first`` byte address, bytes a row, bytes from row to row; ``bus``,
    ``burst`` as of `critical_path`."""
    beats = bursts = 0
    for row in range(count):
        word = (first + row * stride) // bus
        end = (first + row * stride + x_bytes + bus - 1) // bus
        beats += end - word
        bursts += (end - 1) // burst - word // burst + 1
    return beats, bursts


@part()
def _modules(insns, order, sizes):  # type: ignore[no-untyped-def]
    """Instructions of load, compute and store in their order, into ``order`` (3, n); ``sizes`` (3,): how many."""
    fill(sizes, 0)
    for i in range(len(insns)):
        module = queues.module_of(insns[i])
        order[module, sizes[module]] = i
        sizes[module] += 1


@part()
def _extend(state, insn, module, elements, bus, burst):  # type: ignore[no-untyped-def]
    """A path, a record of `_PATH`, with one more instruction at its end."""
    op = insn.op
    if op == Opcode.LOAD or op == Opcode.STORE:
        x, y = insn.x, insn.y
        if x == 0 or y == 0:
            return
        size = elements[Memory.OUT] if op == Opcode.STORE else elements[insn.mem]
        beats, bursts = rows(insn.dram * size, y, x * size, insn.stride * size, bus, burst)
        state.cycles += beats
        state.requests += y
        state.bursts += bursts
        state.loads += module == queues.LOADS
        state.compute_loads += module == queues.COMPUTES
        state.stores += module == queues.STORES
    elif op == Opcode.GEMM or op == Opcode.ALU:
        outer = insn.iter_out if insn.iter_out > 0 else ITERATIONS
        inner = insn.iter_in if insn.iter_in > 0 else ITERATIONS
        operations = outer * inner * max(insn.uop_end - insn.uop_bgn, 0)
        state.cycles += 2 * operations if op == Opcode.ALU and insn.use_imm == 0 else operations
        state.computes += 1


@njit(cache=True, nogil=True)
def _walk(insns, elements, bus, burst):  # type: ignore[no-untyped-def]
    """The path, `_PATH` (1,), of a program whose tokens do not deadlock."""
    n = len(insns)
    order, sizes = np.empty((3, n), dtype=np.int64), np.empty(3, dtype=np.int64)
    _modules(insns, order, sizes)
    # Tokens in flight, by `tokens.QUEUES`.
    tokens = np.zeros((4, n), dtype=_PATH)
    pushed, popped = np.zeros(4, dtype=np.int64), np.zeros(4, dtype=np.int64)
    now, at = np.zeros(3, dtype=_PATH), np.zeros(3, dtype=np.int64)
    states = np.zeros(1, dtype=_PATH)
    moved = True
    while moved:
        moved = False
        for module in range(3):
            while at[module] < sizes[module]:
                insn = insns[order[module, at[module]]]
                flags = insn.flags
                first = queues.POPS_PREV[module] if flags & Flag.POP_PREV else -1
                second = queues.POPS_NEXT[module] if flags & Flag.POP_NEXT else -1
                waits = first >= 0 and popped[first] == pushed[first]
                if waits or (second >= 0 and popped[second] == pushed[second]):
                    break
                states[0] = now[module]
                for queue in (first, second):
                    if queue >= 0:
                        if tokens[queue, popped[queue]].cycles > states[0].cycles:
                            states[0] = tokens[queue, popped[queue]]
                        popped[queue] += 1
                _extend(states[0], insn, module, elements, bus, burst)
                now[module] = states[0]
                for queue, flag in (
                    (queues.PUSHES_PREV[module], Flag.PUSH_PREV),
                    (queues.PUSHES_NEXT[module], Flag.PUSH_NEXT),
                ):
                    if queue >= 0 and flags & flag:
                        tokens[queue, pushed[queue]] = states[0]
                        pushed[queue] += 1
                at[module] += 1
                moved = True
    longest = 0
    for module in range(1, 3):
        if now[module].cycles > now[longest].cycles:
            longest = module
    return now[longest : longest + 1]


def critical_path(insns: Insns, elements: NDArray[np.int64], bus: int, burst: int) -> NDArray[np.int64]:
    """`PATH` of a program's instructions (n,), int64 (7,).

    ``elements``: int64, bytes of an element of each memory id; ``bus``: bytes of a beat; ``burst``: beats of the
    longest burst.
    """
    return np.asarray(_walk(insns, elements, bus, burst)).view(np.int64)
