"""Packing and unpacking of VTA's 128-bit instructions and 32-bit micro-ops (VTA reference, section 2)."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.vta.program import (
    ALU,
    C_ALU_OP,
    C_BOTTOM,
    C_DRAM,
    C_DST_IN,
    C_DST_OUT,
    C_FLAGS,
    C_IMM,
    C_ITER_IN,
    C_ITER_OUT,
    C_LEFT,
    C_MEM,
    C_OP,
    C_RESET,
    C_RIGHT,
    C_SRAM,
    C_SRC_IN,
    C_SRC_OUT,
    C_STRIDE,
    C_TOP,
    C_UOP_BGN,
    C_UOP_END,
    C_USE_IMM,
    C_WGT_IN,
    C_WGT_OUT,
    C_X,
    C_Y,
    COLUMNS,
    FINISH,
    GEMM,
    LOAD,
    POP_NEXT,
    POP_PREV,
    PUSH_NEXT,
    PUSH_PREV,
    STORE,
)

if TYPE_CHECKING:
    from oneshot_ml2.vta.accelerator import Accelerator

# One field: (name, column of the decoded instruction, lowest bit of the 128, width).
Field = tuple[str, int, int, int]

MEMORIES = ("UOP", "WGT", "INP", "ACC", "OUT", "ACC_8BIT", "MEM6", "MEM7")
ALU_OPS = ("MIN", "MAX", "ADD", "SHR", "MUL", "ALU5", "ALU6", "ALU7")
_HEAD: tuple[tuple[str, int, int], ...] = (("opcode", C_OP, 3), ("flags", C_FLAGS, 4))
_MEMORY: tuple[tuple[str, int, int], ...] = (
    *_HEAD,
    ("memory id", C_MEM, 3),
    ("sram_base", C_SRAM, 16),
    ("dram_base", C_DRAM, 32),
    ("y_size", C_Y, 16),
    ("x_size", C_X, 16),
    ("x_stride", C_STRIDE, 16),
    ("y_pad_0", C_TOP, 4),
    ("y_pad_1", C_BOTTOM, 4),
    ("x_pad_0", C_LEFT, 4),
    ("x_pad_1", C_RIGHT, 4),
)


def _pack_layout(fields: tuple[tuple[str, int, int], ...]) -> tuple[Field, ...]:
    """Lay fields from bit 0 upwards; one that would cross bit 64 starts there (2, packing rule)."""
    layout = []
    position = 0
    for name, column, width in fields:
        if position < 64 < position + width:
            position = 64
        layout.append((name, column, position, width))
        position += width
    return tuple(layout)


@lru_cache(maxsize=64)
def layout(opcode: int, bits: tuple[int, int, int, int]) -> tuple[Field, ...]:
    """Fields of an opcode for index widths ``bits`` = (U, I, W, A); the spill case of 2.3 included."""
    u, i, w, a = bits
    if opcode in (LOAD, STORE):
        return _pack_layout(_MEMORY)
    if opcode not in (GEMM, ALU):
        return _pack_layout(_HEAD)
    common = (
        *_HEAD,
        ("reset", C_RESET, 1),
        ("uop_bgn", C_UOP_BGN, u),
        ("uop_end", C_UOP_END, u + 1),
        ("iter_out", C_ITER_OUT, 14),
        ("iter_in", C_ITER_IN, 14),
        ("dst_factor_out", C_DST_OUT, a),
        ("dst_factor_in", C_DST_IN, a),
    )
    if opcode == GEMM:
        return _pack_layout(
            (
                *common,
                ("src_factor_out", C_SRC_OUT, i),
                ("src_factor_in", C_SRC_IN, i),
                ("wgt_factor_out", C_WGT_OUT, w),
                ("wgt_factor_in", C_WGT_IN, w),
            )
        )
    return _pack_layout(
        (
            *common,
            ("src_factor_out", C_SRC_OUT, a),
            ("src_factor_in", C_SRC_IN, a),
            ("alu opcode", C_ALU_OP, 3),
            ("use_imm", C_USE_IMM, 1),
            ("imm", C_IMM, 16),
        )
    )


def _bits(accelerator: Accelerator) -> tuple[int, int, int, int]:
    a = accelerator
    return (a.isa_uop_bits, a.isa_inp_bits, a.isa_wgt_bits, a.isa_acc_bits)


def encode(insns: NDArray[np.int64], accelerator: Accelerator) -> NDArray[np.uint64]:
    """Pack decoded instructions, int64 (n, COLUMNS), into words, uint64 (n, 2) as (w0, w1).

    Raises:
        OneShotError: an opcode without encoding, or a value that its field cannot hold.
    """
    insns = np.asarray(insns, np.int64)
    if insns.ndim != 2 or insns.shape[1] != COLUMNS:
        raise OneShotError(f"instructions have shape {insns.shape}; expected (n, {COLUMNS})")
    words = np.zeros((len(insns), 2), np.uint64)
    known = (insns[:, C_OP] >= LOAD) & (insns[:, C_OP] <= ALU)
    if not known.all():
        row = int(np.flatnonzero(~known)[0])
        raise OneShotError(f"instruction {row}: opcode is {insns[row, C_OP]}; allowed: 0 to {ALU}")
    for opcode in (LOAD, STORE, GEMM, FINISH, ALU):
        rows = np.flatnonzero(insns[:, C_OP] == opcode)
        if not len(rows):
            continue
        for name, column, start, width in layout(opcode, _bits(accelerator)):
            values = insns[rows, column]
            low, high = (-(1 << 15), (1 << 15) - 1) if column == C_IMM and name == "imm" else (0, (1 << width) - 1)
            bad = (values < low) | (values > high)
            if bad.any():
                j = int(np.flatnonzero(bad)[0])
                raise OneShotError(f"instruction {rows[j]}: {name} is {values[j]}; allowed: {low} to {high}")
            field = values.astype(np.uint64) & np.uint64((1 << width) - 1)
            words[rows, start // 64] |= field << np.uint64(start % 64)
    return words


def decode(words: NDArray[np.uint64], accelerator: Accelerator) -> NDArray[np.int64]:
    """Unpack words, uint64 (n, 2) as (w0, w1), into instructions, int64 (n, COLUMNS).

    Opcodes 5 to 7 keep only opcode and flags: the hardware's fetch stops at them (section 4).
    """
    words = np.asarray(words, np.uint64)
    if words.ndim != 2 or words.shape[1] != 2:
        raise OneShotError(f"instruction words have shape {words.shape}; expected (n, 2)")
    insns = np.zeros((len(words), COLUMNS), np.int64)
    opcodes = words[:, 0] & np.uint64(7)
    for opcode in range(8):
        rows = np.flatnonzero(opcodes == opcode)
        if not len(rows):
            continue
        for name, column, start, width in layout(opcode, _bits(accelerator)):
            field = (words[rows, start // 64] >> np.uint64(start % 64)) & np.uint64((1 << width) - 1)
            values = field.astype(np.int64)
            insns[rows, column] = (values ^ (1 << 15)) - (1 << 15) if name == "imm" else values
    return insns


def from_bytes(data: bytes | NDArray[np.uint8]) -> NDArray[np.uint64]:
    """A stream of 16-byte instructions as words, uint64 (n, 2).

    Raises:
        OneShotError: the length is no multiple of 16.
    """
    raw = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else np.ascontiguousarray(data, np.uint8).ravel()
    if len(raw) % 16:
        raise OneShotError(f"instruction stream of {len(raw)} bytes; expected a multiple of 16")
    return raw.view("<u8").reshape(-1, 2).astype(np.uint64)


def to_bytes(words: NDArray[np.uint64]) -> bytes:
    """The DRAM image of instruction words, uint64 (n, 2)."""
    return np.ascontiguousarray(words, "<u8").tobytes()


def uop_layout(accelerator: Accelerator) -> tuple[tuple[str, int, int], ...]:
    """(name, lowest bit, width) of a micro-op's dst, src and wgt index (2.4)."""
    a = accelerator
    source = max(a.isa_acc_bits, a.isa_inp_bits)
    return (
        ("dst", 0, a.isa_acc_bits),
        ("src", a.isa_acc_bits, source),
        ("wgt", a.isa_acc_bits + source, a.isa_wgt_bits),
    )


