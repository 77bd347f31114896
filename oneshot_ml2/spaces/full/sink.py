"""Where the walk of a program puts instructions and micro-ops: into arrays, or nowhere, where they are only counted.

Both count alike, and stop at the failure that program order meets first. Nothing is written after a failure.
"""

from __future__ import annotations

import numpy as np
from numba import from_dtype, types

from oneshot_ml2.common.parts import part
from oneshot_ml2.spaces.full.knobs import INT
from oneshot_ml2.spaces.full.shapes import field_fits
from oneshot_ml2.vta.nest import MAX_INSNS, MAX_SIZE, PORTABLE_UOPS
from oneshot_ml2.vta.program import INSN, MICRO_OP, Memory, Opcode
from oneshot_ml2.vta.reasons import Reason
from oneshot_ml2.vta.writing import clear

VALID = int(Reason.VALID)
FIELD_OVERFLOW = int(Reason.FIELD_OVERFLOW)
INSTRUCTION_OVERFLOW = int(Reason.INSTRUCTION_OVERFLOW)
UOP_OVERFLOW = int(Reason.UOP_OVERFLOW)

# Rows that are never handed out, so that an index just past the program stays inside the array of instructions.
SPARE = 2
# Slots of the hash table of kernels: more than there are micro-ops, so that it is never full.
_TABLE = 8192

# Micro-ops that are used again: three words that tell them apart, the program that they are of, and the first one.
KERNEL = np.dtype([(name, np.int64) for name in ("first", "second", "third", "stamp", "begin")])
# A program so far: instructions and how many there may be, micro-ops and how many there may be, the first failure, the
# last step whose reads have been waited for, a number that no earlier program in this sink had, whether it is written;
# the hash table of kernels; and what is written. One record, as a pointer costs calls less than several arrays.
SINK = np.dtype(
    [(name, np.int64) for name in ("insns", "most_insns", "uops", "most_uops", "fail", "granted", "stamp", "writes")]
    + [("kernels", KERNEL, (_TABLE,)), ("rows", INSN, (MAX_INSNS,)), ("words", MICRO_OP, (PORTABLE_UOPS,))]
)
ONE_SINK = from_dtype(SINK)  # type: ignore[no-untyped-call]
# A loop of an instruction: extent, and factors of destination, source and weight.
LOOP = types.UniTuple(INT, 4)  # type: ignore[no-untyped-call]
SPAN = types.UniTuple(INT, 3)  # type: ignore[no-untyped-call]
# An index, and whether something is to be done about it.
_FOUND = types.Tuple((INT, types.boolean))  # type: ignore[no-untyped-call]


@part()
def open_sink(nest, sink, writes):  # type: ignore[no-untyped-def]
    """Empty a sink for another program; the memory of a new one, `SINK` (1,), is all zeros."""
    sink.insns = sink.uops = 0
    sink.most_insns = MAX_INSNS - SPARE
    sink.most_uops = nest.uop_limit
    sink.fail = VALID
    sink.granted = -1
    sink.stamp += 1
    sink.writes = writes


@part(types.void(ONE_SINK, INT))
def fail(sink, reason):  # type: ignore[no-untyped-def]
    """Note the failure that program order meets first."""
    if sink.fail == VALID:
        sink.fail = reason


@part(_FOUND(ONE_SINK, INT))
def claim(sink, n):  # type: ignore[no-untyped-def]
    """The first of ``n`` more instructions, and whether they are to be written."""
    first = sink.insns
    if first + n > sink.most_insns:
        fail(sink, INSTRUCTION_OVERFLOW)
    if sink.fail != VALID:
        return first, False
    sink.insns = first + n
    return first, sink.writes != 0


@part(types.void(ONE_SINK, INT, INT))
def flag(sink, insn, bits):  # type: ignore[no-untyped-def]
    """Add dependency flags to an instruction."""
    if sink.writes:
        sink.rows[insn].flags |= bits


@part(types.void(ONE_SINK, INT, INT, SPAN, INT, INT, INT, INT, LOOP))
def move(sink, memory, n, shape, sram, apart, dram, dram_apart, pads):  # type: ignore[no-untyped-def]
    """``n`` LOADs into a memory, or STOREs of OUT, of a ``shape`` (y, x, stride) whose indices lie ``apart`` in SRAM
    and in DRAM.

    ``pads``: top, bottom, left, right.
    """
    y, x, stride = shape
    fitting = n
    if not field_fits(y, x, stride, sram):
        fitting = np.int64(0)
    elif sram + (n - 1) * apart > MAX_SIZE:
        fitting = (MAX_SIZE - sram) // apart + 1
    if fitting < min(n, sink.most_insns - sink.insns):
        fail(sink, FIELD_OVERFLOW)
    first, writes = claim(sink, n)
    if not writes:
        return
    for i in range(n):
        row = sink.rows[first + i]
        clear(row)
        row.op = Opcode.STORE if memory == Memory.OUT else Opcode.LOAD
        row.mem = memory
        row.sram = sram + i * apart
        row.dram = dram + i * dram_apart
        row.y = y
        row.x = x
        row.stride = x if y == 1 else stride
        row.top, row.bottom, row.left, row.right = pads


