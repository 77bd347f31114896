"""Event-driven timing of VTA programs on the HLS design (VTA's ``hardware/xilinx/src/vta.cc``; docs/hls.md).

Fetch hands instructions to three modules, load, compute and store, which run side by side, each in order. An
instruction starts when its module is free, the instruction is in the module's queue and its tokens are there, and
pushes its tokens when it ends. Nothing else couples the modules, so a run is the longest path through its
instructions: each is visited once, and what lies on that path is the derivative of its time by every parameter.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.kernels import njit
from oneshot_ml2.common.parts import part
from oneshot_ml2.vta import tokens
from oneshot_ml2.vta.hls_keys import RATES, TICKS
from oneshot_ml2.vta.program import Flag, Insns, Memory, Opcode
from oneshot_ml2.vta.timing.records import Counters, Parameters
from oneshot_ml2.vta.writing import fill

# What the time of an instruction, or of a path of instructions, is made of: cycles that no parameter scales, then how
# often each of `hls_keys.RATES` counts.
WORK = np.dtype([(name, np.int64) for name in ("fixed", *RATES)])
# An instruction in a run. Before it: its module; its ticks; the instructions that it waits for, -1 none, _NOBODY one
# that there is not: the one before in its module, those that push its tokens, and the one whose start makes room for
# it in the module's queue; and the next one in its module, -1 none. In it: when it entered the queue, and the end of
# which instruction let it, -1 the launch; its start and its end in ticks, -1 not yet; whose end it waited for.
_STEP = np.dtype(
    [
        (name, np.int64)
        for name in (
            "module", "ticks", "before", "by_prev", "by_next", "room", "after",
            "entered", "entered_by", "start", "end", "cause",
        )
    ]
)  # fmt: skip
_NOBODY = -2


@part()
def row_beats(insn, p):  # type: ignore[no-untyped-def]
    """Bus beats of a row of a LOAD or STORE."""
    size = p.out_bytes
    if insn.op == Opcode.LOAD:
        if insn.mem == Memory.UOP:
            size = p.uop_bytes
        elif insn.mem == Memory.WGT:
            size = p.wgt_bytes
        elif insn.mem == Memory.INP:
            size = p.inp_bytes
        else:
            size = p.acc_bytes if insn.mem == Memory.ACC else p.acc_bytes // 4
    return ((insn.x * size - 1) >> p.log_bus) + 1


@part()
def add_work(insn, p, work):  # type: ignore[no-untyped-def]
    """Add to a `WORK` what an instruction's time is made of. Rows are moved strictly one after the other."""
    module = tokens.module_of(insn)
    work.load_start += module == tokens.LOADS
    work.compute_start += module == tokens.COMPUTES
    work.store_start += module == tokens.STORES
    if insn.op == Opcode.GEMM:
        work.fixed += insn.iter_out * insn.iter_in * max(insn.uop_end - insn.uop_bgn, 0)
    elif insn.op == Opcode.ALU:
        work.alu_op += insn.iter_out * insn.iter_in * max(insn.uop_end - insn.uop_bgn, 0)
    elif insn.op == Opcode.STORE and insn.x > 0:
        work.store_row += insn.y
        work.fixed += insn.y * row_beats(insn, p)
    elif insn.op == Opcode.LOAD and insn.x > 0:
        work.read_row += insn.y
        if insn.mem == Memory.WGT:
            work.wgt_beat += insn.y * row_beats(insn, p)
            return
        work.fixed += insn.y * row_beats(insn, p)
        if insn.mem != Memory.UOP:
            width = insn.left + insn.x + insn.right
            work.pad += (insn.top + insn.bottom) * width + insn.y * (insn.left + insn.right)


@njit(cache=True, nogil=True)
def ticks_of(work, p):  # type: ignore[no-untyped-def]
    """The time of a `WORK`, in 1/TICKS cycles."""
    return (
        work.fixed * TICKS
        + work.read_row * p.hls_read_row
        + work.store_row * p.hls_store_row
        + work.wgt_beat * p.hls_wgt_beat
        + work.alu_op * p.hls_alu_op
        + work.load_start * p.hls_load_start
        + work.compute_start * p.hls_compute_start
        + work.store_start * p.hls_store_start
        + work.pad * p.hls_pad
    )


