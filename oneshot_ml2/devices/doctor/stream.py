"""Small programs, written by hand: instructions that wait for one another, buffers and what is in them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.vta import simulator, tokens
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.link import aligned, alignment
from oneshot_ml2.vta.program import (
    COLUMNS,
    INSN,
    MICRO_OP,
    AluOp,
    Buffer,
    Flag,
    Insns,
    Memory,
    Opcode,
    Program,
    element_bytes,
    insns_of,
    words_of,
)
from oneshot_ml2.vta.tokens import COMPUTES, LOADS, STORES

Pads = tuple[int, int, int, int]
NO_PADS: Pads = (0, 0, 0, 0)
# A loop of a GEMM: extent, and factors of accumulators, inputs and weights; of the ALU: destination, source, 0.
Loop = tuple[int, int, int, int]
ONCE: Loop = (1, 0, 0, 0)
# A module's instruction that moves tokens alone.
NOPS: dict[int, dict[str, int]] = {
    LOADS: {"op": Opcode.LOAD, "mem": Memory.INP},
    COMPUTES: {"op": Opcode.LOAD, "mem": Memory.UOP},
    STORES: {"op": Opcode.STORE, "mem": Memory.OUT},
}
# What outputs are filled with before a run, so that one that is not written shows.
UNWRITTEN = 0x5A


class TooSmall(OneShotError):
    """An SRAM that holds less than a probe needs."""


class Stream:
    """A program in the making: every instruction waits for the one before it, unless it is given its ``flags``.

    The micro-ops are loaded by the first instruction, so that a run begins with one of compute's.
    """

    def __init__(self, chip: Accelerator, seed: int = 0, uops_first: bool = True) -> None:
        """``uops_first``: else `load_uops` has to be called before the first GEMM or ALU operation."""
        self.chip = chip
        self.rng = np.random.default_rng([seed, 20])
        self._rows: list[dict[str, int]] = []
        self._uops: list[tuple[int, int, int]] = []
        self._buffers: list[Buffer] = []
        self._contents: list[tuple[int, NDArray[np.uint8]]] = []
        self._outputs: list[Buffer] = []
        self._address = alignment(chip)
        self._module: int | None = None
        self._uop_rows: list[int] = []
        if uops_first:
            self.load_uops()

    # Memory ----------------------------------------------------------------------------------
    def buffer(self, memory: Memory, elements: int, content: NDArray[np.generic] | None = None) -> Buffer:
        """A buffer of DRAM elements; without ``content`` of random bytes."""
        size = element_bytes(self.chip)[memory] * elements
        made = Buffer(f"{len(self._buffers)}", memory, self._address, elements)
        # A page between two buffers, so that a wrong size shows in neither.
        self._address = aligned(self._address + size, alignment(self.chip)) + alignment(self.chip)
        raw = self.rng.integers(0, 256, size, dtype=np.uint8) if content is None else _bytes(content)
        if raw.size != size:
            raise ValueError(f"content of {raw.size} bytes for a buffer of {size}")
        self._buffers.append(made)
        self._contents.append((made.address, raw))
        return made

    def output(self, elements: int, looked_at: bool = True) -> Buffer:
        """A buffer for results; whether they are held against the reference."""
        size = self.chip.inp_bytes * elements
        made = self.buffer(Memory.OUT, elements, np.full(size, UNWRITTEN, np.uint8))
        if looked_at:
            self._outputs.append(made)
        return made

    def accumulators(self, values: NDArray[np.int32]) -> Buffer:
        """A buffer of accumulators, of int32 (n, BATCH, BLOCK)."""
        return self.buffer(Memory.ACC, len(values), values)

    def zeros(self, elements: int) -> Buffer:
        """A buffer of accumulators that are 0."""
        return self.accumulators(np.zeros((elements, self.chip.batch, self.chip.block), np.int32))

    def identity(self) -> Buffer:
        """A buffer of one weight tile that leaves inputs as they are."""
        return self.buffer(Memory.WGT, 1, np.eye(self.chip.block, dtype=np.int8))

    # Instructions ----------------------------------------------------------------------------
    def insn(self, module: int, flags: int | None = None, **fields: int) -> None:
        """One more instruction of a module; see the class for ``flags``."""
        if flags is None:
            flags = self._wait(module)
        self._rows.append({**fields, "flags": flags})
        self._module = module

    def _wait(self, module: int) -> int:
        """Have the last instruction push what this one pops; the flags of that."""
        if self._module is None or module == self._module:
            return 0
        if COMPUTES not in (module, self._module):
            self.nop(COMPUTES)
        push, pop = handed_over(self._module, module)
        self._rows[-1]["flags"] |= push
        return pop

    def nop(self, module: int, flags: int | None = None) -> None:
        """An instruction that moves nothing."""
        self.insn(module, flags, **NOPS[module])

    def load_uops(self, sram: int = 0, first: int = 0, count: int = 0) -> None:
        """LOAD UOP of ``count`` of the program's micro-ops from the ``first`` on; 0: all that there will be."""
        if count == 0:
            self._uop_rows.append(len(self._rows))
        self.insn(COMPUTES, op=Opcode.LOAD, mem=Memory.UOP, sram=sram, dram=first, y=1, x=count, stride=count)

    def load(
        self,
        source: Buffer,
        sram: int = 0,
        y: int = 1,
        x: int | None = None,
        stride: int | None = None,
        pads: Pads = NO_PADS,
    ) -> None:
        """LOAD of a buffer; without ``x`` all of it is a row, and without ``stride`` rows follow one another."""
        module = LOADS if source.memory in (Memory.INP, Memory.WGT) else COMPUTES
        top, bottom, left, right = pads
        x = source.elements if x is None else x
        self.insn(
            module, op=Opcode.LOAD, mem=source.memory, sram=sram, dram=self.place(source), y=y, x=x,
            stride=x if stride is None else stride, top=top, bottom=bottom, left=left, right=right,
        )  # fmt: skip

    def store(self, target: Buffer, sram: int = 0, y: int = 1, x: int | None = None, stride: int | None = None) -> None:
        """STORE to a buffer; sizes as `load`."""
        x = target.elements if x is None else x
        self.insn(
            STORES, op=Opcode.STORE, mem=Memory.OUT, sram=sram, dram=self.place(target), y=y, x=x,
            stride=x if stride is None else stride,
        )  # fmt: skip

    def uops(self, indices: Sequence[tuple[int, int, int]]) -> tuple[int, int]:
        """More micro-ops (accumulator, input, weight): the first of them, and the one after the last."""
        begin = len(self._uops)
        self._uops += indices
        if len(self._uops) > self.chip.uop_depth:
            raise TooSmall(f"the SRAM holds {self.chip.uop_depth} micro-ops")
        return begin, len(self._uops)

    def gemm(self, span: tuple[int, int], outer: Loop = ONCE, inner: Loop = ONCE, reset: bool = False) -> None:
        """GEMM of the micro-ops of a span."""
        self.insn(COMPUTES, op=Opcode.GEMM, reset=int(reset), **_loops(span, outer, inner), wgt_out=outer[3],
                  wgt_in=inner[3])  # fmt: skip

    def alu(
        self, op: AluOp, span: tuple[int, int], imm: int | None = None, outer: Loop = ONCE, inner: Loop = ONCE
    ) -> None:
        """An ALU operation over the micro-ops of a span, with an immediate or with two accumulators."""
        self.insn(
            COMPUTES, op=Opcode.ALU, **_loops(span, outer, inner), alu_op=op, use_imm=int(imm is not None), imm=imm or 0
        )

    def place(self, buffer: Buffer) -> int:
        """Where a buffer begins, in its elements."""
        return buffer.address // element_bytes(self.chip)[buffer.memory]

    # What comes of it --------------------------------------------------------------------------
    def program(self) -> Program:
        """The program: compute waits for whatever ran last, and FINISH."""
        kept, rows = (self._rows, self._module), [dict(row) for row in self._rows]
        if self._module != COMPUTES:
            self._rows = rows
            self.nop(COMPUTES)
            self._rows, self._module = kept
        insns: Insns = np.zeros(len(rows) + 1, INSN)
        uops = np.array(self._uops or [(0, 0, 0)], dtype=MICRO_OP)
        insn_address = aligned(self._address + 4 * len(uops), alignment(self.chip))
        for number, row in enumerate(rows):
            is_uops = row["op"] == Opcode.LOAD and row["mem"] == Memory.UOP and row.get("y", 0)
            for name, value in row.items():
                insns[name][number] = value
            if is_uops:
                count = len(uops) if number in self._uop_rows else row["x"]
                insns["x"][number] = insns["stride"][number] = count
                insns["dram"][number] += self._address // 4
        insns["op"][-1] = Opcode.FINISH
        return Program(self.chip, insns, uops, insn_address, self._address, tuple(self._buffers))

    def image(self, program: Program) -> NDArray[np.uint8]:
        """The DRAM image before a run, uint8 (bytes,)."""
        dram = np.zeros(program.dram_bytes, np.uint8)
        for address, content in self._contents:
            dram[address : address + content.size] = content
        return dram

    def reads(self) -> list[tuple[int, int]]:
        """Addresses and bytes of what is held against the reference."""
        return [(one.address, self.chip.inp_bytes * one.elements) for one in self._outputs]

    def expected(self, program: Program) -> list[NDArray[np.uint8]]:
        """What the functional simulator leaves there."""
        dram = self.image(program)
        simulator.run(program, dram)
        return [dram[address : address + size] for address, size in self.reads()]


