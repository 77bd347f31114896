"""Functional simulator: what a program leaves in DRAM, bit for bit as the RTL does (VTA reference, section 3).

Instructions execute in program order. That is one of the orders that the dependency tokens allow, and
all of them leave the same bytes for a program without races.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.common.kernels import njit
from oneshot_ml2.vta import isa, tokens
from oneshot_ml2.vta.program import (
    ACC,
    ACC_8BIT,
    ALU,
    ALU_ADD,
    ALU_MAX,
    ALU_MIN,
    ALU_SHR,
    C_ALU_OP,
    C_BOTTOM,
    C_DRAM,
    C_DST_IN,
    C_DST_OUT,
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
    FINISH,
    GEMM,
    INP,
    LOAD,
    OUT,
    STORE,
    UOP,
    WGT,
    element_bytes,
)

if TYPE_CHECKING:
    from oneshot_ml2.vta.accelerator import Accelerator
    from oneshot_ml2.vta.program import Program

# Entries of `params`.
P_BATCH, P_BLOCK, P_INP_DEPTH, P_WGT_DEPTH, P_ACC_DEPTH, P_UOP_DEPTH, P_UOP_MASK = range(7)
P_SRC_SHIFT, P_WGT_SHIFT, P_DST_MASK, P_SRC_MASK, P_WGT_MASK = range(7, 12)
# What micro-op indices wrap by: depth - 1, or _UNWRAPPED for a depth that is no power of two.
P_UOP_WRAP = 12
PARAMS = 13

OK, OUT_OF_DRAM, UNKNOWN, PAST_DEPTH = range(4)
_UNWRAPPED = -1
_ITERATIONS = 1 << 14
_ADDRESSES = (1 << 32) - 1


def params(accelerator: Accelerator) -> NDArray[np.int64]:
    """What the results on an accelerator depend on, as int64 (PARAMS,) for :func:`execute`."""
    a = accelerator
    p = np.zeros(PARAMS, np.int64)
    p[P_BATCH], p[P_BLOCK] = a.batch, a.block
    p[P_INP_DEPTH], p[P_WGT_DEPTH], p[P_ACC_DEPTH], p[P_UOP_DEPTH] = a.inp_depth, a.wgt_depth, a.acc_depth, a.uop_depth
    p[P_UOP_MASK] = (2 << a.isa_uop_bits) - 1
    # The data SRAMs' depths are powers of two by the form of VTA's JSON; this one may be any.
    p[P_UOP_WRAP] = a.uop_depth - 1 if a.uop_depth & (a.uop_depth - 1) == 0 else _UNWRAPPED
    (_, _, dst_bits), (_, src_start, src_bits), (_, wgt_start, wgt_bits) = isa.uop_layout(a)
    p[P_SRC_SHIFT], p[P_WGT_SHIFT] = src_start, wgt_start
    p[P_DST_MASK], p[P_SRC_MASK], p[P_WGT_MASK] = (1 << dst_bits) - 1, (1 << src_bits) - 1, (1 << wgt_bits) - 1
    return p


@njit(cache=True, nogil=True)
def _load(insn, sram, wrap, size, dram):
    """2D copy with zero padding into ``sram``, uint8 (depth * size,); indices wrap by a mask (3.3)."""
    width = insn[C_LEFT] + insn[C_X] + insn[C_RIGHT]
    position = insn[C_SRAM]
    height = insn[C_TOP] + insn[C_Y] + insn[C_BOTTOM]
    for r in range(height):
        row = r - insn[C_TOP]
        inside = 0 <= row < insn[C_Y]
        for c in range(width):
            target = (position & wrap) * size
            position += 1
            column = c - insn[C_LEFT]
            if inside and 0 <= column < insn[C_X]:
                source = ((insn[C_DRAM] + row * insn[C_STRIDE] + column) * size) & _ADDRESSES
                if source + size > len(dram):
                    return OUT_OF_DRAM
                for b in range(size):
                    sram[target + b] = dram[source + b]
            else:
                for b in range(size):
                    sram[target + b] = 0
    return OK


@njit(cache=True, nogil=True)
def _store(insn, sram, wrap, size, dram):
    """2D copy from the OUT SRAM to DRAM (3.4)."""
    position = insn[C_SRAM]
    for row in range(insn[C_Y]):
        for column in range(insn[C_X]):
            source = (position & wrap) * size
            position += 1
            target = ((insn[C_DRAM] + row * insn[C_STRIDE] + column) * size) & _ADDRESSES
            if target + size > len(dram):
                return OUT_OF_DRAM
            for b in range(size):
                dram[target + b] = sram[source + b]
    return OK


@njit(cache=True, nogil=True)
def _gemm(insn, p, uops, inp, wgt, acc, out, count, outer, inner):
    """ACC[dst] += INP[src] * WGT[wgt] transposed, or = 0 with the reset bit, which leaves OUT alone (3.5)."""
    batch, block = acc.shape[1], acc.shape[2]
    reset = insn[C_RESET] != 0
    for o in range(outer):
        for i in range(inner):
            dst_base = o * insn[C_DST_OUT] + i * insn[C_DST_IN]
            src_base = o * insn[C_SRC_OUT] + i * insn[C_SRC_IN]
            wgt_base = o * insn[C_WGT_OUT] + i * insn[C_WGT_IN]
            for k in range(count):
                uop = np.int64(uops[(insn[C_UOP_BGN] + k) & p[P_UOP_WRAP]])
                d = ((uop & p[P_DST_MASK]) + dst_base) & (p[P_ACC_DEPTH] - 1)
                if reset:
                    acc[d] = 0
                    continue
                s = (((uop >> p[P_SRC_SHIFT]) & p[P_SRC_MASK]) + src_base) & (p[P_INP_DEPTH] - 1)
                w = (((uop >> p[P_WGT_SHIFT]) & p[P_WGT_MASK]) + wgt_base) & (p[P_WGT_DEPTH] - 1)
                for b in range(batch):
                    for n in range(block):
                        # 32-bit products keep the loop in vector registers; the sum cannot overflow.
                        total = np.int32(0)
                        for m in range(block):
                            total = np.int32(total + np.int32(np.int32(inp[s, b, m]) * np.int32(wgt[w, n, m])))
                        value = np.int32(acc[d, b, n] + total)
                        acc[d, b, n] = value
                        out[d, b, n] = np.int8(value)


@njit(cache=True, nogil=True)
def _alu(insn, p, uops, acc, out, count, outer, inner):
    """ACC[dst] = op(a, b), its low byte to OUT[dst] (3.6); an immediate makes a = ACC[src]."""
    batch, block = acc.shape[1], acc.shape[2]
    op = insn[C_ALU_OP]
    immediate = insn[C_USE_IMM] != 0
    # The RTL takes the direction of a shift from the immediate field in both modes.
    left = insn[C_IMM] < 0
    for o in range(outer):
        for i in range(inner):
            dst_base = o * insn[C_DST_OUT] + i * insn[C_DST_IN]
            src_base = o * insn[C_SRC_OUT] + i * insn[C_SRC_IN]
            for k in range(count):
                uop = np.int64(uops[(insn[C_UOP_BGN] + k) & p[P_UOP_WRAP]])
                d = ((uop & p[P_DST_MASK]) + dst_base) & (p[P_ACC_DEPTH] - 1)
                s = (((uop >> p[P_SRC_SHIFT]) & p[P_SRC_MASK]) + src_base) & (p[P_ACC_DEPTH] - 1)
                for b in range(batch):
                    for n in range(block):
                        x = np.int64(acc[s, b, n] if immediate else acc[d, b, n])
                        y = insn[C_IMM] if immediate else np.int64(acc[s, b, n])
                        if op == ALU_MIN:
                            x = min(x, y)
                        elif op == ALU_MAX:
                            x = max(x, y)
                        elif op == ALU_ADD:
                            x = x + y
                        elif left:
                            x = x << (-y & 31)
                        else:
                            x = x >> (y & 31)
                        value = np.int32(x)
                        acc[d, b, n] = value
                        out[d, b, n] = np.int8(value)


@njit(cache=True, nogil=True)
def _past_depth(insn, p, uops):
    """Whether an instruction that reads ``uops`` micro-ops, or loads some, indexes past an SRAM that does not wrap."""
    if p[P_UOP_WRAP] != _UNWRAPPED:
        return False
    if insn[C_OP] == LOAD:
        rows = insn[C_TOP] + insn[C_Y] + insn[C_BOTTOM]
        return insn[C_SRAM] + rows * (insn[C_LEFT] + insn[C_X] + insn[C_RIGHT]) > p[P_UOP_DEPTH]
    return insn[C_UOP_BGN] + uops > p[P_UOP_DEPTH]


@njit(cache=True, nogil=True)
def execute(insns, p, dram):
    """Run decoded instructions up to FINISH over ``dram``, uint8, in place; SRAMs start as zeros.

    Returns (status, instruction): OK, OUT_OF_DRAM, UNKNOWN or PAST_DEPTH, and the instruction that it stopped at.
    """
    batch, block = p[P_BATCH], p[P_BLOCK]
    inp_size, wgt_size, acc_size = batch * block, block * block, 4 * batch * block
    uop_bytes = np.zeros(p[P_UOP_DEPTH] * 4, np.uint8)
    inp_bytes = np.zeros(p[P_INP_DEPTH] * inp_size, np.uint8)
    wgt_bytes = np.zeros(p[P_WGT_DEPTH] * wgt_size, np.uint8)
    acc_bytes = np.zeros(p[P_ACC_DEPTH] * acc_size, np.uint8)
    out_bytes = np.zeros(p[P_ACC_DEPTH] * inp_size, np.uint8)
    uops = uop_bytes.view(np.uint32)
    inp = inp_bytes.view(np.int8).reshape((p[P_INP_DEPTH], batch, block))
    wgt = wgt_bytes.view(np.int8).reshape((p[P_WGT_DEPTH], block, block))
    acc = acc_bytes.view(np.int32).reshape((p[P_ACC_DEPTH], batch, block))
    out = out_bytes.view(np.int8).reshape((p[P_ACC_DEPTH], batch, block))
    for index in range(insns.shape[0]):
        insn = insns[index]
        op = insn[C_OP]
        status = OK
        if op == FINISH:
            return OK, index
        if op in (GEMM, ALU):
            outer = insn[C_ITER_OUT] if insn[C_ITER_OUT] > 0 else _ITERATIONS
            inner = insn[C_ITER_IN] if insn[C_ITER_IN] > 0 else _ITERATIONS
            count = (insn[C_UOP_END] - insn[C_UOP_BGN]) & p[P_UOP_MASK]
            if count == 0:
                count = p[P_UOP_MASK] + 1
            if _past_depth(insn, p, count):
                status = PAST_DEPTH
            elif op == GEMM:
                _gemm(insn, p, uops, inp, wgt, acc, out, count, outer, inner)
            elif insn[C_ALU_OP] <= ALU_SHR:
                _alu(insn, p, uops, acc, out, count, outer, inner)
            else:
                status = UNKNOWN
        elif op == LOAD:
            memory = insn[C_MEM]
            if memory > ACC:
                status = UNKNOWN
            elif insn[C_X] > 0:
                if memory == UOP and _past_depth(insn, p, 0):
                    status = PAST_DEPTH
                elif memory == UOP:
                    status = _load(insn, uop_bytes, p[P_UOP_WRAP], 4, dram)
                elif memory == WGT:
                    status = _load(insn, wgt_bytes, p[P_WGT_DEPTH] - 1, wgt_size, dram)
                elif memory == INP:
                    status = _load(insn, inp_bytes, p[P_INP_DEPTH] - 1, inp_size, dram)
                else:
                    status = _load(insn, acc_bytes, p[P_ACC_DEPTH] - 1, acc_size, dram)
        elif op == STORE:
            if insn[C_X] > 0:
                status = _store(insn, out_bytes, p[P_ACC_DEPTH] - 1, inp_size, dram)
        else:
            status = UNKNOWN
        if status != OK:
            return status, index
    return OK, insns.shape[0]


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
    execute_checked(np.ascontiguousarray(program.insns, np.int64), accelerator, dram)


def execute_checked(insns: NDArray[np.int64], accelerator: Accelerator, dram: NDArray[np.uint8]) -> None:
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


def traffic(insns: NDArray[np.int64], accelerator: Accelerator) -> dict[str, int]:
    """Counters of fsim's profiler for decoded instructions, int64 (n, COLUMNS) (VTA reference, 6.7).

    ``inp_load_nbytes``, ``wgt_load_nbytes``, ``acc_load_nbytes``, ``uop_load_nbytes``, ``out_store_nbytes``: bytes
    without pads (8-bit ACC loads count as 32-bit ones). ``gemm_counter``: tensor operations of GEMMs without
    reset; ``alu_counter``: those of ALU instructions.
    """
    sizes = element_bytes(accelerator)
    op = insns[:, C_OP]
    elements = insns[:, C_X] * insns[:, C_Y]

    def loaded(*memories: int) -> int:
        return int(elements[(op == LOAD) & np.isin(insns[:, C_MEM], memories)].sum()) * sizes[memories[0]]

    operations = insns[:, C_ITER_OUT] * insns[:, C_ITER_IN] * np.maximum(insns[:, C_UOP_END] - insns[:, C_UOP_BGN], 0)
    return {
        "inp_load_nbytes": loaded(INP),
        "wgt_load_nbytes": loaded(WGT),
        "acc_load_nbytes": loaded(ACC, ACC_8BIT),
        "uop_load_nbytes": loaded(UOP),
        "out_store_nbytes": int(elements[op == STORE].sum()) * sizes[OUT],
        "gemm_counter": int(operations[(op == GEMM) & (insns[:, C_RESET] == 0)].sum()),
        "alu_counter": int(operations[op == ALU].sum()),
    }
