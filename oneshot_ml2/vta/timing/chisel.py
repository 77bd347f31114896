"""Cycle-exact, event-driven timing of VTA programs (VTA reference, section 6).

Nothing steps through cycles. The read channel is first-come first-served, so the cycle in which a
burst is served follows from the bursts before it the moment it is sent; what remains are three kinds
of events: a burst is sent, a module starts an instruction, a module completes one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.kernels import njit
from oneshot_ml2.vta import tokens
from oneshot_ml2.vta.program import (
    ACC,
    ALU,
    C_ALU_OP,
    C_BOTTOM,
    C_DRAM,
    C_FLAGS,
    C_ITER_IN,
    C_ITER_OUT,
    C_LEFT,
    C_MEM,
    C_OP,
    C_RIGHT,
    C_STRIDE,
    C_TOP,
    C_UOP_BGN,
    C_UOP_END,
    C_USE_IMM,
    C_X,
    C_Y,
    FINISH,
    GEMM,
    INP,
    LOAD,
    OUT,
    POP_NEXT,
    POP_PREV,
    PUSH_NEXT,
    PUSH_PREV,
    STORE,
    UOP,
    WGT,
    element_bytes,
)

if TYPE_CHECKING:
    from oneshot_ml2.vta.accelerator import Accelerator
    from oneshot_ml2.vta.program import Program

# Entries of `params`.
P_LOG_BUS, P_BURST, P_LATENCY, P_QUEUE, P_UOP_MASK, P_STORE_ROW, P_STORE_NARROW = range(7)
P_BYTES = 8  # element bytes by memory id UOP, WGT, INP, ACC, OUT
P_CAPACITY = 16  # SRAM beats by memory id for narrow tensors, 0 for wide ones
PARAMS = 24
# Entries of the counters that `simulate` returns.
(
    B_LOAD,
    B_COMPUTE,
    B_STORE,
    B_GEMM,
    B_ALU,
    B_READ_BEATS,
    B_WRITE_BEATS,
    B_READ_BURSTS,
    B_WRITE_BURSTS,
) = range(9)
COUNTERS = 9
# Columns of the log of read bursts; R_INSN: the instruction it serves, or the first one of a fetch, -1 if that is over.
R_CLIENT, R_INSN, R_ASKED, R_SENT, R_TAKEN, R_BEATS = range(6)
R_COLUMNS = 6

TAGS = 16
TOKEN_LIMIT = 255
ITERATIONS = 1 << 14
_INF = 1 << 60
_RING = 32
# What is kept of a narrow client whose beat counter may go wrong; W_CAPACITY 0: it cannot.
W_CAPACITY, W_TOTAL, W_BASE, W_SENT, W_BURSTS, W_FILL, W_LIVE = range(7)
# The three modules, and the read clients in order of priority.
_LD, _CP, _ST = 0, 1, 2
_CLIENTS = 5
_FETCH = 0
_CLIENT_OF_MEMORY = (1, 3, 2, 4)


def params(accelerator: Accelerator) -> NDArray[np.int64]:
    """What the timing of an accelerator depends on, as int64 (PARAMS,) for :func:`simulate`."""
    a = accelerator
    p = np.zeros(PARAMS, np.int64)
    p[P_LOG_BUS] = a.bus_bytes.bit_length() - 1
    p[P_BURST] = a.burst_beats
    p[P_LATENCY] = a.memory_latency
    p[P_QUEUE] = a.instruction_queue
    p[P_UOP_MASK] = (2 << a.isa_uop_bits) - 1
    p[P_STORE_ROW] = max(1, a.block // a.bus_bytes)
    sizes = element_bytes(a)
    p[P_STORE_NARROW] = sizes[OUT] > a.bus_bytes
    depths = {UOP: a.uop_depth, WGT: a.wgt_depth, INP: a.inp_depth, ACC: a.acc_depth}
    for memory in (UOP, WGT, INP, ACC, OUT):
        p[P_BYTES + memory] = sizes[memory]
    for memory, depth in depths.items():
        if sizes[memory] > a.bus_bytes:
            p[P_CAPACITY + memory] = depth * sizes[memory] // a.bus_bytes
    return p


@njit(cache=True, nogil=True)
def _store_cycles(insn, p, busy):
    """Execution cycles of a STORE (6.4): its bursts follow one another, undisturbed by reads."""
    log_bus = p[P_LOG_BUS]
    burst = p[P_BURST]
    size = p[P_BYTES + OUT]
    row = p[P_STORE_ROW]
    narrow = p[P_STORE_NARROW] != 0
    x_bytes = insn[C_X] * size
    address = insn[C_DRAM] * size
    stride = insn[C_STRIDE] * size
    bus = 1 << log_bus
    cycles = 0
    for _ in range(insn[C_Y]):
        word = address >> log_bus
        end = (address + x_bytes + bus - 1) >> log_bus
        while word < end:
            n = min(end - word, burst - (word & (burst - 1)))
            busy[B_WRITE_BEATS] += n
            busy[B_WRITE_BURSTS] += 1
            cycles += n + ((n + row - 1) // row + 3 if narrow else 4)
            word += n
        address += stride
    return cycles


@njit(cache=True, nogil=True)
def _operations(insn, p):
    """Tensor operations of a GEMM or ALU instruction; an extent of 0 runs the counter once around (3.5)."""
    outer = insn[C_ITER_OUT]
    if outer == 0:
        outer = ITERATIONS
    inner = insn[C_ITER_IN]
    if inner == 0:
        inner = ITERATIONS
    uops = (insn[C_UOP_END] - insn[C_UOP_BGN]) & p[P_UOP_MASK]
    if uops == 0:
        uops = p[P_UOP_MASK] + 1
    return outer * inner * uops


@njit(cache=True, nogil=True)
def _pad(pads, first, last):
    """Let the pad writer work until cycle ``last``, where data is written in ``first``..``last`` (6.3).

    ``pads`` is (next cycle, zero rows above, zeros beside, data rows to skip, zero rows below), in
    cycles of work left, updated in place. Zeros need a cycle without data, skipping does not.
    """
    for stage in range(1, 5):
        work = pads[stage]
        if work == 0:
            continue
        now = pads[0]
        limit = last + 1 if stage == 3 else first
        done = min(work, max(limit - now, 0))
        pads[stage] = work - done
        pads[0] = now + done
        if done < work:
            break
    if pads[0] >= first and pads[1] + pads[2] + pads[3] + pads[4] > 0:
        pads[0] = max(pads[0], last + 1)


@njit(cache=True, nogil=True)
def _counter_end(watch, starts, ends, cumulative, pad_end):
    """First cycle at which a narrow loader's outstanding-beat counter reads 0, or _INF if that is not known yet (6.3).

    ``watch`` holds the W_* entries of one client, the others its latest bursts: their cycle on the channel
    [start + 1, end] and the beats up to their end. A beat on the channel in cycle c is counted from c + 3 on. The
    counter runs modulo the SRAM's capacity, and counts whatever arrives, so it may read 0 early.
    """
    received = watch[W_TOTAL] % watch[W_CAPACITY]
    if watch[W_BURSTS] > _RING:
        # Bursts no longer kept were counted long ago: at most TAGS + 1 are outstanding.
        oldest = watch[W_BURSTS] % _RING
        gone = cumulative[oldest] - (ends[oldest] - starts[oldest]) - watch[W_BASE]
        if gone > received:
            received += -(-(gone - received) // watch[W_CAPACITY]) * watch[W_CAPACITY]
    while watch[W_BASE] + received <= watch[W_SENT]:
        low = max(watch[W_FILL], pad_end) + 1
        high = _INF
        target = watch[W_BASE] + received
        for b in range(max(0, watch[W_BURSTS] - _RING), watch[W_BURSTS]):
            j = b % _RING
            before = cumulative[j] - (ends[j] - starts[j])
            if received > 0 and before < target <= cumulative[j]:
                low = max(low, starts[j] + target - before + 3)
            if before < target + 1 <= cumulative[j]:
                high = starts[j] + target + 1 - before + 2
        if low <= high:
            return low
        received += watch[W_CAPACITY]
    return _INF


@njit(cache=True, nogil=True)
def simulate(insns, insn_address, p, trace, queued=None, bursts=None):
    """Cycles of a program on an idle accelerator.

    Args:
        insns: int64 (n, COLUMNS), decoded instructions.
        insn_address: byte address of the stream in DRAM.
        p: `params` of the accelerator.
        trace: int64 (n, 2) to receive every instruction's execution cycles [start, done), -1 where
            it did not start or end before FINISH, or int64 (0, 2) for none.
        queued: None, or int64 (m,) to receive the cycle in which each of the first m instructions entered its module's
            queue, -1 if it did not. With None, here and below, numba compiles a variant without the recording.
        bursts: None, or int64 (m, R_COLUMNS) for the first m read bursts in the order of the channel: the client in
            order of priority, its instruction, when it could be sent, was sent, and was taken by the memory, and its
            beats, which are on the channel in the cycles after that.

    Returns:
        (cycles, hang, counters): the cycle counter at FINISH, or, if the program hangs, the cycle of the last
        event; 1 if it hangs; int64 (COUNTERS,), the entries named B_*.
    """
    n_insns = insns.shape[0]
    tracing = trace.shape[0] > 0
    if tracing:
        trace[:] = -1
    if queued is not None:
        queued[:] = -1
    log_bus = p[P_LOG_BUS]
    bus = 1 << log_bus
    burst = p[P_BURST]
    burst_mask = burst - 1
    latency = p[P_LATENCY]
    queue = p[P_QUEUE]
    wide_fetch = log_bus > 3
    chunk = burst if wide_fetch else burst // 2

    busy = np.zeros(COUNTERS, np.int64)
    # Module queues: instruction index and the cycle of entering, by ring position.
    ring_insn = np.empty((3, queue), np.int64)
    ring_time = np.empty((3, queue), np.int64)
    head = np.zeros(3, np.int64)
    tail = np.zeros(3, np.int64)
    held = np.zeros(3, np.int64)
    # Next event by module: 2 * cycle for "done before this cycle", 2 * cycle + 1 for "starts in this cycle".
    event = np.full(3, _INF, np.int64)
    started = np.full(3, -1, np.int64)
    token = np.zeros(4, np.int64)  # load>compute, compute>load, compute>store, store>compute

    # Read clients: first cycle in which the filled command may be sent, and the rows still to ask for.
    eligible = np.full(_CLIENTS, _INF, np.int64)
    c_word = np.zeros(_CLIENTS, np.int64)
    c_end = np.zeros(_CLIENTS, np.int64)
    c_rows = np.zeros(_CLIENTS, np.int64)
    c_address = np.zeros(_CLIENTS, np.int64)
    c_stride = np.zeros(_CLIENTS, np.int64)
    c_bytes = np.zeros(_CLIENTS, np.int64)
    c_module = np.full(_CLIENTS, -1, np.int64)
    c_delay = np.zeros(_CLIENTS, np.int64)  # last beat on the channel to last execution cycle
    c_padded = np.zeros(_CLIENTS, np.int64)
    pads = np.zeros((_CLIENTS, 5), np.int64)
    # Commands left in the slot by a load that ended early: beats, and whether there is one.
    orphan = np.zeros(_CLIENTS, np.int64)
    waiting = np.full(_CLIENTS, _INF, np.int64)
    watch = np.zeros((_CLIENTS, 7), np.int64)
    watch_starts = np.zeros((_CLIENTS, _RING), np.int64)
    watch_ends = np.zeros((_CLIENTS, _RING), np.int64)
    watch_sums = np.zeros((_CLIENTS, _RING), np.int64)

    # Read channel: cycles of the last beats of the latest bursts, and the first of them not yet passed.
    last_beat = np.full(_RING, -1, np.int64)
    sent = 0
    passed = 0
    last_send = -1
    taken = -_INF
    server_free = 0

    # Fetch.
    fetched = 0
    dispatched = 0
    base = 0
    entered = -1  # cycle in which the latest instruction entered its queue
    entered_before = -1
    piped = 0
    pipe_even = -1
    pipe_odd = -1
    blocked = -1
    command = 1
    want_chunk = n_insns > 0
    want_dispatch = False

    wake = 0
    now = 0
    finish = _INF
    while True:
        if want_dispatch:
            want_dispatch = False
            blocked = -1
            wake = 7
            while dispatched < fetched:
                if wide_fetch:
                    while piped < fetched and piped < dispatched + 2:
                        # Entry into the two-entry pipe: when the last but one has left it.
                        left = entered_before if piped == dispatched else entered
                        at = max(base, left + 1)
                        if piped & 1:
                            pipe_odd = max(at, pipe_even + 1)
                            at = pipe_odd
                        else:
                            pipe_even = max(at, pipe_odd + 1)
                            at = pipe_even
                        piped += 1
                        if piped == fetched and fetched < n_insns:
                            want_chunk = True
                            command = at + 3
                op = insns[dispatched, C_OP]
                if op == LOAD:
                    memory = insns[dispatched, C_MEM]
                    if memory > ACC:
                        blocked = 3
                        break
                    m = _LD if memory in (INP, WGT) else _CP
                elif op == STORE:
                    m = _ST
                elif op in (GEMM, FINISH) or (op == ALU and insns[dispatched, C_ALU_OP] <= 3):
                    m = _CP
                else:
                    blocked = 3
                    break
                if held[m] >= queue:
                    blocked = m
                    break
                if wide_fetch:
                    at = max((pipe_odd if dispatched & 1 else pipe_even) + 1, entered + 1, now)
                else:
                    at = max(base, entered + 1, now)
                entered_before = entered
                entered = at
                position = tail[m]
                ring_insn[m, position] = dispatched
                ring_time[m, position] = at
                tail[m] = position + 1 if position + 1 < queue else 0
                held[m] += 1
                if queued is not None:
                    if dispatched < queued.shape[0]:
                        queued[dispatched] = at
                dispatched += 1
            if not wide_fetch and blocked < 0 and dispatched == fetched and fetched < n_insns:
                want_chunk = True
                command = entered + 2

        if want_chunk:
            want_chunk = False
            count = min(chunk, n_insns - fetched)
            if wide_fetch:
                address = insn_address + 16 * fetched
                c_word[_FETCH] = address >> log_bus
                c_end[_FETCH] = (address + 16 * count + bus - 1) >> log_bus
            else:
                # One burst, however the stream is aligned.
                c_word[_FETCH] = 0
                c_end[_FETCH] = 2 * count
            c_rows[_FETCH] = 1
            eligible[_FETCH] = command + 1

        if wake:
            for m in range(3):
                if not (wake >> m) & 1 or event[m] != _INF or started[m] >= 0 or held[m] == 0:
                    continue
                flags = insns[ring_insn[m, head[m]], C_FLAGS]
                if m == _LD:
                    ready = not flags & POP_NEXT or token[1] > 0
                elif m == _CP:
                    ready = (not flags & POP_PREV or token[0] > 0) and (not flags & POP_NEXT or token[3] > 0)
                else:
                    ready = not flags & POP_PREV or token[2] > 0
                if ready:
                    event[m] = 2 * max(now, ring_time[m, head[m]] + 1) + 1
            wake = 0

        m = _LD
        if event[_CP] < event[m]:
            m = _CP
        if event[_ST] < event[m]:
            m = _ST
        next_event = event[m]

        first = min(min(eligible[0], eligible[1]), min(eligible[2], min(eligible[3], eligible[4])))
        if first < _INF:
            k = max(first, last_send + 1)
            if sent >= TAGS:
                k = max(k, last_beat[(sent - TAGS) % _RING] + 1)
            # No sending beside a last beat (6.2, rule 2).
            q = passed
            while q < sent and last_beat[q % _RING] <= k:
                if last_beat[q % _RING] == k:
                    k += 1
                q += 1
            if 2 * k <= next_event and k <= finish + 1:
                # Send one burst.
                c = 0
                while eligible[c] > k:
                    c += 1
                now = k
                last_send = k
                passed = q
                lost = orphan[c]
                n = lost if lost > 0 else min(c_end[c] - c_word[c], burst - (c_word[c] & burst_mask))
                # The delay is paid whenever the request queue was empty (6.2, rule 4).
                t = max(k + 1 if k <= taken else k + 1 + latency, server_free)
                taken = t
                server_free = t + n
                last = t + n
                last_beat[sent % _RING] = last
                if bursts is not None:
                    if sent < bursts.shape[0]:
                        module = c_module[c]
                        serves = fetched if c == _FETCH else ring_insn[module, head[module]] if lost == 0 else -1
                        bursts[sent, R_CLIENT] = c
                        bursts[sent, R_INSN] = serves
                        bursts[sent, R_ASKED] = eligible[c]
                        bursts[sent, R_SENT] = k
                        bursts[sent, R_TAKEN] = t
                        bursts[sent, R_BEATS] = n
                sent += 1
                busy[B_READ_BEATS] += n
                more = True
                if lost > 0:
                    orphan[c] = 0
                    eligible[c] = max(waiting[c], k + 2) if waiting[c] < _INF else _INF
                    waiting[c] = _INF
                else:
                    c_word[c] += n
                    if c_word[c] == c_end[c]:
                        c_rows[c] -= 1
                        if c_rows[c] > 0:
                            c_address[c] += c_stride[c]
                            c_word[c] = c_address[c] >> log_bus
                            c_end[c] = (c_address[c] + c_bytes[c] + bus - 1) >> log_bus
                        else:
                            more = False
                    eligible[c] = k + 2 if more else _INF
                if c == _FETCH:
                    if not more:
                        fetched = min(fetched + chunk, n_insns)
                        base = last + (4 if wide_fetch else 2)
                        want_dispatch = blocked < 0
                    continue
                delay = c_delay[c]
                if c_padded[c]:
                    _pad(pads[c], t + delay, last + delay - 1)
                if watch[c, W_CAPACITY] > 0:
                    j = watch[c, W_BURSTS] % _RING
                    watch[c, W_BURSTS] += 1
                    watch[c, W_SENT] += n
                    watch_starts[c, j] = t
                    watch_ends[c, j] = last
                    watch_sums[c, j] = watch[c, W_SENT]
                    if not watch[c, W_LIVE]:
                        continue
                    rest = c_end[c] - c_word[c]
                    if more and c_rows[c] == 1 and rest <= burst - (c_word[c] & burst_mask):
                        watch[c, W_FILL] = eligible[c] - 1
                    left = pads[c, 1] + pads[c, 2] + pads[c, 3] + pads[c, 4] if c_padded[c] else 0
                    if watch[c, W_FILL] < _INF and (left == 0 or not more):
                        pad_end = pads[c, 0] + left - 1 if c_padded[c] else -1
                        z = _counter_end(watch[c], watch_starts[c], watch_ends[c], watch_sums[c], pad_end)
                        if z < _INF:
                            watch[c, W_LIVE] = 0
                            event[c_module[c]] = 2 * (z + 1)
                            if more:
                                orphan[c] = rest
                elif not more:
                    final = last + delay
                    if c_padded[c]:
                        final = max(final, pads[c, 0] + pads[c, 1] + pads[c, 2] + pads[c, 3] + pads[c, 4])
                    event[c_module[c]] = 2 * (final + 1)
                continue

        if next_event == _INF:
            break
        at = next_event >> 1
        if at > finish + 1:
            break
        now = at
        i = ring_insn[m, head[m]]
        flags = insns[i, C_FLAGS]
        if next_event & 1 == 0:
            # Done: the last execution cycle was at - 1.
            wake = 1 << m
            if m == _LD:
                if flags & PUSH_NEXT:
                    token[0] = min(token[0] + 1, TOKEN_LIMIT)
                    wake |= 1 << _CP
            elif m == _CP:
                if flags & PUSH_PREV:
                    token[1] = min(token[1] + 1, TOKEN_LIMIT)
                    wake |= 1 << _LD
                if flags & PUSH_NEXT:
                    token[2] = min(token[2] + 1, TOKEN_LIMIT)
                    wake |= 1 << _ST
            elif flags & PUSH_PREV:
                token[3] = min(token[3] + 1, TOKEN_LIMIT)
                wake |= 1 << _CP
            busy[m] += at - started[m]
            if tracing:
                trace[i, 1] = at
            started[m] = -1
            event[m] = _INF
            head[m] = head[m] + 1 if head[m] + 1 < queue else 0
            held[m] -= 1
            if blocked == m:
                want_dispatch = True
            continue

        if m == _LD:
            if flags & POP_NEXT:
                token[1] -= 1
        elif m == _CP:
            if flags & POP_PREV:
                token[0] -= 1
            if flags & POP_NEXT:
                token[3] -= 1
        elif flags & POP_PREV:
            token[2] -= 1
        started[m] = at + 1
        if tracing:
            trace[i, 0] = at + 1
        op = insns[i, C_OP]
        if op == GEMM:
            cycles = _operations(insns[i], p) + 6
            busy[B_GEMM] += cycles
            event[m] = 2 * (at + cycles + 1)
        elif op == ALU:
            cycles = _operations(insns[i], p) * (1 if insns[i, C_USE_IMM] else 2) + 6
            busy[B_ALU] += cycles
            event[m] = 2 * (at + cycles + 1)
        elif op == FINISH:
            finish = at + 1
            event[m] = 2 * (at + 2)
        elif insns[i, C_X] == 0:
            event[m] = 2 * (at + 2)
        elif op == STORE:
            event[m] = 2 * (at + _store_cycles(insns[i], p, busy) + 1) if insns[i, C_Y] > 0 else _INF
        else:
            event[m] = _INF
            rows = insns[i, C_Y]
            if rows == 0:
                # The RTL never ends this one; the module stays occupied.
                continue
            memory = insns[i, C_MEM]
            if memory == UOP:
                c = 1
            elif memory == INP:
                c = 2
            elif memory == WGT:
                c = 3
            else:
                c = 4
            size = p[P_BYTES + memory]
            address = insns[i, C_DRAM] * size
            row_bytes = insns[i, C_X] * size
            c_address[c] = address
            c_bytes[c] = row_bytes
            c_stride[c] = insns[i, C_STRIDE] * size
            c_rows[c] = rows
            c_word[c] = address >> log_bus
            c_end[c] = (address + row_bytes + bus - 1) >> log_bus
            c_module[c] = m
            capacity = p[P_CAPACITY + memory]
            narrow = capacity > 0
            c_delay[c] = 3 if narrow else 2
            top = insns[i, C_TOP]
            bottom = insns[i, C_BOTTOM]
            sides = insns[i, C_LEFT] + insns[i, C_RIGHT]
            if top + bottom + sides > 0:
                width = insns[i, C_X] + sides
                c_padded[c] = 1
                pads[c, 0] = at + 2 if narrow else at + 1
                pads[c, 1] = top * width
                pads[c, 2] = rows * sides
                pads[c, 3] = rows if sides == 0 and bottom > 0 else 0
                pads[c, 4] = bottom * width
            else:
                c_padded[c] = 0
            first_eligible = at + 2 + top
            if orphan[c] > 0:
                waiting[c] = first_eligible
            else:
                eligible[c] = first_eligible
            if narrow and (watch[c, W_CAPACITY] > 0 or rows * row_bytes >= capacity << log_bus):
                # The counter of this load may read 0 early, or beats of an earlier one still arrive.
                watch[c, W_CAPACITY] = capacity
                watch[c, W_TOTAL] = rows * (row_bytes >> log_bus)
                counted = watch[c, W_SENT]
                for b in range(max(0, watch[c, W_BURSTS] - _RING), watch[c, W_BURSTS]):
                    j = b % _RING
                    if watch_ends[c, j] > at - 2:
                        counted -= watch_ends[c, j] - max(watch_starts[c, j], at - 2)
                        if c_padded[c]:
                            _pad(pads[c], watch_starts[c, j] + 3, watch_ends[c, j] + 2)
                watch[c, W_BASE] = counted
                if counted == watch[c, W_SENT] and orphan[c] == 0 and rows * row_bytes < capacity << log_bus:
                    watch[c, W_CAPACITY] = 0
                    continue
                watch[c, W_LIVE] = 1
                watch[c, W_FILL] = _INF
                rest = c_end[c] - c_word[c]
                if rows == 1 and orphan[c] == 0 and rest <= burst - (c_word[c] & burst_mask):
                    watch[c, W_FILL] = first_eligible - 1
                    if not c_padded[c]:
                        z = _counter_end(watch[c], watch_starts[c], watch_ends[c], watch_sums[c], -1)
                        if z < _INF:
                            watch[c, W_LIVE] = 0
                            event[m] = 2 * (z + 1)
                            orphan[c] = rest

    busy[B_READ_BURSTS] = sent
    if finish == _INF:
        return now, 1, busy
    return finish, 0, busy


@dataclass(frozen=True)
class Timing:
    """Cycles of one run; ``trace`` is int64 (n, 2), the execution cycles [start, done) of every instruction.

    ``queued``, ``bursts``: when instructions entered their queues, and all read bursts; see `simulate`.

    ``*_busy``: execution cycles of the three modules; ``gemm``, ``alu``: of compute's, those of such instructions.
    ``hang``: the program never reaches FINISH (``cycles`` is then the cycle of the last event).
    ``tokens_left``: in the order of `tokens.QUEUES`, what the program leaves for the next one once all modules have
    come to rest; all 0 in a sound submission.
    """

    cycles: int
    hang: bool
    load_busy: int
    compute_busy: int
    store_busy: int
    gemm: int
    alu: int
    read_beats: int
    write_beats: int
    read_bursts: int
    write_bursts: int
    tokens_left: tuple[int, int, int, int]
    trace: NDArray[np.int64] | None = None
    queued: NDArray[np.int64] | None = None
    bursts: NDArray[np.int64] | None = None

    @property
    def ends_cleanly(self) -> bool:
        """Whether the program reaches FINISH and leaves every token queue empty, as a submission must."""
        return not self.hang and not any(self.tokens_left)


def measure(program: Program, trace: bool = False, memory: bool = False) -> Timing:
    """Time a program from launch to FINISH on its own accelerator.

    ``trace``: with the execution cycles of every instruction; ``memory``: with ``queued`` and ``bursts``, too.
    """
    table = np.empty((len(program.insns) if trace else 0, 2), np.int64)
    queued = np.empty(len(program.insns) if memory else 0, np.int64)
    bursts = np.empty((0, R_COLUMNS), np.int64)
    insns = np.ascontiguousarray(program.insns, np.int64)
    p = params(program.accelerator)
    # Always the recording variant, so that there is one to compile.
    cycles, hang, busy = simulate(insns, program.insn_address, p, table, queued, bursts)
    if memory:
        # Once more, now that the number of bursts is known.
        bursts = np.empty((busy[B_READ_BURSTS], R_COLUMNS), np.int64)
        simulate(insns, program.insn_address, p, table, queued, bursts)
    return Timing(
        cycles=int(cycles),
        hang=bool(hang),
        load_busy=int(busy[B_LOAD]),
        compute_busy=int(busy[B_COMPUTE]),
        store_busy=int(busy[B_STORE]),
        gemm=int(busy[B_GEMM]),
        alu=int(busy[B_ALU]),
        read_beats=int(busy[B_READ_BEATS]),
        write_beats=int(busy[B_WRITE_BEATS]),
        read_bursts=int(busy[B_READ_BURSTS]),
        write_bursts=int(busy[B_WRITE_BURSTS]),
        tokens_left=tokens.left(insns),
        trace=table if trace else None,
        queued=queued if memory else None,
        bursts=bursts if memory else None,
    )
