"""Runs small programs on a board, and says what is wrong with what they leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import DeviceError
from oneshot_ml2.devices.doctor.stream import UNWRITTEN, Stream
from oneshot_ml2.devices.raw import HANG, TIMED_OUT, Fault, Ran, RawBoard, Write
from oneshot_ml2.vta import isa, regions, simulator
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.program import Program


@dataclass(frozen=True)
class Placed:
    """A program in a board's memory: the ranges of its image there, and where its instructions are."""

    program: Program
    parts: list[regions.Region]
    groups: list[regions.Region]
    address: int
    words: NDArray[np.uint8]


class Bench:
    """A board under examination.

    Attributes:
        board: what runs programs.
        chip: the accelerator that it is, as far as that is known.
        hung: what is known of it if it hangs, and does not come back; "" if it does not.
        largest: bytes of a piece of its memory at most; 0: no limit is known.
    """

    def __init__(self, board: RawBoard, chip: Accelerator) -> None:
        self.board, self.chip = board, chip
        self.hung = ""
        self.largest = 0

    @property
    def flush(self) -> bool:
        """Whether caches are flushed around runs."""
        return self.board.options.flush

    def set_flush(self, flush: bool) -> None:
        """Flush caches, or do not, from now on; the board begins anew."""
        if flush != self.board.options.flush:
            self.board.close()
            self.board.options = replace(self.board.options, flush=flush)

    def place(self, program: Program) -> Placed:
        """Get memory for a program, in place of what there was.

        Raises:
            Fault: the board fails.
            DeviceError: it has not so much.
        """
        parts = regions.regions([program])
        groups = regions.grouped(parts, self.largest or None)
        addresses = self.board.allocate([group.size for group in groups])
        if addresses is None:
            raise DeviceError(f"no memory for {sum(group.size for group in groups):,} bytes; give the board more")
        words = isa.to_bytes(regions.relocated(program, parts, groups, addresses))
        group, offset = regions.place_of(groups, program.insn_address, len(words))
        return Placed(program, parts, groups, addresses[group] + offset, np.frombuffer(words, np.uint8))

    def run(self, placed: Placed, dram: NDArray[np.uint8], reads: Sequence[tuple[int, int]], repeats: int = 1) -> Ran:
        """Bring an image and the program to where it is placed, run it, and read; see `RawBoard.run`.

        Raises:
            Fault: the board fails.
        """
        program, groups = placed.program, placed.groups
        uops = isa.encode_uops(program.uops, program.accelerator).astype("<u4").view(np.uint8)
        contents = [(part.begin, dram[part.begin : min(part.end, len(dram))]) for part in placed.parts]
        contents += [(program.uop_address, uops), (program.insn_address, placed.words)]
        writes: list[Write] = [
            (*regions.place_of(groups, address, content.size), content) for address, content in contents
        ]
        asked = [(*regions.place_of(groups, address, size), size) for address, size in reads]
        return self.board.run(placed.address, len(program.insns), writes, asked, repeats)

    def check(self, stream: Stream) -> str:
        """Run a program once: "" if all that it leaves is right, else what was seen."""
        program = stream.program()
        return self.compare(program, stream.image(program), stream.reads())

    def compare(self, program: Program, dram: NDArray[np.uint8], reads: Sequence[tuple[int, int]]) -> str:
        """As `check`, of a program on a DRAM image, and what it leaves at ``reads`` (addresses and bytes)."""
        expected = dram.copy()
        simulator.run(program, expected)
        try:
            ran = self.run(self.place(program), dram, reads)
        except Fault as fault:
            self._look(fault)
            return str(fault)
        return difference(ran.contents, [expected[address : address + size] for address, size in reads])

    def _look(self, fault: Fault) -> None:
        """After a fault: whether the board still runs something."""
        if fault.kind in (HANG, TIMED_OUT) and not self.answers():
            self.hung = f"{fault}; it does not come back: load its bitstream again"

    def answers(self) -> bool:
        """Whether it runs a program that does nothing."""
        program = Stream(self.chip).program()
        try:
            placed = self.place(program)
            self.run(placed, np.zeros(program.dram_bytes, np.uint8), ())
        except Fault:
            return False
        return True

    def repeated(self, streams: Sequence[Stream]) -> str:
        """Run programs of one form, one after the other in the same memory; as `check` of the first that is wrong."""
        placed = None
        for stream in streams:
            program = stream.program()
            try:
                placed = placed or self.place(program)
                ran = self.run(placed, stream.image(program), stream.reads())
            except Fault as fault:
                self._look(fault)
                return str(fault)
            seen = difference(ran.contents, stream.expected(program))
            if seen:
                return seen
        return ""

    def seconds(self, stream: Stream, repeats: int) -> tuple[float, int]:
        """The medians of wall seconds and of counted cycles (0: nothing counts them) of runs after one that warms up.

        Raises:
            Fault: the board fails.
        """
        program = stream.program()
        placed, dram = self.place(program), stream.image(program)
        self.run(placed, dram, ())
        ran = self.run(placed, dram, (), repeats)
        return ran.seconds, ran.cycles


def difference(found: Sequence[NDArray[np.uint8]], expected: Sequence[NDArray[np.uint8]]) -> str:
    """What is wrong with results, "" if nothing is."""
    for one, two in zip(found, expected, strict=True):
        if np.array_equal(one, two):
            continue
        if (one == UNWRITTEN).all():
            return "it said that it was done, and nothing was written"
        places = np.flatnonzero(one != two)
        first = int(places[0])
        return f"{len(places):,} of {len(two):,} bytes differ, the first at {first:,}: {one[first]} for {two[first]}"
    return ""