def encode_uops(uops: NDArray[np.int64], accelerator: Accelerator) -> NDArray[np.uint32]:
    """Pack micro-ops, int64 (m, 3) as (dst, src, wgt), into uint32 (m,).

    Raises:
        OneShotError: an index that its field cannot hold.
    """
    uops = np.asarray(uops, np.int64).reshape(-1, 3)
    words = np.zeros(len(uops), np.uint64)
    for column, (name, start, width) in enumerate(uop_layout(accelerator)):
        values = uops[:, column]
        bad = (values < 0) | (values >> width != 0)
        if bad.any():
            j = int(np.flatnonzero(bad)[0])
            raise OneShotError(f"micro-op {j}: {name} is {values[j]}; allowed: 0 to {(1 << width) - 1}")
        words |= values.astype(np.uint64) << np.uint64(start)
    return words.astype(np.uint32)


def decode_uops(words: NDArray[np.uint32], accelerator: Accelerator) -> NDArray[np.int64]:
    """Unpack micro-ops, uint32 (m,), into int64 (m, 3) as (dst, src, wgt)."""
    values = np.asarray(words, np.uint32).astype(np.int64)
    return np.stack([(values >> start) & ((1 << width) - 1) for _, start, width in uop_layout(accelerator)], axis=1)


def _flags(flags: int) -> str:
    names = (("pop_prev", POP_PREV), ("pop_next", POP_NEXT), ("push_prev", PUSH_PREV), ("push_next", PUSH_NEXT))
    return "".join(f" {name}" for name, bit in names if flags & bit)


