"""Cycle-exact, event-driven timing of VTA programs, as VTA's Chisel sources run them.

Nothing steps through cycles. What a read takes follows from the reads before it (`reads.py`); what remains are three
kinds of events: a burst is sent, a module starts an instruction, a module completes one.
"""

from __future__ import annotations

import numpy as np

from oneshot_ml2.common.kernels import njit
from oneshot_ml2.common.parts import part
from oneshot_ml2.vta import tokens
from oneshot_ml2.vta.program import ITERATIONS, AluOp, Flag, Memory, Opcode
from oneshot_ml2.vta.timing import reads
from oneshot_ml2.vta.timing.records import (
    FETCH_CLIENT,
    MACHINE,
    NEVER,
    PLACE,
    Counters,
    start,
)
from oneshot_ml2.vta.writing import fill

TOKEN_LIMIT = 255
# What an instruction that fetch does not know waits for, in place of a module.
_UNKNOWN = 3


@part(forceinline=True)
def _store_cycles(insn, p, work):  # type: ignore[no-untyped-def]
    """Execution cycles of a STORE: its bursts follow one another, undisturbed by reads."""
    size = p.out_bytes
    x_bytes, address, stride = insn.x * size, insn.dram * size, insn.stride * size
    bus = 1 << p.log_bus
    cycles = 0
    for _ in range(insn.y):
        word = address >> p.log_bus
        end = (address + x_bytes + bus - 1) >> p.log_bus
        while word < end:
            n = min(end - word, p.burst - (word & (p.burst - 1)))
            work.write_beats += n
            work.write_bursts += 1
            cycles += n + ((n + p.store_row - 1) // p.store_row + 3 if p.store_narrow else 4)
            word += n
        address += stride
    return cycles


@part(forceinline=True)
def _operations(insn, p):  # type: ignore[no-untyped-def]
    """Tensor operations of a GEMM or ALU instruction; an extent of 0 runs the counter once around."""
    outer = insn.iter_out if insn.iter_out > 0 else ITERATIONS
    inner = insn.iter_in if insn.iter_in > 0 else ITERATIONS
    uops = (insn.uop_end - insn.uop_bgn) & p.uop_mask
    return outer * inner * (uops if uops > 0 else p.uop_mask + 1)


@part(forceinline=True)
def _fill_pipe(fetch, n_insns):  # type: ignore[no-untyped-def]
    """Let instructions into the two-entry pipe of a wide bus, each when the last but one has left it."""
    while fetch.piped < fetch.read and fetch.piped < fetch.given + 2:
        left = fetch.entered_before if fetch.piped == fetch.given else fetch.entered
        at = max(fetch.base, left + 1)
        if fetch.piped & 1:
            at = max(at, fetch.pipe_even + 1)
            fetch.pipe_odd = at
        else:
            at = max(at, fetch.pipe_odd + 1)
            fetch.pipe_even = at
        fetch.piped += 1
        if fetch.piped == fetch.read and fetch.read < n_insns:
            fetch.asks = True
            fetch.command = at + 3


@part(forceinline=True)
def _target(insn):  # type: ignore[no-untyped-def]
    """The module that fetch gives an instruction to, or _UNKNOWN."""
    if insn.op == Opcode.LOAD:
        known = insn.mem <= Memory.ACC
    elif insn.op == Opcode.ALU:
        known = insn.alu_op <= AluOp.SHR
    else:
        known = insn.op == Opcode.STORE or insn.op == Opcode.GEMM or insn.op == Opcode.FINISH
    return tokens.module_of(insn) if known else _UNKNOWN


@part(forceinline=True)
def _enter(m, now, n_insns, p, fetch, modules):  # type: ignore[no-untyped-def]
    """Let the next instruction into the queue of module ``m``; returns whether it is a module with room."""
    wide = p.log_bus > 3
    if wide:
        _fill_pipe(fetch, n_insns)
    if m == _UNKNOWN or modules[m].held >= p.queue:
        fetch.blocked = m
        return False
    ready = (fetch.pipe_odd if fetch.given & 1 else fetch.pipe_even) + 1 if wide else fetch.base
    fetch.entered_before = fetch.entered
    fetch.entered = max(ready, fetch.entered + 1, now)
    modules[m].held += 1
    fetch.given += 1
    if not wide and fetch.given == fetch.read and fetch.read < n_insns:
        fetch.asks = True
        fetch.command = fetch.entered + 2
    return True


@part(forceinline=True)
def _ask(n_insns, insn_address, p, fetch, client):  # type: ignore[no-untyped-def]
    """Ask for the next chunk of instructions."""
    fetch.asks = False
    wide = p.log_bus > 3
    count = min(p.burst if wide else p.burst // 2, n_insns - fetch.read)
    if wide:
        address = insn_address + 16 * fetch.read
        client.word = address >> p.log_bus
        client.end = (address + 16 * count + (1 << p.log_bus) - 1) >> p.log_bus
    else:
        # One burst, however the stream is aligned.
        client.word, client.end = 0, 2 * count
    client.insn, client.rows = fetch.read, 1
    client.eligible = fetch.command + 1


@part(forceinline=True)
def _has_token(flag, queue, token):  # type: ignore[no-untyped-def]
    return flag == 0 or queue < 0 or token[queue] > 0


@part(forceinline=True)
def _wake(insns, wake, now, modules, token, places):  # type: ignore[no-untyped-def]
    """Let the idle ones of the modules in the mask ``wake`` start their next instruction, if its tokens are there."""
    for m in range(3):
        module = modules[m]
        if not (wake >> m) & 1 or module.event != NEVER or module.started >= 0 or module.held == 0:
            continue
        place = places[m, module.head]
        flags = insns[place.insn].flags
        prev = _has_token(flags & Flag.POP_PREV, tokens.POPS_PREV[m], token)
        if prev and _has_token(flags & Flag.POP_NEXT, tokens.POPS_NEXT[m], token):
            module.event = 2 * max(now, place.entered + 1) + 1


@part(forceinline=True)
def _push(flag, queue, token):  # type: ignore[no-untyped-def]
    """Push a token if the flag says so and the module has that queue; returns whether it did."""
    pushes = flag != 0 and queue >= 0
    if pushes:
        token[queue] = min(token[queue] + 1, TOKEN_LIMIT)
    return pushes


@part(forceinline=True)
def _complete(flags, m, at, p, fetch, modules, token):  # type: ignore[no-untyped-def]
    """Module ``m`` has executed its instruction up to cycle ``at`` - 1; returns the mask of modules to wake."""
    module, wake = modules[m], 1 << m
    if _push(flags & Flag.PUSH_PREV, tokens.PUSHES_PREV[m], token):
        wake |= 1 << (m - 1)
    if _push(flags & Flag.PUSH_NEXT, tokens.PUSHES_NEXT[m], token):
        wake |= 1 << (m + 1)
    module.busy += at - module.started
    module.started, module.event = -1, NEVER
    module.head = module.head + 1 if module.head + 1 < p.queue else 0
    module.held -= 1
    if fetch.blocked == m:
        fetch.gives = True
    return wake


@part(forceinline=True)
def _pop(flag, queue, token):  # type: ignore[no-untyped-def]
    if flag and queue >= 0:
        token[queue] -= 1


@part(forceinline=True)
def _start(insn, i, m, at, p, work, modules, clients, kept, token):  # type: ignore[no-untyped-def]
    """Module ``m`` takes instruction ``i`` and its tokens in cycle ``at``; returns whether it is FINISH."""
    module = modules[m]
    _pop(insn.flags & Flag.POP_PREV, tokens.POPS_PREV[m], token)
    _pop(insn.flags & Flag.POP_NEXT, tokens.POPS_NEXT[m], token)
    module.started = at + 1
    if insn.op == Opcode.GEMM:
        cycles = _operations(insn, p) + 6
        work.gemm += cycles
    elif insn.op == Opcode.ALU:
        cycles = _operations(insn, p) * (1 if insn.use_imm else 2) + 6
        work.alu += cycles
    elif insn.op == Opcode.FINISH or insn.x == 0:
        cycles = 1
    elif insn.y == 0:
        # The RTL never ends this one; the module stays occupied.
        module.event = NEVER
        return False
    elif insn.op == Opcode.STORE:
        cycles = _store_cycles(insn, p, work)
    else:
        module.event = NEVER
        reads.begin_load(insn, i, m, at, p, modules, clients, kept)
        return False
    module.event = 2 * (at + cycles + 1)
    return bool(insn.op == Opcode.FINISH)


@part(forceinline=True)
def _next_event(modules):  # type: ignore[no-untyped-def]
    """The module with the earliest event, and that event."""
    m = 0
    for other in range(1, 3):
        if modules[other].event < modules[m].event:
            m = other
    return m, modules[m].event


@njit(cache=True, nogil=True)
def simulate(insns, insn_address, p, recording):  # type: ignore[no-untyped-def]
    """Cycles of a program on an idle accelerator.

    Args:
        insns: (n,), decoded instructions.
        insn_address: byte address of the stream in DRAM.
        p: `params` of the accelerator.
        recording: what to record, `records.nothing()` for nothing.

    Returns:
        (cycles, hang, counters): the cycle counter at FINISH, or, if the program hangs, the cycle of the last
        event; 1 if it hangs; `Counters`.
    """
    # Named once: to take an array out of a tuple or a record counts a reference, each time.
    trace, queued, bursts = recording.trace, recording.queued, recording.bursts
    fill(trace[:, 0], -1)
    fill(trace[:, 1], -1)
    fill(queued, -1)
    machines, places = np.zeros(1, MACHINE), np.empty((3, p.queue), PLACE)
    machine = machines[0]
    start(machine, p)
    fetch, channel, work = machine.fetch, machine.channel, machine.work
    modules, clients, token = machine.modules, machine.clients, machine.tokens
    kept, last_beats = machine.kept, machine.last_beats
    fetch.asks, fetch.command = len(insns) > 0, 1
    # Plain literals would have numba compile what they are passed to once more.
    now, wake, finish = np.int64(0), np.int64(0), np.int64(NEVER)
    while True:
        if fetch.gives:
            fetch.gives, fetch.blocked, wake = False, -1, 7
            while fetch.given < fetch.read:
                i = fetch.given
                m = _target(insns[i])
                if not _enter(m, now, len(insns), p, fetch, modules):
                    break
                place = places[m, modules[m].tail]
                place.insn, place.entered = i, fetch.entered
                modules[m].tail = modules[m].tail + 1 if modules[m].tail + 1 < p.queue else 0
                if i < len(queued):
                    queued[i] = fetch.entered
        if fetch.asks:
            _ask(len(insns), insn_address, p, fetch, clients[FETCH_CLIENT])
        if wake:
            _wake(insns, wake, now, modules, token, places)
            wake = 0
        m, event = _next_event(modules)
        cycle, passed = reads.next_send(channel, clients, last_beats)
        if 2 * cycle <= event and cycle <= finish + 1:
            now = cycle
            burst = bursts[channel.sent] if channel.sent < len(bursts) else machine.burst
            reads.send(cycle, passed, len(insns), p, machine, modules, clients, kept, last_beats, burst)
            continue
        at = event >> 1
        if event == NEVER or at > finish + 1:
            break
        now = at
        i = places[m, modules[m].head].insn
        if event & 1 == 0:
            wake = _complete(insns[i].flags, m, at, p, fetch, modules, token)
            if len(trace) > 0:
                trace[i, 1] = at
            continue
        if _start(insns[i], i, m, at, p, work, modules, clients, kept, token):
            finish = at + 1
        if len(trace) > 0:
            trace[i, 0] = at + 1
    # The array is named once more, as numba frees it after its last use.
    channel = machines[0].channel
    counters = Counters(
        modules[0].busy, modules[1].busy, modules[2].busy, work.gemm, work.alu,
        work.read_beats, work.write_beats, channel.sent, work.write_bursts,
    )  # fmt: skip
    if finish == NEVER:
        return now, 1, counters
    return finish, 0, counters