@part(types.void(ONE_SINK))
def nop(sink):  # type: ignore[no-untyped-def]
    """An instruction of the compute module that moves nothing, for its flags."""
    move(sink, Memory.UOP, 1, (0, 0, 0), 0, 0, 0, 0, (0, 0, 0, 0))


@part(types.void(ONE_SINK, INT, INT, INT, INT, LOOP, LOOP))
def write_gemm(sink, insn, reset, begin, end, outer, inner):  # type: ignore[no-untyped-def]
    """Write a GEMM of the micro-ops ``begin`` to ``end``; loops of one iteration carry no factors."""
    row = sink.rows[insn]
    clear(row)
    row.op = Opcode.GEMM
    row.reset = reset
    row.uop_bgn = begin
    row.uop_end = end
    if outer[0] == 1:
        outer, inner = inner, outer
    row.iter_out = outer[0]
    row.iter_in = inner[0]
    if outer[0] > 1:
        row.dst_out, row.src_out, row.wgt_out = outer[1], outer[2], outer[3]
    if inner[0] > 1:
        row.dst_in, row.src_in, row.wgt_in = inner[1], inner[2], inner[3]


@part(types.void(ONE_SINK, INT, INT, INT, INT, LOOP, LOOP))
def write_tensor(sink, insn, opcode, begin, end, outer, inner):  # type: ignore[no-untyped-def]
    """Write an ALU pass with two operands in ACC; as `write_gemm`, without weights."""
    write_gemm(sink, insn, 0, begin, end, outer, inner)
    row = sink.rows[insn]
    row.op = Opcode.ALU
    # What are the weight's factors of a GEMM are other fields here.
    row.use_imm = row.imm = 0
    row.alu_op = opcode


@part(INT(ONE_SINK, INT, INT, LOOP, LOOP))
def gemm(sink, reset, uop, outer, inner):  # type: ignore[no-untyped-def]
    """A GEMM of one micro-op; returns which instruction it is."""
    insn, writes = claim(sink, 1)
    if writes:
        write_gemm(sink, insn, reset, uop, uop + 1, outer, inner)
    return insn


@part(types.void(ONE_SINK, INT, INT, LOOP, LOOP))
def tensor(sink, opcode, uop, outer, inner):  # type: ignore[no-untyped-def]
    """An ALU pass of one micro-op with two operands in ACC."""
    insn, writes = claim(sink, 1)
    if writes:
        write_tensor(sink, insn, opcode, uop, uop + 1, outer, inner)


@part(types.void(ONE_SINK, INT, INT, INT, INT))
def immediate(sink, opcode, value, uop, n):  # type: ignore[no-untyped-def]
    """An in-place ALU pass over ``n`` consecutive elements."""
    insn, writes = claim(sink, 1)
    if writes:
        row = sink.rows[insn]
        clear(row)
        row.op = Opcode.ALU
        row.alu_op = opcode
        row.use_imm = 1
        row.imm = value
        row.uop_bgn = uop
        row.uop_end = uop + 1
        row.iter_out = 1
        row.iter_in = n
        if n > 1:
            row.dst_in = row.src_in = 1


@part()
def mix(h):  # type: ignore[no-untyped-def]
    h *= np.int64(-7046029254386353131)
    return h ^ (h >> np.int64(31))


@part(_FOUND(ONE_SINK, INT, INT, INT, INT))
def find_kernel(sink, first, second, third, uops):  # type: ignore[no-untyped-def]
    """Where the ``uops`` micro-ops that three words tell apart begin, and whether they are new."""
    kernels = sink.kernels
    if sink.fail != VALID:
        return np.int64(0), False
    slot = mix(mix(mix(first) + second) + third) & (_TABLE - 1)
    while kernels[slot].stamp == sink.stamp:
        kernel = kernels[slot]
        if kernel.first == first and kernel.second == second and kernel.third == third:
            return kernel.begin, False
        slot = (slot + 1) & (_TABLE - 1)
    begin = sink.uops
    if begin + uops > sink.most_uops:
        fail(sink, UOP_OVERFLOW)
        return np.int64(0), False
    sink.uops = begin + uops
    kernel = kernels[slot]
    kernel.first, kernel.second, kernel.third = first, second, third
    kernel.stamp, kernel.begin = sink.stamp, begin
    return begin, True


@part(INT(ONE_SINK, INT, INT, INT))
def single(sink, dst, src, wgt):  # type: ignore[no-untyped-def]
    """Where a micro-op is that is used by itself."""
    begin, fresh = find_kernel(sink, (dst << 32) | src, wgt << 32, -1, 1)
    if fresh and sink.writes:
        row = sink.words[begin]
        row.dst, row.src, row.wgt = dst, src, wgt
    return begin