def _text(row: list[int]) -> str:
    op = row[C_OP]
    if op in (LOAD, STORE):
        name = f"{'LOAD' if op == LOAD else 'STORE'} {MEMORIES[row[C_MEM]]}"
        if row[C_X] == 0:
            return f"{name} nop"
        text = f"{name} sram {row[C_SRAM]} dram {row[C_DRAM]:#x} y {row[C_Y]} x {row[C_X]} stride {row[C_STRIDE]}"
        pads = (row[C_TOP], row[C_BOTTOM], row[C_LEFT], row[C_RIGHT])
        return text + (f" pad y {pads[0]},{pads[1]} x {pads[2]},{pads[3]}" if any(pads) else "")
    if op == FINISH:
        return "FINISH"
    if op not in (GEMM, ALU):
        return f"OPCODE {op} (undefined)"
    loops = (
        f"uop {row[C_UOP_BGN]}..{row[C_UOP_END]} iter {row[C_ITER_OUT]},{row[C_ITER_IN]}"
        f" dst {row[C_DST_OUT]},{row[C_DST_IN]} src {row[C_SRC_OUT]},{row[C_SRC_IN]}"
    )
    if op == GEMM:
        return f"GEMM{' reset' if row[C_RESET] else ''} {loops} wgt {row[C_WGT_OUT]},{row[C_WGT_IN]}"
    operand = f" imm {row[C_IMM]}" if row[C_USE_IMM] else ""
    return f"ALU {ALU_OPS[row[C_ALU_OP]]}{operand} {loops}"


def disassemble(insns: NDArray[np.int64], uops: NDArray[np.int64] | None = None) -> list[str]:
    """One line per instruction of int64 (n, COLUMNS), then one per micro-op of int64 (m, 3), if given.

    Loop factors are written as "outer,inner", micro-op ranges half open.
    """
    lines = [f"{i:6d}  {_text(row)}{_flags(row[C_FLAGS])}" for i, row in enumerate(np.asarray(insns).tolist())]
    if uops is not None:
        lines += [f"uop {i:6d}  dst {d} src {s} wgt {w}" for i, (d, s, w) in enumerate(np.asarray(uops).tolist())]
    return lines
