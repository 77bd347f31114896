"""What a board that is not as described does to a program: a slower memory, and limits that make results wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from oneshot_ml2.common.kernels import njit
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.program import Memory, Opcode

# When results are wrong: never, by a strided STORE of short rows, by a GEMM of many operations, by a large LOAD of INP,
# by a large LOAD of INP in a program that also has a GEMM of many operations.
RULES = ("none", "short_strided_store", "long_gemm", "wide_load", "wide_load_and_long_gemm")
_SHORT_STORE, _LONG_GEMM, _WIDE_LOAD, _WIDE_AND_LONG = 1, 2, 3, 4
# What a miss costs, of one in the bank of the request before, where it is in another bank: it opens beside that.
_OTHER_BANK = 0.25


class Limits(NamedTuple):
    """Micro-ops that there is room for; which of `RULES` (its number), and from where on (``second``: its other size);
    bytes of a DRAM page, and how many banks have one open."""

    uops: int
    rule: int
    limit: int
    second: int
    page: int
    banks: int


class Costs(NamedTuple):
    """Additional cycles of a beat of the memory port, of a request to a DRAM page that is not open, of a cycle of the
    ALU, and of an instruction."""

    beat: float
    miss: float
    alu: float
    instruction: float


@dataclass(frozen=True)
class Faults:
    """A board's faults: ``board``, the accelerator as it is, with the memory latency of the board; ``limits``, beyond
    which programs fail; ``costs``."""

    board: Accelerator
    limits: Limits
    costs: Costs


@njit(cache=True, nogil=True)
def is_wrong(insns, limits):  # type: ignore[no-untyped-def]
    """Whether a program's micro-ops do not fit, or the rule strikes; ``limits``: of `Faults`."""
    rule, limit = limits.rule, limits.limit
    wide = long = False
    for i in range(len(insns)):
        insn = insns[i]
        op, x, y = insn.op, insn.x, insn.y
        if op == Opcode.LOAD and x > 0:
            if insn.mem == Memory.UOP and insn.sram + x * y > limits.uops:
                return True
            if insn.mem == Memory.INP and x * y > limit:
                if rule == _WIDE_LOAD:
                    return True
                wide = True
        elif rule == _SHORT_STORE and op == Opcode.STORE and y > 1 and x < insn.stride and x <= limit:
            return True
        elif rule >= _LONG_GEMM and op == Opcode.GEMM and insn.reset == 0:
            operations = insn.iter_out * insn.iter_in * max(insn.uop_end - insn.uop_bgn, 0)
            if rule == _LONG_GEMM and operations > limit:
                return True
            long = long or operations > limits.second
    return rule == _WIDE_AND_LONG and wide and long


@njit(cache=True, nogil=True)
def page_misses(insns, sizes, page, banks):  # type: ignore[no-untyped-def]
    """Requests of LOADs and STOREs, in program order, to a DRAM page that is not open, and page borders within them.

    Pages lie in ``banks`` banks by turns, of which each has its last one open; a miss in another bank than that of the
    access before counts `_OTHER_BANK`. ``sizes``: bytes of an element of each memory.
    """
    misses, last = 0.0, 0
    opened = np.full(banks, -1, dtype=np.int64)
    for i in range(len(insns)):
        insn = insns[i]
        if (insn.op != Opcode.LOAD and insn.op != Opcode.STORE) or insn.x * insn.y <= 0:
            continue
        size = sizes[Memory.OUT] if insn.op == Opcode.STORE else sizes[insn.mem]
        for y in range(insn.y):
            begin = (insn.dram + y * insn.stride) * size
            for wanted in range(begin // page, (begin + insn.x * size - 1) // page + 1):
                bank = wanted % banks
                if opened[bank] != wanted:
                    misses += 1.0 if bank == last else _OTHER_BANK
                    opened[bank] = wanted
                last = bank
    return misses


@njit(cache=True, nogil=True)
def slowed(cycles, port, compute, alu, misses, instructions, costs):  # type: ignore[no-untyped-def]
    """Cycles of a program with what it costs more: of ``cycles`` as simulated, in which the memory port, the compute
    module and its ALU were busy so long, and with so many page misses and instructions.

    What the port or the ALU takes more, E, hides as far as its module has been idle: E (R + E) / (T + E), R being that
    module's busy cycles. An instruction's cycles hide behind nothing.
    """
    more, longer = port * costs.beat + misses * costs.miss, alu * costs.alu
    total = cycles + more * (port + more) / (cycles + more)
    total += longer * (compute + longer) / (cycles + longer)
    return total + instructions * costs.instruction