def handed_over(before: int, after: int) -> tuple[int, int]:
    """The flags with which an instruction of a module waits for one of its neighbour: that one's, and its own."""
    if before < after:
        return Flag.PUSH_NEXT, Flag.POP_PREV
    return Flag.PUSH_PREV, Flag.POP_NEXT


def in_order(insns: Insns) -> Insns:
    """What instructions (n,) do, one after the other: each waits for the one before it, and those that do nothing go.

    Ends with FINISH.
    """
    rows: list[NDArray[np.int64]] = []
    before = None

    def add(words: NDArray[np.int64], module: int) -> None:
        nonlocal before
        if before is not None and module != before:
            if COMPUTES not in (module, before):
                add(_nop_words(COMPUTES), COMPUTES)
            push, pop = handed_over(before, module)
            rows[-1][1] |= push
            words[1] = pop
        rows.append(words)
        before = module

    for words, module in zip(words_of(insns[~idle(insns)]), tokens.modules(insns[~idle(insns)]).tolist()):
        bare = words.copy()
        bare[1] = 0
        add(bare, module)
    if before not in (None, COMPUTES):
        add(_nop_words(COMPUTES), COMPUTES)
    finish = np.zeros(COLUMNS, np.int64)
    finish[0] = Opcode.FINISH
    return insns_of(np.stack([*rows, finish]))


def idle(insns: Insns) -> NDArray[np.bool_]:
    """Which of instructions (n,) move tokens alone, or end the program."""
    moves = (insns["op"] == Opcode.LOAD) | (insns["op"] == Opcode.STORE)
    return (insns["op"] == Opcode.FINISH) | (moves & (insns["x"] == 0))


def _nop_words(module: int) -> NDArray[np.int64]:
    made: Insns = np.zeros(1, INSN)
    for name, value in NOPS[module].items():
        made[name] = value
    return words_of(made)[0].copy()


def _bytes(content: NDArray[np.generic]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(content).view(np.uint8).reshape(-1)


def _loops(span: tuple[int, int], outer: Loop, inner: Loop) -> dict[str, int]:
    return {
        "uop_bgn": span[0], "uop_end": span[1], "iter_out": outer[0], "iter_in": inner[0], "dst_out": outer[1],
        "dst_in": inner[1], "src_out": outer[2], "src_in": inner[2],
    }  # fmt: skip
