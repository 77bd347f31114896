"""Packing and unpacking of VTA's 128-bit instructions and 32-bit micro-ops (docs/hardware.md, Instructions)."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.vta.program import COLUMNS, INSN, MICRO_OP, Flag, Insns, Opcode, Uops, insns_of

if TYPE_CHECKING:
    from oneshot_ml2.vta.accelerator import Accelerator

# Fields in their order: (name in messages, name in `INSN`, width).
Unplaced = tuple[tuple[str, str, int], ...]
# One field: (name in messages, name in `INSN`, lowest bit of the 128, width).
Field = tuple[str, str, int, int]

MEMORIES = ("UOP", "WGT", "INP", "ACC", "OUT", "ACC_8BIT", "MEM6", "MEM7")
ALU_OPS = ("MIN", "MAX", "ADD", "SHR", "MUL", "ALU5", "ALU6", "ALU7")
_HEAD: Unplaced = (("opcode", "op", 3), ("flags", "flags", 4))
_MEMORY: Unplaced = (
    *_HEAD,
    ("memory id", "mem", 3),
    ("sram_base", "sram", 16),
    ("dram_base", "dram", 32),
    ("y_size", "y", 16),
    ("x_size", "x", 16),
    ("x_stride", "stride", 16),
    ("y_pad_0", "top", 4),
    ("y_pad_1", "bottom", 4),
    ("x_pad_0", "left", 4),
    ("x_pad_1", "right", 4),
)


def _pack_layout(fields: Unplaced) -> tuple[Field, ...]:
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
    if opcode in (Opcode.LOAD, Opcode.STORE):
        return _pack_layout(_MEMORY)
    if opcode not in (Opcode.GEMM, Opcode.ALU):
        return _pack_layout(_HEAD)
    common = (
        *_HEAD,
        ("reset", "reset", 1),
        ("uop_bgn", "uop_bgn", u),
        ("uop_end", "uop_end", u + 1),
        ("iter_out", "iter_out", 14),
        ("iter_in", "iter_in", 14),
        ("dst_factor_out", "dst_out", a),
        ("dst_factor_in", "dst_in", a),
    )
    if opcode == Opcode.GEMM:
        return _pack_layout(
            (
                *common,
                ("src_factor_out", "src_out", i),
                ("src_factor_in", "src_in", i),
                ("wgt_factor_out", "wgt_out", w),
                ("wgt_factor_in", "wgt_in", w),
            )
        )
    return _pack_layout(
        (
            *common,
            ("src_factor_out", "src_out", a),
            ("src_factor_in", "src_in", a),
            ("alu opcode", "alu_op", 3),
            ("use_imm", "use_imm", 1),
            ("imm", "imm", 16),
        )
    )


def _bits(accelerator: Accelerator) -> tuple[int, int, int, int]:
    a = accelerator
    return (a.isa_uop_bits, a.isa_inp_bits, a.isa_wgt_bits, a.isa_acc_bits)


def encode(insns: Insns, accelerator: Accelerator) -> NDArray[np.uint64]:
    """Pack decoded instructions (n,) into words, uint64 (n, 2) as (w0, w1).

    Raises:
        OneShotError: an opcode without encoding, or a value that its field cannot hold.
    """
    if insns.dtype != INSN or insns.ndim != 1:
        raise OneShotError(f"instructions have shape {insns.shape}; expected (n,) of `program.INSN`")
    words = np.zeros((len(insns), 2), np.uint64)
    known = (insns["op"] >= Opcode.LOAD) & (insns["op"] <= Opcode.ALU)
    if not known.all():
        row = int(np.flatnonzero(~known)[0])
        raise OneShotError(f"instruction {row}: opcode is {insns['op'][row]}; allowed: 0 to {int(Opcode.ALU)}")
    for opcode in (Opcode.LOAD, Opcode.STORE, Opcode.GEMM, Opcode.FINISH, Opcode.ALU):
        rows = np.flatnonzero(insns["op"] == opcode)
        if not len(rows):
            continue
        for name, field, start, width in layout(opcode, _bits(accelerator)):
            values = insns[field][rows]
            low, high = (-(1 << 15), (1 << 15) - 1) if field == "imm" else (0, (1 << width) - 1)
            bad = (values < low) | (values > high)
            if bad.any():
                j = int(np.flatnonzero(bad)[0])
                raise OneShotError(f"instruction {rows[j]}: {name} is {values[j]}; allowed: {low} to {high}")
            bits = values.astype(np.uint64) & np.uint64((1 << width) - 1)
            words[rows, start // 64] |= bits << np.uint64(start % 64)
    return words


def decode(words: NDArray[np.uint64], accelerator: Accelerator) -> Insns:
    """Unpack words, uint64 (n, 2) as (w0, w1), into instructions (n,).

    Opcodes 5 to 7 keep only opcode and flags: the hardware's fetch stops at them.
    """
    words = np.asarray(words, np.uint64)
    if words.ndim != 2 or words.shape[1] != 2:
        raise OneShotError(f"instruction words have shape {words.shape}; expected (n, 2)")
    insns = insns_of(np.zeros((len(words), COLUMNS), np.int64))
    opcodes = words[:, 0] & np.uint64(7)
    for opcode in range(8):
        rows = np.flatnonzero(opcodes == opcode)
        if not len(rows):
            continue
        for _, field, start, width in layout(opcode, _bits(accelerator)):
            bits = (words[rows, start // 64] >> np.uint64(start % 64)) & np.uint64((1 << width) - 1)
            values = bits.astype(np.int64)
            insns[field][rows] = (values ^ (1 << 15)) - (1 << 15) if field == "imm" else values
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


def encode_uops(uops: Uops, accelerator: Accelerator) -> NDArray[np.uint32]:
    """Pack micro-ops (m,) into uint32 (m,).

    Raises:
        OneShotError: an index that its field cannot hold.
    """
    words = np.zeros(len(uops), np.uint64)
    for name, start, width in uop_layout(accelerator):
        values = uops[name]
        bad = (values < 0) | (values >> width != 0)
        if bad.any():
            j = int(np.flatnonzero(bad)[0])
            raise OneShotError(f"micro-op {j}: {name} is {values[j]}; allowed: 0 to {(1 << width) - 1}")
        words |= values.astype(np.uint64) << np.uint64(start)
    return words.astype(np.uint32)


def decode_uops(words: NDArray[np.uint32], accelerator: Accelerator) -> Uops:
    """Unpack micro-ops, uint32 (m,), into records (m,)."""
    values = np.asarray(words, np.uint32).astype(np.int64)
    uops = np.empty(len(values), MICRO_OP)
    for name, start, width in uop_layout(accelerator):
        uops[name] = (values >> start) & ((1 << width) - 1)
    return uops


def _flags(flags: int) -> str:
    names = (
        ("pop_prev", Flag.POP_PREV),
        ("pop_next", Flag.POP_NEXT),
        ("push_prev", Flag.PUSH_PREV),
        ("push_next", Flag.PUSH_NEXT),
    )
    return "".join(f" {name}" for name, bit in names if flags & bit)


def _text(insn: np.void) -> str:
    op = insn["op"]
    if op in (Opcode.LOAD, Opcode.STORE):
        name = f"{'LOAD' if op == Opcode.LOAD else 'STORE'} {MEMORIES[insn['mem']]}"
        if insn["x"] == 0:
            return f"{name} nop"
        text = f"{name} sram {insn['sram']} dram {insn['dram']:#x} y {insn['y']} x {insn['x']} stride {insn['stride']}"
        pads = (insn["top"], insn["bottom"], insn["left"], insn["right"])
        return text + (f" pad y {pads[0]},{pads[1]} x {pads[2]},{pads[3]}" if any(pads) else "")
    if op == Opcode.FINISH:
        return "FINISH"
    if op not in (Opcode.GEMM, Opcode.ALU):
        return f"OPCODE {op} (undefined)"
    loops = (
        f"uop {insn['uop_bgn']}..{insn['uop_end']} iter {insn['iter_out']},{insn['iter_in']}"
        f" dst {insn['dst_out']},{insn['dst_in']} src {insn['src_out']},{insn['src_in']}"
    )
    if op == Opcode.GEMM:
        return f"GEMM{' reset' if insn['reset'] else ''} {loops} wgt {insn['wgt_out']},{insn['wgt_in']}"
    operand = f" imm {insn['imm']}" if insn["use_imm"] else ""
    return f"ALU {ALU_OPS[insn['alu_op']]}{operand} {loops}"


def disassemble(insns: Insns, uops: Uops | None = None) -> list[str]:
    """One line per instruction (n,), then one per micro-op (m,), if given.

    Loop factors are written as "outer,inner", micro-op ranges half open.
    """
    lines = [f"{i:6d}  {_text(insn)}{_flags(insn['flags'])}" for i, insn in enumerate(insns)]
    if uops is not None:
        lines += [f"uop {i:6d}  dst {d} src {s} wgt {w}" for i, (d, s, w) in enumerate(uops.tolist())]
    return lines