@part()
def _clear(work):  # type: ignore[no-untyped-def]
    work.fixed = work.read_row = work.store_row = work.wgt_beat = work.alu_op = work.pad = 0
    work.load_start = work.compute_start = work.store_start = 0


@part()
def _pushers(insns, queue, pushers):  # type: ignore[no-untyped-def]
    """The instructions that push to one of `tokens.QUEUES`, in order, into ``pushers`` (n,); how many there are."""
    count = 0
    for i in range(len(insns)):
        module, flags = tokens.module_of(insns[i]), insns[i].flags
        if (flags & Flag.PUSH_PREV and tokens.PUSHES_PREV[module] == queue) or (
            flags & Flag.PUSH_NEXT and tokens.PUSHES_NEXT[module] == queue
        ):
            pushers[count] = i
            count += 1
    return count


@part()
def _link_tokens(insns, steps):  # type: ignore[no-untyped-def]
    """Who pushes what each instruction pops: the k-th pop of a queue takes the k-th push."""
    pushers = np.empty(len(insns), np.int64)
    for queue in range(len(tokens.QUEUES)):
        pushed, popped = _pushers(insns, queue, pushers), 0
        for i in range(len(insns)):
            module, flags = steps[i].module, insns[i].flags
            prev = flags & Flag.POP_PREV and tokens.POPS_PREV[module] == queue
            if prev or (flags & Flag.POP_NEXT and tokens.POPS_NEXT[module] == queue):
                pusher = pushers[popped] if popped < pushed else _NOBODY
                popped += 1
                if prev:
                    steps[i].by_prev = pusher
                else:
                    steps[i].by_next = pusher


@part()
def _prepare(insns, p, steps, heads):  # type: ignore[no-untyped-def]
    """Fill in `_STEP` (n,) before a run, and ``heads``, int64 (3,), the first instruction of each module, -1 none."""
    latest = np.full(3, -1, np.int64)
    # By module its instructions in order, to find those a queue's length before.
    count, order = np.zeros(3, np.int64), np.empty((3, len(insns)), np.int64)
    works = np.zeros(1, WORK)
    fill(heads, -1)
    for i in range(len(insns)):
        # Of the array each time: numba frees that after its last use, whatever still looks at its record.
        step, work = steps[i], works[0]
        module = tokens.module_of(insns[i])
        _clear(work)
        add_work(insns[i], p, work)
        step.module, step.ticks = module, ticks_of(work, p)
        step.by_prev = step.by_next = step.after = step.start = step.end = step.cause = step.entered = (
            step.entered_by
        ) = -1
        step.before = latest[module]
        if latest[module] >= 0:
            steps[latest[module]].after = i
        else:
            heads[module] = i
        latest[module] = i
        order[module, count[module]] = i
        step.room = order[module, count[module] - p.queue] if count[module] >= p.queue else -1
        count[module] += 1
    _link_tokens(insns, steps)


@part()
def _fetch(steps, fetched):  # type: ignore[no-untyped-def]
    """Let instructions from ``fetched`` on into the queues, in order, as far as those have room; which one is next."""
    while fetched < len(steps):
        step = steps[fetched]
        now, by = np.int64(0), np.int64(-1)
        if fetched > 0:
            now, by = steps[fetched - 1].entered, steps[fetched - 1].entered_by
        if step.room >= 0:
            room = steps[step.room]
            if room.start < 0:
                break
            if room.start > now:
                now, by = room.start, room.cause
        step.entered, step.entered_by = now, by
        fetched += 1
    return fetched


@part()
def _start(steps, i):  # type: ignore[no-untyped-def]
    """Start an instruction that is in its queue, and whose module is free; False if it waits for a token."""
    step = steps[i]
    now, cause = step.entered, step.entered_by
    for source in (step.before, step.by_prev, step.by_next):
        if source == _NOBODY or (source >= 0 and steps[source].end < 0):
            return False
        if source >= 0 and steps[source].end > now:
            now, cause = steps[source].end, source
    step.start, step.end, step.cause = now, now + step.ticks, cause
    return True


