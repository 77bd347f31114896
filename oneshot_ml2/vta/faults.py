"""What a board that is not as described does to a program: a slower memory, and limits that make results wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from oneshot_ml2.common.kernels import njit
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.program import Memory, Opcode

# When results are wrong: never, by a strided STORE of short rows, by a GEMM of many operations, by a large LOAD of INP.
RULES = ("none", "short_strided_store", "long_gemm", "wide_load")
_SHORT_STORE, _LONG_GEMM, _WIDE_LOAD = 1, 2, 3


class Limits(NamedTuple):
    """Micro-ops that there is room for; which of `RULES` (its number), and from where on; bytes of a DRAM page."""

    uops: int
    rule: int
    limit: int
    page: int


@dataclass(frozen=True)
class Faults:
    """A board's faults.

    Attributes:
        board: the accelerator as it is, with the memory latency of the board.
        limits: beyond which programs fail.
        slow: additional cycles that a beat of the memory port takes.
        miss: additional cycles of a request to another DRAM page than that before.
    """

    board: Accelerator
    limits: Limits
    slow: float
    miss: float


@njit(cache=True, nogil=True)
def is_wrong(insns, limits):  # type: ignore[no-untyped-def]
    """Whether a program's micro-ops do not fit, or the rule strikes; ``limits``: of `Faults`."""
    rule, limit = limits.rule, limits.limit
    for i in range(len(insns)):
        insn = insns[i]
        op, x, y = insn.op, insn.x, insn.y
        if op == Opcode.LOAD and x > 0:
            if insn.mem == Memory.UOP and insn.sram + x * y > limits.uops:
                return True
            if rule == _WIDE_LOAD and insn.mem == Memory.INP and x * y > limit:
                return True
        elif rule == _SHORT_STORE and op == Opcode.STORE and y > 1 and x < insn.stride and x <= limit:
            return True
        elif rule == _LONG_GEMM and op == Opcode.GEMM and insn.reset == 0:
            span = max(insn.uop_end - insn.uop_bgn, 0)
            if insn.iter_out * insn.iter_in * span > limit:
                return True
    return False


@njit(cache=True, nogil=True)
def page_misses(insns, sizes, page):  # type: ignore[no-untyped-def]
    """Requests of LOADs and STOREs, in program order, that begin in another DRAM page than the one before ended in, and
    page borders within requests; ``sizes``: bytes of an element of each memory."""
    misses, last = 0, -1
    for i in range(len(insns)):
        insn = insns[i]
        if (insn.op != Opcode.LOAD and insn.op != Opcode.STORE) or insn.x * insn.y <= 0:
            continue
        size = sizes[Memory.OUT] if insn.op == Opcode.STORE else sizes[insn.mem]
        for y in range(insn.y):
            begin = (insn.dram + y * insn.stride) * size
            first, end = begin // page, (begin + insn.x * size - 1) // page
            misses += end - first
            if first != last:
                misses += 1
            last = end
    return misses
