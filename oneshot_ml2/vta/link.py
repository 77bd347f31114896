"""Joins the programs of consecutive layers into one submission, and moves them to other DRAM addresses.

A program of the `full` space begins with the load of its micro-ops and ends with a compute NOP that waits for its last
store, then FINISH. Where another program follows, FINISH goes, and the NOP also lets the load module go on: the first
LOAD of inputs or weights there waits for it. So nothing of a layer is read before all of the layer before it is in
DRAM, and no SRAM is overwritten early: compute and store work in order, and wait for each other as within a layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

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
    align = alignment(chip)
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
            # The NOP at the end of what is there; FINISH has gone.
            _hand_over(parts, part, number)
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
    # Of a memory instruction with x_size 0 only the tokens count.
    rows = np.flatnonzero(((insns["op"] == Opcode.LOAD) | (insns["op"] == Opcode.STORE)) & (insns["x"] > 0))
    moves = insns[rows]
    size = sizes[moves["mem"]]
    first = moves["dram"] * size
    last = first + ((moves["y"] - 1) * moves["stride"] + moves["x"]) * size
    which = np.searchsorted(begins, first, side="right") - 1
    if (which < 0).any() or (last > ends[which]).any():
        raise OneShotError("an instruction reads or writes outside of its program's buffers")
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


def _hand_over(parts: list[Insns], insns: Insns, number: int) -> None:
    """Let the first LOAD of the next program wait for the end of the last one; without any, compute's order does."""
    loads = np.flatnonzero((insns["op"] == Opcode.LOAD) & ((insns["mem"] == Memory.INP) | (insns["mem"] == Memory.WGT)))
    if not len(loads):
        return
    if insns["flags"][loads[0]] & Flag.POP_NEXT:
        raise OneShotError(f"the first load of program {number} waits for compute already; it cannot be joined")
    insns["flags"][loads[0]] |= Flag.POP_NEXT
    parts[-1]["flags"][-1] |= Flag.PUSH_PREV
