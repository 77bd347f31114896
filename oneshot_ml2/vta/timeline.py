"""What fetch, the three modules and the memory port do in every cycle of a program.

The cycles are those of `vta.timing`. On the rows of fetch and of the modules every cycle belongs to one slice: an
instruction, from the cycle in which it is issued (it takes its tokens there, and executes from the next one on), or
a wait, named by what ended it. Within a LOAD or a fetch, a wait for the memory port is a slice of its own, inside.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.vta import isa
from oneshot_ml2.vta import tokens as queues
from oneshot_ml2.vta.program import INSN, Flag, Insns, Memory, Opcode, element_bytes
from oneshot_ml2.vta.timing import designs
from oneshot_ml2.vta.timing.records import CLIENT_OF_MEMORY, CLIENTS, FETCH_CLIENT

if TYPE_CHECKING:
    from oneshot_ml2.vta.program import Program

ROWS = ("fetch", "load", "compute", "store", "memory read", "memory write")


class Row(IntEnum):
    """Places in ``ROWS``."""

    FETCH = 0
    LOAD = 1
    COMPUTE = 2
    STORE = 3
    READ = 4
    WRITE = 5


# By module, its row.
MODULE_ROWS = (Row.LOAD, Row.COMPUTE, Row.STORE)
# Kinds of slices.
WORK, WAIT, IDLE = "instruction", "wait", "idle"
NO_MORE = "no more instructions"
WAIT_INSTRUCTION = "waits for instructions"
WAIT_PORT = "waits for the memory port"
LATENCY = "memory latency"
_FLAG_NAMES = ("pop_prev", "pop_next", "push_prev", "push_next")


@dataclass(frozen=True)
class Slice:
    """Cycles [start, end) of one of ``ROWS``; ``inner``: it lies within an instruction's slice."""

    row: int
    start: int
    end: int
    name: str
    kind: str
    args: Mapping[str, Any] = field(default_factory=dict)
    inner: bool = False


@dataclass(frozen=True)
class Timeline:
    """What a program does in its cycles [begin, begin + cycles), slices by row and time.

    A whole program's begin at 0, and ``cycles`` and ``hang`` are `timing.Timing`'s.
    """

    cycles: int
    hang: bool
    slices: tuple[Slice, ...]
    begin: int = 0

    def totals(self) -> dict[str, dict[str, int]]:
        """Row -> name of a wait or of what it does -> cycles; what lies within an instruction is not counted again."""
        result: dict[str, dict[str, int]] = {row: {} for row in ROWS}
        for piece in self.slices:
            if not piece.inner:
                names = result[ROWS[piece.row]]
                names[piece.name] = names.get(piece.name, 0) + piece.end - piece.start
        return result

    def port_waits(self) -> dict[str, int]:
        """Row -> cycles within its instructions in which they wait for the memory port."""
        waits = dict.fromkeys(ROWS[: Row.STORE], 0)
        for piece in self.slices:
            if piece.inner:
                waits[ROWS[piece.row]] += piece.end - piece.start
        return waits

    def cut(self, begin: int, end: int) -> Timeline:
        """Cycles [begin, end) of it; a slice that reaches beyond them ends there."""
        slices = tuple(
            dataclasses.replace(piece, start=max(piece.start, begin), end=min(piece.end, end))
            for piece in self.slices
            if piece.start < end and piece.end > begin
        )
        return Timeline(end - begin, self.hang, slices, begin)


def timeline(program: Program) -> Timeline:
    """Time a program on its own accelerator, and say what everything does in every cycle."""
    timed = designs.measure(program, trace=True, memory=True)
    assert timed.trace is not None and timed.queued is not None and timed.bursts is not None
    modules = queues.modules(program.insns)
    ports = _port_waits(timed.bursts, program.accelerator.memory_latency)
    slices = _modules(program, modules, timed.trace, timed.queued, ports, timed.cycles)
    if program.accelerator.hls is None:
        slices += _fetch(program, modules, timed.queued, timed.bursts, ports, timed.cycles)
        slices += _memory(program, timed.trace, timed.bursts)
    else:
        slices += _fetch_unseen(modules, timed.queued, timed.cycles)
        slices += _rows(program, timed.trace)
    ordered = sorted((s for s in slices if s.start < s.end), key=lambda s: (s.row, s.start, s.inner))
    return Timeline(timed.cycles, timed.hang, tuple(ordered)).cut(0, timed.cycles)


