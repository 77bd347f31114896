"""What compiled code that writes arrays and instructions shares."""

from __future__ import annotations

from oneshot_ml2.common.parts import part


@part()
def fill(array, value):  # type: ignore[no-untyped-def]
    """Set all elements of an array (n,); numba compiles more for a slice that is assigned to."""
    for i in range(len(array)):
        array[i] = value


@part()
def clear(insn):  # type: ignore[no-untyped-def]
    """Set all words of an instruction, an `INSN` record, to 0."""
    insn.op = insn.flags = insn.mem = insn.sram = insn.dram = insn.y = insn.x = insn.stride = 0
    insn.top = insn.bottom = insn.left = insn.right = 0
    # The last two words, which only these opcodes have.
    insn.use_imm = insn.imm = 0
