"""Joins the programs of consecutive layers into one submission, and moves them to other DRAM addresses.

A program of the `full` space begins with the load of its micro-ops and ends with a compute NOP that waits for its last
store, then FINISH. Where another program follows, FINISH goes, and the NOP also lets the load module go on: what the
last program wrote is loaded after it. What it did not write, as the next weights, is loaded as soon as its last GEMM is
done: from then on the SRAMs of inputs and weights are free. The next micro-ops are loaded before the NOP, whose wait
they fill. Compute and store work in order, and wait for each other as within a layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.vta import tokens
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.program import (
    INSN_BYTES,
    PAGE,
    Buffer,
    Flag,
    Insns,
    Memory,
    Opcode,
    Program,
    Uops,
    element_bytes,
    joined,
    words_of,
)

UOPS = "uops"


def alignment(accelerator: Accelerator) -> int:
    """What DRAM buffers are aligned to, in bytes: pages, whole bursts, and elements of every memory."""
    return max(PAGE, accelerator.burst_bytes, *element_bytes(accelerator))


def aligned(address: int, align: int) -> int:
    """The first multiple of ``align`` from ``address`` on."""
    return -(-address // align) * align


def code_bytes(programs: Sequence[Program]) -> tuple[int, int]:
    """Bytes of the micro-ops (each program's begin at a multiple of `alignment`) and the instructions of `link`."""
    align = alignment(programs[0].accelerator)
    uops = sum(aligned(_uop_bytes(program), align) for program in programs)
    return uops, INSN_BYTES * (sum(len(program.insns) - 1 for program in programs) + 1)


def link(
    programs: Sequence[Program], placements: Sequence[Mapping[str, int]], uop_address: int, insn_address: int
) -> Program:
    """One program that does what the given ones do, one after the other.

    Args:
        programs: of the `full` space, for one accelerator.
        placements: of each program: buffer name -> its new byte address, for all buffers but the micro-ops.
            Buffers of several programs may share an address: that is how one layer hands its result to the next.
        uop_address, insn_address: new byte addresses of the micro-ops and the instructions; `code_bytes` of each.

    Returns:
        The program; its buffers are named by the number of their program, as in ``0.data``.

    Raises:
        OneShotError: programs that are not of that form, or an address that does not suit its elements.
    """
    if not programs or len(programs) != len(placements):
        raise OneShotError(f"{len(programs)} programs cannot be joined with {len(placements)} placements")
    chip = programs[0].accelerator
    align, sizes = alignment(chip), np.array(element_bytes(chip))
    parts: list[Insns] = []
    uops: list[Uops] = []
    buffers: list[Buffer] = []
    begin = uop_address
    for number, (program, placement) in enumerate(zip(programs, placements)):
        if program.accelerator != chip:
            raise OneShotError("programs for different accelerators cannot be joined")
        _check_frame(program, number)
        to = {**placement, UOPS: begin}
        part = relocated(program, to)
        if parts:
            parts[-1], part = _handed_over(parts[-1], part, sizes, number)
        parts.append(part[: len(part) - (number + 1 < len(programs))])
        area = aligned(_uop_bytes(program), align)
        padded = np.zeros(area // 4, program.uops.dtype)
        padded[: len(program.uops)] = program.uops
        uops.append(padded)
        for buffer in program.buffers:
            elements = len(program.uops) if buffer.name == UOPS else buffer.elements
            buffers.append(Buffer(f"{number}.{buffer.name}", buffer.memory, to[buffer.name], elements))
        begin += area
    insns = joined(parts)
    if not tokens.runs_in_order(insns):
        raise OneShotError("the joined program's tokens do not balance")
    return Program(chip, insns, np.concatenate(uops), insn_address, uop_address, tuple(buffers))


def relocated(program: Program, placement: Mapping[str, int]) -> Insns:
    """A program's instructions (n,), with its buffers at other byte addresses, by name.

    Raises:
        OneShotError: a buffer without a place, an address that does not suit its elements, or an access outside of
            the buffers.
    """
    sizes = np.array(element_bytes(program.accelerator), dtype=np.int64)
    order = sorted(program.buffers, key=lambda buffer: buffer.address)
    missing = [buffer.name for buffer in order if buffer.name not in placement]
    if missing:
        raise OneShotError(f"no address is given for the buffer {missing[0]!r}")
    begins = np.array([buffer.address for buffer in order], dtype=np.int64)
    ends = begins + [buffer.elements * int(sizes[buffer.memory]) for buffer in order]
    shifts = np.array([placement[buffer.name] for buffer in order], dtype=np.int64) - begins
    insns = program.insns.copy()
    rows, first, last = _accesses(insns, sizes)
    which = np.searchsorted(begins, first, side="right") - 1
    if (which < 0).any() or (last > ends[which]).any():
        raise OneShotError("an instruction reads or writes outside of its program's buffers")
    size = sizes[insns["mem"][rows]]
    if (shifts[which] % size).any():
        raise OneShotError("a buffer's new address does not suit its elements")
    insns["dram"][rows] += shifts[which] // size
    return insns


def _uop_bytes(program: Program) -> int:
    return 4 * len(program.uops)


def _check_frame(program: Program, number: int) -> None:
    """Raise OneShotError unless a program ends as those of the `full` space do."""
    insns = program.insns
    if len(insns) >= 2:
        nop, end = insns[-2], insns[-1]
        waits = (
            nop["op"] == Opcode.LOAD and nop["mem"] == Memory.UOP and nop["x"] == 0 and nop["flags"] == Flag.POP_NEXT
        )
        if waits and end["op"] == Opcode.FINISH and end["flags"] == 0 and not (insns["op"][:-1] == Opcode.FINISH).any():
            return
    raise OneShotError(f"program {number} does not end as those of the full space; it cannot be joined with others")


def _accesses(insns: Insns, sizes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Which instructions move DRAM, and the bytes [begin, end) that each of them spans; int64 (m,) each.

    Of a memory instruction with x_size 0 only the tokens count.
    """
    rows = np.flatnonzero(((insns["op"] == Opcode.LOAD) | (insns["op"] == Opcode.STORE)) & (insns["x"] > 0))
    moves = insns[rows]
    size = sizes[moves["mem"]]
    begin = moves["dram"] * size
    return rows, begin, begin + ((moves["y"] - 1) * moves["stride"] + moves["x"]) * size


def _overlap(insns: Insns, others: Insns, sizes: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of some instructions (n,) span bytes of DRAM that some of the others do, bool (n,)."""
    found = np.zeros(len(insns), np.bool_)
    rows, begins, ends = _accesses(insns, sizes)
    _, firsts, lasts = _accesses(others, sizes)
    found[rows] = ((begins[:, None] < lasts) & (firsts < ends[:, None])).any(axis=1)
    return found


def _on_their_way(last: Insns, gemm: int) -> Insns:
    """The STOREs of a program that may not be in DRAM yet when its instruction ``gemm`` is done."""
    pops = np.flatnonzero((tokens.modules(last) == tokens.COMPUTES) & (last["flags"] & Flag.POP_NEXT > 0))
    stores = last[last["op"] == Opcode.STORE]
    pushes = stores["flags"] & Flag.PUSH_PREV > 0
    # The NOP of the program before takes the token of a STORE there.
    taken = np.count_nonzero(pops <= gemm) - (len(pops) - np.count_nonzero(pushes))
    return stores[np.cumsum(pushes) - pushes >= taken]


def _handed_over(last: Insns, insns: Insns, sizes: NDArray[np.int64], number: int) -> tuple[Insns, Insns]:
    """A program without FINISH and the next one, both at their addresses, as they follow each other.

    Args:
        last, insns: (m,) and (n,); the NOP that ends ``last`` goes behind the LOADs of micro-ops that begin ``insns``.
        sizes: bytes of an element of each memory, int64.
        number: of the next program, for errors.

    Raises:
        OneShotError: the first LOAD of ``insns`` waits for compute already.
    """
    last, insns = last.copy(), insns.copy()
    loads = np.flatnonzero(tokens.modules(insns) == tokens.LOADS)
    if len(loads):
        # Tokens are taken in the order of their pushes: those of here before any that the program pushes itself.
        free = loads[np.cumsum(insns["flags"][loads] & Flag.POP_NEXT) == 0]
        if not len(free):
            raise OneShotError(f"the first load of program {number} waits for compute already; it cannot be joined")
        begin = stop = free[0]
        gemms = np.flatnonzero((last["op"] == Opcode.GEMM) & (last["reset"] == 0))
        if len(gemms) and not last["flags"][gemms[-1]] & Flag.PUSH_PREV:
            stores = _on_their_way(last, gemms[-1])
            waits = _overlap(insns[free], stores, sizes)
            # LOADs up to the first token for compute go in any order: those that wait go last.
            count = int(np.argmax(insns["flags"][free] & Flag.PUSH_NEXT > 0)) + 1
            group, order = free[:count], np.argsort(waits[:count], kind="stable")
            flags = insns["flags"][group]
            words_of(insns)[group] = words_of(insns)[group[order]]
            insns["flags"][group], waits[:count] = flags, waits[order]
            stop = free[np.argmax(waits)] if waits.any() else free[-1]
        last["flags"][-1] |= Flag.PUSH_PREV
        insns["flags"][stop] |= Flag.POP_NEXT
        if stop != begin:
            last["flags"][gemms[-1]] |= Flag.PUSH_PREV
            insns["flags"][begin] |= Flag.POP_NEXT
    ready = int(np.argmax((insns["op"] != Opcode.LOAD) | (insns["mem"] != Memory.UOP) | (insns["flags"] > 0)))
    return last[:-1], joined([insns[:ready], last[-1:], insns[ready:]])