def _port_waits(bursts: NDArray[np.void], latency: int) -> dict[tuple[int, int], list[tuple[int, int, str]]]:
    """(client, instruction) -> cycles [start, end) in which it waits for the port, and whose beats that carries then.

    It waits from when its first beat could have come, had the memory been idle, while others' beats are on the channel.
    """
    starts = bursts["taken"] + 1
    ends = starts + bursts["beats"]
    clients = bursts["client"]
    waits: dict[tuple[int, int], list[tuple[int, int, str]]] = {}
    if not len(bursts):
        return waits
    order = np.lexsort((np.arange(len(bursts)), bursts["insn"], clients))
    keys = bursts[["client", "insn"]][order]
    for group in np.split(order, np.flatnonzero(keys[1:] != keys[:-1]) + 1):
        first, last = int(group[0]), int(group[-1])
        client, insn = int(clients[first]), int(bursts["insn"][first])
        begin = int(bursts["asked"][first]) + latency + 2
        low = int(np.searchsorted(ends, begin, side="right"))
        others = np.arange(low, last)
        others = others[(clients[others] != client) | (bursts["insn"][others] != insn)]
        if not len(others) or insn < 0:
            continue
        found: list[tuple[int, int, str]] = []
        for start, end, who in zip(np.maximum(starts[others], begin).tolist(), ends[others].tolist(), others.tolist()):
            name = CLIENTS[int(clients[who])]
            if found and found[-1][1] == start:
                names = found[-1][2]
                found[-1] = (found[-1][0], end, names if name in names.split(", ") else f"{names}, {name}")
            else:
                found.append((start, end, name))
        waits[client, insn] = found
    return waits


def _inner(row: int, waits: Iterable[tuple[int, int, str]], start: int, end: int) -> list[Slice]:
    """Port waits as slices within an instruction's [start, end)."""
    return [
        Slice(row, max(a, start), min(b, end), WAIT_PORT, WAIT, {"carries": names}, True)
        for a, b, names in waits
        if max(a, start) < min(b, end)
    ]


def _fetch(
    program: Program,
    modules: NDArray[np.int64],
    queued: NDArray[np.int64],
    bursts: NDArray[np.void],
    ports: Mapping[tuple[int, int], list[tuple[int, int, str]]],
    cycles: int,
) -> list[Slice]:
    """Chunks of instructions are read, then dispatched in order while their modules' queues have room."""
    wide = program.accelerator.bus_bytes > 8
    mine = bursts[bursts["client"] == FETCH_CLIENT]
    firsts = np.unique(mine["insn"])
    slices: list[Slice] = []
    now = 0
    for first, limit in zip(firsts.tolist(), [*firsts[1:].tolist(), len(queued)]):
        chunk = mine[mine["insn"] == first]
        last = int(chunk["taken"][-1] + chunk["beats"][-1])
        # From the last beat to the first instruction's entry into a queue that has room.
        arrival = max(now, last + (5 if wide else 2))
        there = np.flatnonzero(queued[first:limit] >= 0) + first
        args = {"first instruction": first, "beats": int(chunk["beats"].sum()), "bursts": len(chunk)}
        slices.append(Slice(Row.FETCH, now, arrival, "FETCH", WORK, args))
        slices += _inner(Row.FETCH, ports.get((FETCH_CLIENT, first), []), now, arrival)
        now = arrival
        if len(there):
            times = queued[there]
            runs = np.flatnonzero(np.diff(times) != 1) + 1
            for run in np.split(there, runs):
                begin, end = int(queued[run[0]]), int(queued[run[-1]]) + 1
                if begin > now:
                    slices.append(_full_queue(modules, int(run[0]), now, begin))
                span = {"first instruction": int(run[0]), "instructions": len(run)}
                slices.append(Slice(Row.FETCH, max(now, begin), end, "DISPATCH", WORK, span))
                now = max(now, end)
        left = first + len(there)
        if left < limit and (limit == len(queued)):
            slices.append(_full_queue(modules, left, now, cycles))
            now = cycles
    slices.append(Slice(Row.FETCH, now, cycles, NO_MORE if len(firsts) else WAIT_INSTRUCTION, IDLE))
    return slices


def _fetch_unseen(modules: NDArray[np.int64], queued: NDArray[np.int64], cycles: int) -> list[Slice]:
    """The fetch of the HLS design, which takes no time that can be seen: its waits for queues that are full."""
    slices: list[Slice] = []
    now = 0
    for insn in (np.flatnonzero(np.diff(queued) > 0) + 1).tolist():
        slices.append(_full_queue(modules, insn, now, int(queued[insn])))
        now = int(queued[insn])
    never = np.flatnonzero(queued < 0)
    if len(never):
        return [*slices, _full_queue(modules, int(never[0]), now, cycles)]
    return [*slices, Slice(Row.FETCH, now, cycles, NO_MORE, IDLE)]


