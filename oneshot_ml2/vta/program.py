"""A VTA program: decoded instructions, micro-ops and the DRAM buffers that they address.

Instructions travel as one int64 array of shape (n, ``COLUMNS``), a row an instruction, a column a
field (the constants below); `isa.py` packs and unpacks the 128-bit words of one accelerator.
LOAD/STORE and GEMM/ALU/FINISH share columns 2..11.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from oneshot_ml2.vta.accelerator import Accelerator

# Opcodes, memory ids and ALU opcodes (VTA reference, section 2).
LOAD, STORE, GEMM, FINISH, ALU = 0, 1, 2, 3, 4
UOP, WGT, INP, ACC, OUT, ACC_8BIT = 0, 1, 2, 3, 4, 5
ALU_MIN, ALU_MAX, ALU_ADD, ALU_SHR, ALU_MUL = 0, 1, 2, 3, 4
# Dependency flags, bits of column FLAGS.
POP_PREV, POP_NEXT, PUSH_PREV, PUSH_NEXT = 1, 2, 4, 8

# Columns of every instruction.
C_OP, C_FLAGS = 0, 1
# LOAD and STORE.
C_MEM, C_SRAM, C_DRAM, C_Y, C_X, C_STRIDE, C_TOP, C_BOTTOM, C_LEFT, C_RIGHT = range(2, 12)
# GEMM and ALU. C_RESET is GEMM's reset bit; C_ALU_OP, C_USE_IMM and C_IMM are the ALU's.
C_RESET, C_UOP_BGN, C_UOP_END, C_ITER_OUT, C_ITER_IN = range(2, 7)
C_DST_OUT, C_DST_IN, C_SRC_OUT, C_SRC_IN, C_WGT_OUT, C_WGT_IN = range(7, 13)
C_ALU_OP, C_USE_IMM, C_IMM = 11, 12, 13
COLUMNS = 14

PAGE = 4096
# Bytes that a program can address: byte addresses wrap at 32 bits (VTA reference, 3.2).
ADDRESSES = 1 << 32
INSN_BYTES = 16


@dataclass(frozen=True)
class Buffer:
    """A DRAM region: ``memory`` is the memory id whose element size is the unit of ``dram_base``."""

    name: str
    memory: int
    address: int
    elements: int


@dataclass(frozen=True)
class Program:
    """What lowering makes and a device runs.

    ``insns``: int64 (n, COLUMNS); ``uops``: int64 (m, 3) as (dst, src, wgt); addresses in bytes.
    ``features``: hidden features by name, what the code generator knew on the way.
    """

    accelerator: Accelerator
    insns: NDArray[np.int64]
    uops: NDArray[np.int64]
    insn_address: int
    uop_address: int
    buffers: tuple[Buffer, ...]
    features: dict[str, float] = field(default_factory=dict)

    @property
    def dram_bytes(self) -> int:
        """Size of the smallest DRAM image that holds everything the program addresses."""
        sizes = element_bytes(self.accelerator)
        ends = [b.address + b.elements * sizes[b.memory] for b in self.buffers]
        ends += [self.insn_address + INSN_BYTES * len(self.insns), self.uop_address + 4 * len(self.uops)]
        return -(-max(ends) // PAGE) * PAGE

    def buffer_bytes(self, name: str) -> int:
        """Size of the buffer of that name (KeyError if there is none)."""
        found = self.buffer(name)
        return found.elements * element_bytes(self.accelerator)[found.memory]

    def buffer(self, name: str) -> Buffer:
        """The buffer of that name (KeyError if there is none)."""
        for candidate in self.buffers:
            if candidate.name == name:
                return candidate
        raise KeyError(name)


def element_bytes(accelerator: Accelerator) -> tuple[int, int, int, int, int, int]:
    """Bytes of a DRAM element by memory id: UOP, WGT, INP, ACC, OUT, ACC_8BIT."""
    a = accelerator
    return (4, a.wgt_bytes, a.inp_bytes, a.acc_bytes, a.inp_bytes, a.acc_bytes // 4)
