"""Functional simulator: what a program leaves in DRAM, bit for bit as the RTL does.

Instructions execute in program order. That is one of the orders that the dependency tokens allow, and
all of them leave the same bytes for a program without races.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.common.kernels import njit
from oneshot_ml2.common.parts import part
from oneshot_ml2.vta import isa, tokens
from oneshot_ml2.vta.program import ADDRESSES, ITERATIONS, AluOp, Insns, Memory, Opcode, element_bytes

if TYPE_CHECKING:
    from oneshot_ml2.vta.accelerator import Accelerator
    from oneshot_ml2.vta.program import Program


class Status(IntEnum):
    """How :func:`execute` ends."""

    OK = 0
    OUT_OF_DRAM = 1
    UNKNOWN = 2
    PAST_DEPTH = 3


OK, OUT_OF_DRAM, UNKNOWN, PAST_DEPTH = Status
# `Parameters.uop_wrap` of a micro-op SRAM whose depth is no power of two.
_UNWRAPPED = -1


class Parameters(NamedTuple):
    """What the results on an accelerator depend on.

    ``uop_mask``: of a count of micro-ops. ``src_shift`` to ``wgt_mask``: where a micro-op's indices are in its 32 bits.
    ``uop_wrap``: what the places of micro-ops wrap by: depth - 1, or `_UNWRAPPED` for a depth that is no power of two.
    """

    batch: int
    block: int
    inp_depth: int
    wgt_depth: int
    acc_depth: int
    uop_depth: int
    uop_mask: int
    src_shift: int
    wgt_shift: int
    dst_mask: int
    src_mask: int
    wgt_mask: int
    uop_wrap: int


def params(accelerator: Accelerator) -> Parameters:
    """The parameters of an accelerator."""
    a = accelerator
    (_, _, dst_bits), (_, src_start, src_bits), (_, wgt_start, wgt_bits) = isa.uop_layout(a)
    return Parameters(
        a.batch,
        a.block,
        a.inp_depth,
        a.wgt_depth,
        a.acc_depth,
        a.uop_depth,
        uop_mask=(2 << a.isa_uop_bits) - 1,
        src_shift=src_start,
        wgt_shift=wgt_start,
        dst_mask=(1 << dst_bits) - 1,
        src_mask=(1 << src_bits) - 1,
        wgt_mask=(1 << wgt_bits) - 1,
        # The data SRAMs' depths are powers of two by the form of VTA's JSON; this one may be any.
        uop_wrap=a.uop_depth - 1 if a.uop_depth & (a.uop_depth - 1) == 0 else _UNWRAPPED,
    )


@part()
def _load(insn, sram, wrap, size, dram):
    """2D copy with zero padding into ``sram``, uint8 (depth * size,); indices wrap by a mask."""
    width = insn.left + insn.x + insn.right
    position = insn.sram
    height = insn.top + insn.y + insn.bottom
    for r in range(height):
        row = r - insn.top
        inside = 0 <= row < insn.y
        for c in range(width):
            target = (position & wrap) * size
            position += 1
            column = c - insn.left
            if inside and 0 <= column < insn.x:
                source = ((insn.dram + row * insn.stride + column) * size) & (ADDRESSES - 1)
                if source + size > len(dram):
                    return OUT_OF_DRAM
                for b in range(size):
                    sram[target + b] = dram[source + b]
            else:
                for b in range(size):
                    sram[target + b] = 0
    return OK


@part()
def _store(insn, sram, wrap, size, dram):
    """2D copy from the OUT SRAM to DRAM."""
    position = insn.sram
    for row in range(insn.y):
        for column in range(insn.x):
            source = (position & wrap) * size
            position += 1
            target = ((insn.dram + row * insn.stride + column) * size) & (ADDRESSES - 1)
            if target + size > len(dram):
                return OUT_OF_DRAM
            for b in range(size):
                dram[target + b] = sram[source + b]
    return OK


@part()
def _multiply(inp, wgt, acc, out, s, w, d):
    """ACC[d] += INP[s] * WGT[w] transposed, its low bytes to OUT[d]."""
    for b in range(acc.shape[1]):
        for n in range(acc.shape[2]):
            # 32-bit products keep the loop in vector registers; the sum cannot overflow.
            total = np.int32(0)
            for m in range(acc.shape[2]):
                total = np.int32(total + np.int32(np.int32(inp[s, b, m]) * np.int32(wgt[w, n, m])))
            value = np.int32(acc[d, b, n] + total)
            acc[d, b, n] = value
            out[d, b, n] = np.int8(value)


@part()
def _gemm(insn, p, uops, inp, wgt, acc, out, count, outer, inner):
    """`_multiply` for every micro-op and iteration, or ACC[dst] = 0 with the reset bit, which leaves OUT alone."""
    reset = insn.reset != 0
    for o in range(outer):
        for i in range(inner):
            dst_base = o * insn.dst_out + i * insn.dst_in
            src_base = o * insn.src_out + i * insn.src_in
            wgt_base = o * insn.wgt_out + i * insn.wgt_in
            for k in range(count):
                uop = np.int64(uops[(insn.uop_bgn + k) & p.uop_wrap])
                d = ((uop & p.dst_mask) + dst_base) & (p.acc_depth - 1)
                if reset:
                    acc[d] = 0
                    continue
                s = (((uop >> p.src_shift) & p.src_mask) + src_base) & (p.inp_depth - 1)
                w = (((uop >> p.wgt_shift) & p.wgt_mask) + wgt_base) & (p.wgt_depth - 1)
                _multiply(inp, wgt, acc, out, s, w, d)


@part()
def _operate(insn, acc, out, s, d):
    """ACC[d] = op(a, b), its low bytes to OUT[d]; an immediate makes a = ACC[s]."""
    op, immediate = insn.alu_op, insn.use_imm != 0
    # The RTL takes the direction of a shift from the immediate field in both modes.
    left = insn.imm < 0
    for b in range(acc.shape[1]):
        for n in range(acc.shape[2]):
            x = np.int64(acc[s, b, n] if immediate else acc[d, b, n])
            y = insn.imm if immediate else np.int64(acc[s, b, n])
            if op == AluOp.MIN:
                x = min(x, y)
            elif op == AluOp.MAX:
                x = max(x, y)
            elif op == AluOp.ADD:
                x = x + y
            elif left:
                x = x << (-y & 31)
            else:
                x = x >> (y & 31)
            value = np.int32(x)
            acc[d, b, n] = value
            out[d, b, n] = np.int8(value)


@part()
def _alu(insn, p, uops, acc, out, count, outer, inner):
    """`_operate` for every micro-op and iteration."""
    for o in range(outer):
        for i in range(inner):
            dst_base = o * insn.dst_out + i * insn.dst_in
            src_base = o * insn.src_out + i * insn.src_in
            for k in range(count):
                uop = np.int64(uops[(insn.uop_bgn + k) & p.uop_wrap])
                d = ((uop & p.dst_mask) + dst_base) & (p.acc_depth - 1)
                s = (((uop >> p.src_shift) & p.src_mask) + src_base) & (p.acc_depth - 1)
                _operate(insn, acc, out, s, d)


@part()
def _past_depth(insn, p, uops):
    """Whether an instruction that reads ``uops`` micro-ops, or loads some, indexes past an SRAM that does not wrap."""
    if p.uop_wrap != _UNWRAPPED:
        return False
    if insn.op == Opcode.LOAD:
        rows = insn.top + insn.y + insn.bottom
        return insn.sram + rows * (insn.left + insn.x + insn.right) > p.uop_depth
    return insn.uop_bgn + uops > p.uop_depth


@part()
def _compute(insn, p, uops, inp, wgt, acc, out):
    """Execute a GEMM or ALU instruction; returns its status."""
    outer = insn.iter_out if insn.iter_out > 0 else ITERATIONS
    inner = insn.iter_in if insn.iter_in > 0 else ITERATIONS
    count = (insn.uop_end - insn.uop_bgn) & p.uop_mask
    if count == 0:
        count = p.uop_mask + 1
    if _past_depth(insn, p, count):
        return PAST_DEPTH
    if insn.op == Opcode.GEMM:
        _gemm(insn, p, uops, inp, wgt, acc, out, count, outer, inner)
    elif insn.alu_op <= AluOp.SHR:
        _alu(insn, p, uops, acc, out, count, outer, inner)
    else:
        return UNKNOWN
    return OK


@njit(cache=True, nogil=True)
def execute(insns, p, dram):
    """Run instructions (n,) up to FINISH over ``dram``, uint8, in place; SRAMs start as zeros.

    Returns (status, instruction): a `Status`, and the instruction that it stopped at.
    """
    inp_size, wgt_size, acc_size = p.batch * p.block, p.block * p.block, 4 * p.batch * p.block
    uop_bytes = np.zeros(p.uop_depth * 4, np.uint8)
    inp_bytes = np.zeros(p.inp_depth * inp_size, np.uint8)
    wgt_bytes = np.zeros(p.wgt_depth * wgt_size, np.uint8)
    acc_bytes = np.zeros(p.acc_depth * acc_size, np.uint8)
    out_bytes = np.zeros(p.acc_depth * inp_size, np.uint8)
    uops = uop_bytes.view(np.uint32)
    inp = inp_bytes.view(np.int8).reshape((p.inp_depth, p.batch, p.block))
    wgt = wgt_bytes.view(np.int8).reshape((p.wgt_depth, p.block, p.block))
    acc = acc_bytes.view(np.int32).reshape((p.acc_depth, p.batch, p.block))
    out = out_bytes.view(np.int8).reshape((p.acc_depth, p.batch, p.block))
    for index in range(len(insns)):
        insn = insns[index]
        op, memory = insn.op, insn.mem
        status = OK
        if op == Opcode.FINISH:
            return OK, index
        if op == Opcode.GEMM or op == Opcode.ALU:
            status = _compute(insn, p, uops, inp, wgt, acc, out)
        elif (op != Opcode.LOAD and op != Opcode.STORE) or (op == Opcode.LOAD and memory > Memory.ACC):
            status = UNKNOWN
        elif insn.x == 0:
            continue
        elif op == Opcode.STORE:
            status = _store(insn, out_bytes, p.acc_depth - 1, inp_size, dram)
        elif memory == Memory.UOP:
            past = _past_depth(insn, p, 0)
            status = PAST_DEPTH if past else _load(insn, uop_bytes, p.uop_wrap, 4, dram)
        elif memory == Memory.WGT:
            status = _load(insn, wgt_bytes, p.wgt_depth - 1, wgt_size, dram)
        elif memory == Memory.INP:
            status = _load(insn, inp_bytes, p.inp_depth - 1, inp_size, dram)
        else:
            status = _load(insn, acc_bytes, p.acc_depth - 1, acc_size, dram)
        if status != OK:
            return status, index
    return OK, len(insns)


def run(program: Program, dram: NDArray[np.uint8]) -> None:
    """Put a program's micro-ops and instructions into ``dram``, uint8 (bytes,), as a driver does, and execute it there.

    Raises:
        OneShotError: the image is too small, an instruction leaves it or the micro-op SRAM or is none that the RTL
            executes, or the program does not leave its token queues empty; that is told before anything runs.
    """
    tokens.check_submission(program.insns)
    if dram.dtype != np.uint8 or dram.ndim != 1 or not dram.flags.c_contiguous:
        raise OneShotError(f"DRAM image is {dram.dtype} {dram.shape}; expected contiguous uint8 (bytes,)")
    accelerator = program.accelerator
    images = (
        (program.uop_address, isa.encode_uops(program.uops, accelerator).astype("<u4").view(np.uint8)),
        (program.insn_address, np.frombuffer(isa.to_bytes(isa.encode(program.insns, accelerator)), np.uint8)),
    )
    for address, image in images:
        if address + len(image) > len(dram):
            raise OneShotError(f"DRAM image has {len(dram)} bytes; the program needs {address + len(image)}")
        dram[address : address + len(image)] = image
    execute_checked(np.ascontiguousarray(program.insns), accelerator, dram)


def execute_checked(insns: Insns, accelerator: Accelerator, dram: NDArray[np.uint8]) -> None:
    """:func:`execute` for instructions whose micro-ops are in ``dram`` already; OneShotError if it stops early.

    Tokens that are left are not looked at: `tokens.check_submission` does that.
    """
    status, index = execute(insns, params(accelerator), dram)
    if status != OK:
        reason = {
            OUT_OF_DRAM: f"leaves the DRAM image of {len(dram)} bytes",
            UNKNOWN: "is unknown to the RTL",
            PAST_DEPTH: f"goes past the {accelerator.uop_depth} micro-ops that the SRAM holds",
        }[status]
        raise OneShotError(f"instruction {index} {reason}: {isa.disassemble(insns[index : index + 1])[0].strip()}")


def traffic(insns: Insns, accelerator: Accelerator) -> dict[str, int]:
    """The counters of the profiler of VTA's functional simulator (`sim_driver.cc`) for instructions (n,).

    ``inp_load_nbytes``, ``wgt_load_nbytes``, ``acc_load_nbytes``, ``uop_load_nbytes``, ``out_store_nbytes``: bytes
    without pads (8-bit ACC loads count as 32-bit ones). ``gemm_counter``: tensor operations of GEMMs without
    reset; ``alu_counter``: those of ALU instructions.
    """
    sizes = element_bytes(accelerator)
    op = insns["op"]
    elements = insns["x"] * insns["y"]

    def loaded(*memories: int) -> int:
        return int(elements[(op == Opcode.LOAD) & np.isin(insns["mem"], memories)].sum()) * sizes[memories[0]]

    operations = insns["iter_out"] * insns["iter_in"] * np.maximum(insns["uop_end"] - insns["uop_bgn"], 0)
    return {
        "inp_load_nbytes": loaded(Memory.INP),
        "wgt_load_nbytes": loaded(Memory.WGT),
        "acc_load_nbytes": loaded(Memory.ACC, Memory.ACC_8BIT),
        "uop_load_nbytes": loaded(Memory.UOP),
        "out_store_nbytes": int(elements[op == Opcode.STORE].sum()) * sizes[Memory.OUT],
        "gemm_counter": int(operations[(op == Opcode.GEMM) & (insns["reset"] == 0)].sum()),
        "alu_counter": int(operations[op == Opcode.ALU].sum()),
    }