def _rows(program: Program, trace: NDArray[np.int64]) -> list[Slice]:
    """What the ports of load and of store carry on the HLS design; what compute loads stands in its own row."""
    insns, sizes = program.insns, element_bytes(program.accelerator)
    moves = (queues.modules(insns) != queues.COMPUTES) & (insns["x"] > 0) & (trace[:, 0] >= 0)
    slices = []
    for i in np.flatnonzero(moves).tolist():
        store = insns["op"][i] == Opcode.STORE
        memory = Memory.OUT if store else int(insns["mem"][i])
        rows, size = int(insns["y"][i]), int(insns["y"][i] * insns["x"][i]) * sizes[memory]
        end = int(trace[i, 1]) if trace[i, 1] >= 0 else 1 << 60
        args = {"instruction": i, "bytes": size, "rows": rows}
        row = Row.WRITE if store else Row.READ
        slices.append(Slice(row, int(trace[i, 0]), end, isa.MEMORIES[memory], WORK, args))
    return slices


def _full_queue(modules: NDArray[np.int64], insn: int, start: int, end: int) -> Slice:
    module = queues.MODULES[modules[insn]]
    return Slice(Row.FETCH, start, end, f"waits for room in the {module} queue", WAIT, {"for": insn})


def _modules(
    program: Program,
    modules: NDArray[np.int64],
    trace: NDArray[np.int64],
    queued: NDArray[np.int64],
    ports: Mapping[tuple[int, int], list[tuple[int, int, str]]],
    cycles: int,
) -> list[Slice]:
    """Every issued instruction, and between them what the next one waits for."""
    insns, flags = program.insns, program.insns["flags"]
    texts = _names(insns)
    # The RTL takes an instruction in the cycle before the first in which it executes.
    lead = 1 if program.accelerator.hls is None else 0
    # By popping module: the flag, and where the token comes from; the k-th pop takes the k-th push.
    sources: dict[int, list[tuple[str, NDArray[np.int64], NDArray[np.int64], int]]] = {0: [], 1: [], 2: []}
    for taker, pop, giver, push in (
        (queues.COMPUTES, Flag.POP_PREV, queues.LOADS, Flag.PUSH_NEXT),
        (queues.LOADS, Flag.POP_NEXT, queues.COMPUTES, Flag.PUSH_PREV),
        (queues.STORES, Flag.POP_PREV, queues.COMPUTES, Flag.PUSH_NEXT),
        (queues.COMPUTES, Flag.POP_NEXT, queues.STORES, Flag.PUSH_PREV),
    ):
        pushers = np.flatnonzero((modules == giver) & (flags & push != 0))
        poppers = np.flatnonzero((modules == taker) & (flags & pop != 0))
        by = np.full(len(insns), -1, np.int64)
        by[poppers[: len(pushers)]] = pushers[: len(poppers)]
        sources[taker].append((queues.MODULES[giver], by, trace[:, 1], pop))

    slices: list[Slice] = []
    for module, row in enumerate(MODULE_ROWS):
        now = 0
        for i in np.flatnonzero(modules == module).tolist():
            issued = bool(trace[i, 0] >= 0)
            issue = int(trace[i, 0]) - lead if issued else cycles
            if issue > now:
                slices.append(_gap(row, i, now, issue, queued, [s for s in sources[module] if flags[i] & s[3]]))
            if not issued or issue >= cycles:
                now = cycles
                break
            done = int(trace[i, 1])
            end = min(done, cycles) if done >= 0 else cycles
            loads = insns["op"][i] == Opcode.LOAD
            port = ports.get((int(CLIENT_OF_MEMORY[insns["mem"][i]]), i), []) if loads else []
            waits = _inner(row, port, issue, end)
            args = _arguments(program, i, int(trace[i, 0]), done, sum(w.end - w.start for w in waits))
            slices.append(Slice(row, issue, end, texts[i], WORK, args))
            slices += waits
            now = end
        slices.append(Slice(row, now, cycles, NO_MORE, IDLE))
    return slices


def _gap(
    row: int,
    insn: int,
    start: int,
    end: int,
    queued: NDArray[np.int64],
    sources: Sequence[tuple[str, NDArray[np.int64], NDArray[np.int64], int]],
) -> Slice:
    """What instruction ``insn`` waited for: of its conditions the one that came last, or never came."""
    never = 1 << 60
    in_queue = int(queued[insn])
    latest, name = (never if in_queue < 0 else in_queue + 1), WAIT_INSTRUCTION
    args: dict[str, Any] = {"for": insn, "in its queue": in_queue if in_queue >= 0 else "never"}
    for giver, by, done, _ in sources:
        pusher = int(by[insn])
        came = int(done[pusher]) if pusher >= 0 and done[pusher] >= 0 else never
        args[f"token from {giver}"] = "never" if came == never else came
        args[f"{giver}'s instruction"] = pusher if pusher >= 0 else "none"
        if in_queue >= 0 and came >= latest:
            latest, name = came, f"waits for a token from {giver}"
    return Slice(row, start, end, name, WAIT, args)


