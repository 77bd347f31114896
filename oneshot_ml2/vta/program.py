"""A VTA program: decoded instructions, micro-ops and the DRAM buffers that they address.

Instructions travel as a structured array (n,) of dtype `INSN`, a record an instruction, and micro-ops as one of dtype
`MICRO_OP`: ``insns["dram"]``, in compiled code ``insns[i].dram``. `isa.py` packs and unpacks the 128-bit words of an
accelerator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from oneshot_ml2.vta.accelerator import Accelerator


class Opcode(IntEnum):
    """The 3-bit opcode of an instruction (VTA's ``hw_spec_const.h``)."""

    LOAD = 0
    STORE = 1
    GEMM = 2
    FINISH = 3
    ALU = 4


class Memory(IntEnum):
    """The SRAM that a LOAD fills, or a STORE empties."""

    UOP = 0
    WGT = 1
    INP = 2
    ACC = 3
    OUT = 4
    ACC_8BIT = 5


class AluOp(IntEnum):
    """What an ALU instruction does; the RTL has no MUL."""

    MIN = 0
    MAX = 1
    ADD = 2
    SHR = 3
    MUL = 4


class Flag(IntEnum):
    """Dependency flags, bits of the field ``flags``."""

    POP_PREV = 1
    POP_NEXT = 2
    PUSH_PREV = 4
    PUSH_NEXT = 8


# An instruction is 14 words of int64. As in VTA's union of three structs, fields of different opcodes share words.
_COMMON = ("op", "flags")
_MEMORY = (*_COMMON, "mem", "sram", "dram", "y", "x", "stride", "top", "bottom", "left", "right")
_LOOPS = (*_COMMON, "reset", "uop_bgn", "uop_end", "iter_out", "iter_in", "dst_out", "dst_in", "src_out", "src_in")
_GEMM = (*_LOOPS, "wgt_out", "wgt_in")
_ALU = (*_LOOPS, "alu_op", "use_imm", "imm")
COLUMNS = 14
_PLACES = {name: 8 * place for names in (_MEMORY, _GEMM, _ALU) for place, name in enumerate(names)}
INSN = np.dtype(
    {"names": [*_PLACES], "formats": ["<i8"] * len(_PLACES), "offsets": [*_PLACES.values()], "itemsize": 8 * COLUMNS}
)
# A micro-op: indices into ACC (and OUT), into INP (of the ALU: ACC) and into WGT.
MICRO_OP = np.dtype([("dst", "<i8"), ("src", "<i8"), ("wgt", "<i8")])
# Arrays of instructions (n,) and of micro-ops (m,).
Insns = NDArray[np.void]
Uops = NDArray[np.void]

PAGE = 4096
# Bytes that a program can address: byte addresses wrap at 32 bits.
ADDRESSES = 1 << 32
INSN_BYTES = 16
# What a loop of 0 iterations counts to: its counter runs once around.
ITERATIONS = 1 << 14


def words_of(insns: Insns) -> NDArray[np.int64]:
    """Instructions (n,) as int64 (n, COLUMNS): a view where they lie one after another, else a copy."""
    return np.ascontiguousarray(insns).view(np.int64).reshape(-1, COLUMNS)


def insns_of(words: NDArray[np.int64] | Sequence[Sequence[int]]) -> Insns:
    """The inverse of `words_of`."""
    table = np.ascontiguousarray(words, dtype=np.int64).reshape(-1, COLUMNS)
    return table.view(INSN)[:, 0]


def joined(parts: Sequence[Insns]) -> Insns:
    """Instructions of several programs, one after the other."""
    # numpy's own concatenation of records whose fields share words has another dtype.
    return insns_of(np.concatenate([words_of(part) for part in parts]))


@dataclass(frozen=True)
class Buffer:
    """A DRAM region: ``memory`` is the memory id whose element size is the unit of ``dram_base``."""

    name: str
    memory: int
    address: int
    elements: int

    def __post_init__(self) -> None:
        # Not the member of `Memory`: what is kept of programs spells a buffer out.
        object.__setattr__(self, "memory", int(self.memory))


@dataclass(frozen=True)
class Program:
    """What lowering makes and a device runs.

    ``insns``: `INSN` (n,); ``uops``: `MICRO_OP` (m,); addresses in bytes.
    ``features``: hidden features by name, what the code generator knew on the way.
    """

    accelerator: Accelerator
    insns: Insns
    uops: Uops
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
