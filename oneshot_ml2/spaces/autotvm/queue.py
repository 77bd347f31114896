"""The instruction queue of TVM's run time: which instructions carry which tokens, and which micro-ops are resident.

As in VTA's ``runtime.cc``, whose programs ours equal.
"""

from __future__ import annotations

import numpy as np

from oneshot_ml2.common.parts import part
from oneshot_ml2.spaces.autotvm.template import ALU_STAGES
from oneshot_ml2.vta.program import Flag, Memory, Opcode
from oneshot_ml2.vta.writing import clear

# Module stages as the run time numbers them; a NOP on load belongs to none, so that it never takes a later flag.
ON_NONE, ON_LOAD, ON_COMPUTE, ON_STORE = 0, 1, 2, 3

# State of the queue: instructions so far, stage of the last one, next free micro-op, uop SRAM allocation, and the pops
# that wait for the next instruction of each stage.
STATE = np.dtype(
    [
        *((name, np.int64) for name in ("count", "last", "image", "sram_end", "cached", "cursor")),
        ("pending", np.int64, (4,)),
    ]
)
# Micro-op kernels: for each thread reset, GEMM and the ALU stages.
KERNELS = 2 + ALU_STAGES
KERNEL = np.dtype([(name, np.int64) for name in ("size", "offset", "begin", "end")])


@part()
def append(rows, state, opcode, stage, last, flags):  # type: ignore[no-untyped-def]
    """A zeroed instruction; returns its row."""
    i = state.count
    clear(rows[i])
    rows[i].op = opcode
    rows[i].flags = flags | state.pending[stage]
    state.pending[stage] = 0
    state.last = last
    state.count = i + 1
    return i


@part()
def noop(rows, state, stage, flags):  # type: ignore[no-untyped-def]
    """An instruction that only moves tokens; it takes the stage's pending pops along."""
    i = append(
        rows,
        state,
        Opcode.STORE if stage == ON_STORE else Opcode.LOAD,
        stage,
        ON_STORE if stage == ON_STORE else ON_NONE,
        flags,
    )
    rows[i].mem = Memory.INP if stage == ON_LOAD else (Memory.OUT if stage == ON_STORE else Memory.UOP)


@part()
def pop(rows, state, source, stage):  # type: ignore[no-untyped-def]
    """Remember a pop for the stage's next instruction; a second one of its kind makes the first a NOP."""
    flag = Flag.POP_PREV if source < stage else Flag.POP_NEXT
    if state.pending[stage] & flag:
        noop(rows, state, stage, 0)
    state.pending[stage] |= flag


@part()
def push(rows, state, stage, target):  # type: ignore[no-untyped-def]
    """Attach a push to the last instruction of the stream if it is the stage's and lacks it, else to a NOP."""
    if state.pending[stage]:
        noop(rows, state, stage, 0)
    flag = Flag.PUSH_NEXT if stage < target else Flag.PUSH_PREV
    i = state.count - 1
    if state.last == stage and rows[i].flags & flag == 0:
        rows[i].flags |= flag
    else:
        noop(rows, state, stage, flag)


@part()
def kernel(rows, state, kernels, cache, task, k):  # type: ignore[no-untyped-def]
    """Make kernel ``k`` resident as the run time does, with a LOAD UOP if it is not; returns its SRAM address.

    ``cache`` lists the residents; the cursor in it is where the next one goes.
    """
    if kernels[k].end > 0:
        return int(kernels[k].begin)
    size = kernels[k].size
    if kernels[k].offset < 0:
        kernels[k].offset = state.image
        state.image += size
    begin = state.sram_end
    if begin + size > task.uop_depth:
        state.cursor = 0
        begin = 0
    end = begin + size
    state.sram_end = end
    cursor, count = state.cursor, state.cached
    evicted = cursor
    while evicted < count and kernels[cache[evicted]].begin < end:
        kernels[cache[evicted]].begin = 0
        kernels[cache[evicted]].end = 0
        evicted += 1
    if evicted == cursor:
        for j in range(count, cursor, -1):
            cache[j] = cache[j - 1]
    else:
        for j in range(evicted, count):
            cache[j - evicted + cursor + 1] = cache[j]
    cache[cursor] = k
    state.cached = count + 1 - (evicted - cursor)
    state.cursor = cursor + 1
    kernels[k].begin, kernels[k].end = begin, end
    i = append(rows, state, Opcode.LOAD, ON_COMPUTE, ON_COMPUTE, 0)
    rows[i].mem = Memory.UOP
    rows[i].sram = begin
    rows[i].dram = task.uop_base + kernels[k].offset
    rows[i].y = 1
    rows[i].x = size
    rows[i].stride = size
    return int(begin)
