"""What the HLS design asks of a program beyond the instruction set (docs/hls.md), checked on the program itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from oneshot_ml2.common.kernels import njit
from oneshot_ml2.common.parts import part
from oneshot_ml2.vta.program import Memory, Opcode
from oneshot_ml2.vta.reasons import Reason

if TYPE_CHECKING:
    from oneshot_ml2.vta.program import Program

_VALID, _HAZARD, _STALE = int(Reason.VALID), int(Reason.ACC_HAZARD), int(Reason.WRONG_RESULT)


@part()
def _load_uops(insn, uops, uop_base, sram):  # type: ignore[no-untyped-def]
    """What a LOAD UOP brings into the micro-op SRAM: accumulators that they write."""
    for k in range(insn.x * insn.y):
        source = insn.dram + k // insn.x * insn.stride + k % insn.x - uop_base
        if 0 <= source < len(uops) and insn.sram + k < len(sram):
            sram[insn.sram + k] = uops[source].dst


@njit(cache=True, nogil=True)
def _broken(insns, uops, uop_base, uop_depth, acc_depth, distance):  # type: ignore[no-untyped-def]
    """The first rule that a program breaks, as a `Reason`."""
    sram = np.zeros(uop_depth, np.int64)
    # By accumulator: the operation that updated it last, and whether OUT has what it holds.
    updated, shown = np.full(acc_depth, -1 << 40, np.int64), np.zeros(acc_depth, np.bool_)
    operation = np.int64(0)
    for i in range(len(insns)):
        insn = insns[i]
        if insn.op == Opcode.LOAD and insn.mem == Memory.UOP:
            _load_uops(insn, uops, uop_base, sram)
        elif insn.op == Opcode.LOAD and insn.mem >= Memory.ACC:
            size = (insn.top + insn.y + insn.bottom) * (insn.left + insn.x + insn.right)
            for k in range(size if insn.x > 0 else 0):
                shown[(insn.sram + k) % acc_depth] = False
        elif insn.op == Opcode.STORE:
            for k in range(insn.x * insn.y):
                if not shown[(insn.sram + k) % acc_depth]:
                    return _STALE
        elif insn.op == Opcode.GEMM or insn.op == Opcode.ALU:
            reset = insn.op == Opcode.GEMM and insn.reset != 0
            # Between instructions the pipeline runs empty.
            operation += distance
            for o in range(insn.iter_out):
                for j in range(insn.iter_in):
                    base = o * insn.dst_out + j * insn.dst_in
                    for k in range(insn.uop_bgn, min(insn.uop_end, uop_depth)):
                        place = (sram[k] + base) % acc_depth
                        if not reset and operation - updated[place] < distance:
                            return _HAZARD
                        updated[place], shown[place] = operation, not reset
                        operation += 1
    return _VALID


def broken_rule(program: Program) -> Reason:
    """Why a program would give wrong results on the HLS design; VALID if it does not, or if its design is another.

    ACC_HAZARD: an instruction updates an accumulator again before its pipeline has written it, so many operations as
    `Accelerator.acc_distance` at least; WRONG_RESULT: a STORE of what only a reset or a LOAD wrote, as OUT keeps what
    it had.
    """
    a = program.accelerator
    if a.hls is None:
        return Reason.VALID
    insns = np.ascontiguousarray(program.insns)
    uops = np.ascontiguousarray(program.uops)
    base = program.uop_address // 4
    return Reason(int(_broken(insns, uops, base, a.uop_depth, a.acc_depth, a.acc_distance)))
