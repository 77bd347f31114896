"""A board that is played: the functional simulator's results, and the times of some accelerator's design."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from oneshot_ml2.devices.raw import Options, Ran, Read, Write
from oneshot_ml2.vta import isa, simulator
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.program import INSN_BYTES, PAGE
from oneshot_ml2.vta.timing import designs, records


class PlayedBoard:
    """A `RawBoard` of an accelerator; ``counts``: it counts its cycles; ``noise``: relative deviation of its clock."""

    name, configuration, number, running = "played", None, 1, True

    def __init__(self, chip: Accelerator, submission: float, counts: bool, noise: float = 0.0) -> None:
        self.options = Options()
        self._chip, self._submission, self._counts, self._noise = chip, submission, counts, noise
        self._rng = np.random.default_rng(0)
        self._dram = np.zeros(0, np.uint8)
        self._addresses: list[int] = []

    def start(self) -> None:
        pass

    def close(self) -> None:
        pass

    def allocate(self, sizes: Sequence[int]) -> list[int] | None:
        self._addresses, address = [], PAGE
        for size in sizes:
            self._addresses.append(address)
            address += -(-size // PAGE) * PAGE
        self._dram = np.zeros(address, np.uint8)
        return list(self._addresses)

    def run(self, address: int, count: int, writes: Sequence[Write], reads: Sequence[Read], repeats: int = 1) -> Ran:
        for number, offset, content in writes:
            begin = self._addresses[number] + offset
            self._dram[begin : begin + content.size] = content
        words = isa.from_bytes(self._dram[address : address + count * INSN_BYTES])
        insns = isa.decode(words, self._chip)
        simulator.execute_checked(insns, self._chip, self._dram)
        cycles, hang, _ = designs.simulate(insns, address, records.params(self._chip), records.nothing())
        assert not hang
        seconds = cycles / (self._chip.clock_mhz * 1e6) + self._submission
        seconds *= 1.0 + self._noise * float(self._rng.standard_normal())
        found = [self._dram[self._addresses[i] + offset :][:size].copy() for i, offset, size in reads]
        return Ran(seconds, int(cycles) if self._counts else 0, tuple(found))