def _names(insns: Insns) -> list[str]:
    """What each instruction is: ``LOAD INP``, ``GEMM``, ``ALU SHR``."""
    names = []
    for insn in insns:
        op = insn["op"]
        if op in (Opcode.LOAD, Opcode.STORE):
            text = f"{'LOAD' if op == Opcode.LOAD else 'STORE'} {isa.MEMORIES[insn['mem']]}"
            names.append(text if insn["x"] else f"{text} nop")
        elif op == Opcode.GEMM:
            names.append("GEMM reset" if insn["reset"] else "GEMM")
        elif op == Opcode.ALU:
            names.append(f"ALU {isa.ALU_OPS[insn['alu_op']]}")
        else:
            names.append("FINISH" if op == Opcode.FINISH else f"OPCODE {op}")
    return names


def _arguments(program: Program, i: int, start: int, done: int, port_wait: int) -> dict[str, Any]:
    """Sizes, addresses, flags and tokens of an instruction, for a click on it."""
    insn = {name: int(program.insns[name][i]) for name in INSN.names or ()}
    args: dict[str, Any] = {"instruction": i, "executes from": start, "execution cycles": done - start}
    if done < 0:
        args["execution cycles"] = "does not end"
    op = insn["op"]
    if op in (Opcode.LOAD, Opcode.STORE):
        if insn["x"]:
            size = element_bytes(program.accelerator)[insn["mem"]]
            args |= {
                "sram": insn["sram"], "dram": f"{insn['dram'] * size:#x}", "y": insn["y"], "x": insn["x"],
                "stride": insn["stride"], "bytes": insn["y"] * insn["x"] * size,
            }  # fmt: skip
            args |= {f"pad {side}": insn[side] for side in ("top", "bottom", "left", "right") if insn[side]}
        if port_wait:
            args[WAIT_PORT] = port_wait
    elif op in (Opcode.GEMM, Opcode.ALU):
        uops = insn["uop_end"] - insn["uop_bgn"]
        args |= {
            "micro-ops": f"{insn['uop_bgn']}..{insn['uop_end']}",
            "loops": f"{insn['iter_out']} x {insn['iter_in']}",
            "operations": insn["iter_out"] * insn["iter_in"] * uops,
            "dst factors": f"{insn['dst_out']},{insn['dst_in']}",
            "src factors": f"{insn['src_out']},{insn['src_in']}",
        }
        if op == Opcode.GEMM:
            args["wgt factors"] = f"{insn['wgt_out']},{insn['wgt_in']}"
        elif insn["use_imm"]:
            args["immediate"] = insn["imm"]
    tokens = [name for bit, name in enumerate(_FLAG_NAMES) if insn["flags"] >> bit & 1]
    return args | ({"tokens": " ".join(tokens)} if tokens else {})


def _memory(program: Program, trace: NDArray[np.int64], bursts: NDArray[np.void]) -> list[Slice]:
    """What the read channel carries, and the latency that it waits for; STOREs, on the write channel."""
    bus = program.accelerator.bus_bytes
    slices: list[Slice] = []
    if len(bursts):
        starts = bursts["taken"] + 1
        ends = starts + bursts["beats"]
        keys = bursts[["client", "insn"]]
        same = keys[1:] == keys[:-1]
        cuts = np.flatnonzero(~(same & (starts[1:] == ends[:-1]))) + 1
        heads = [0, *cuts.tolist()]
        beats = np.add.reduceat(bursts["beats"], heads).tolist()
        before = 0
        for a, b, n in zip(heads, [*cuts.tolist(), len(bursts)], beats):
            start, end = int(starts[a]), int(ends[b - 1])
            asked = max(before, int(bursts["sent"][a]))
            slices.append(Slice(Row.READ, asked, start, LATENCY, IDLE))
            args = {"instruction": int(bursts["insn"][a]), "beats": n, "bytes": n * bus, "bursts": b - a}
            slices.append(Slice(Row.READ, start, end, CLIENTS[int(bursts["client"][a])], WORK, args))
            before = end
    insns = program.insns
    for i in np.flatnonzero((insns["op"] == Opcode.STORE) & (insns["x"] > 0) & (trace[:, 0] >= 0)).tolist():
        end = int(trace[i, 1]) if trace[i, 1] >= 0 else 1 << 60
        size = int(insns["y"][i] * insns["x"][i]) * element_bytes(program.accelerator)[Memory.OUT]
        slices.append(Slice(Row.WRITE, int(trace[i, 0]), end, "OUT", WORK, {"instruction": i, "bytes": size}))
    return slices
