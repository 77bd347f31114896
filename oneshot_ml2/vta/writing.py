"""What compiled code that writes instructions shares."""

from __future__ import annotations

from oneshot_ml2.common.kernels import njit


@njit(cache=True, nogil=True)
def clear(insn):  # type: ignore[no-untyped-def]
    """Set all words of an instruction, an `INSN` record, to 0."""
    insn.op = insn.flags = insn.mem = insn.sram = insn.dram = insn.y = insn.x = insn.stride = 0
    insn.top = insn.bottom = insn.left = insn.right = 0
    # The last two words, which only these opcodes have.
    insn.use_imm = insn.imm = 0