@part()
def _run(insns, p, steps):  # type: ignore[no-untyped-def]
    """Run a program with ``steps``, `_STEP` (n,); the instruction that ended it: FINISH, or -1 if it hangs."""
    heads = np.empty(3, np.int64)
    _prepare(insns, p, steps, heads)
    fetched, moved = np.int64(0), True
    while moved:
        moved = False
        for module in range(3):
            while heads[module] >= 0:
                i = heads[module]
                if i >= fetched:
                    fetched = _fetch(steps, fetched)
                if i >= fetched or not _start(steps, i):
                    break
                moved = True
                if insns[i].op == Opcode.FINISH:
                    return i
                heads[module] = steps[i].after
    return np.int64(-1)


@part()
def _counters(insns, p, steps, until):  # type: ignore[no-untyped-def]
    """`Counters` of what started before ``until`` ticks; rows stand for bursts."""
    busy, gemm, alu = np.zeros(3, np.int64), np.int64(0), np.int64(0)
    works = np.zeros(2, WORK)
    for i in range(len(insns)):
        step = steps[i]
        if step.end < 0 or step.start > until:
            continue
        busy[step.module] += step.ticks
        if insns[i].op == Opcode.GEMM:
            gemm += step.ticks
        elif insns[i].op == Opcode.ALU:
            alu += step.ticks
        elif insns[i].op == Opcode.STORE:
            add_work(insns[i], p, works[1])
        else:
            add_work(insns[i], p, works[0])
    read, written = works[0], works[1]
    counters = Counters(
        busy[0] // TICKS, busy[1] // TICKS, busy[2] // TICKS, gemm // TICKS, alu // TICKS,
        read.fixed + read.wgt_beat, written.fixed, read.read_row, written.store_row,
    )  # fmt: skip
    # Named once more, so that it lives until here.
    works[0].fixed = 0
    return counters


@njit(cache=True, nogil=True)
def simulate(insns, p, recording):  # type: ignore[no-untyped-def]
    """Cycles of a program on an idle accelerator of the HLS design.

    Args:
        insns: (n,), decoded instructions.
        p: `records.params` of the accelerator.
        recording: what to record, as `records.Recording`, but no bursts; cycles are rounded down.

    Returns:
        (cycles, hang, counters): from the launch to the end of FINISH, or, if the program hangs, to its last event;
        1 if it hangs; `Counters`, whose bursts are rows here.
    """
    trace, queued = recording.trace, recording.queued
    steps = np.empty(len(insns), _STEP)
    ended = _run(insns, p, steps)
    until = np.int64(0)
    if ended >= 0:
        until = steps[ended].end
    else:
        for i in range(len(insns)):
            until = max(until, steps[i].end)
    for i in range(len(trace)):
        ran = steps[i].end >= 0 and steps[i].start <= until
        trace[i, 0] = steps[i].start // TICKS if ran else -1
        trace[i, 1] = steps[i].end // TICKS if ran and steps[i].end <= until else -1
    for i in range(len(queued)):
        queued[i] = steps[i].entered // TICKS if 0 <= steps[i].entered <= until else -1
    return until // TICKS, np.int64(ended < 0), _counters(insns, p, steps, until)


@njit(cache=True, nogil=True)
def _longest_path(insns, p, total):  # type: ignore[no-untyped-def]
    steps = np.empty(len(insns), _STEP)
    i = _run(insns, p, steps)
    while i >= 0:
        add_work(insns[i], p, total)
        i = steps[i].cause


def longest_path(insns: Insns, p: Parameters) -> NDArray[np.int64]:
    """What the instructions of a run's longest path are made of, `WORK`'s fields, int64 (len(WORK),).

    Their time by `ticks_of` is the run's, so they are its derivatives; all 0 of a program that hangs.
    """
    total = np.zeros(1, WORK)
    _longest_path(insns, p, total[0])
    return total.view(np.int64)
