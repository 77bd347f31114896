"""FPGAs and what they hold, and the clocks that VTA was built at on them; one's own from a JSON file.

Counts are the vendors': AMD's DS190 (Zynq-7000) and DS891 (Zynq UltraScale+), Intel's CV-51001 (Cyclone V).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.common.names import unknown
from oneshot_ml2.common.reading import read_json, whole_number

# How a block of memory may be read: (words, bits of a word). AMD's of 18 Kb (UG473, UG573), of which a BRAM36 has two;
# Intel's M10K (CV-52002).
BRAM18 = ((512, 36), (1024, 18), (2048, 9), (4096, 4), (8192, 2), (16384, 1))
M10K = ((256, 40), (512, 20), (1024, 10), (2048, 5), (4096, 2), (8192, 1))
# How many of each are a BRAM36, the unit that figures are told in: by blocks of AMD's, by bits of Intel's.
_BLOCKS = {"bram18": (BRAM18, 2.0), "m10k": (M10K, 3.6)}


@dataclass(frozen=True)
class Clock:
    """A clock: MHz, for blocks up to ``block``; ``source``: who built VTA at it, or why it is assumed."""

    mhz: int
    block: int
    source: str


@dataclass(frozen=True)
class Fpga:
    """An FPGA.

    Attributes:
        name: of the device.
        lut, dsp: how many there are; Intel's ALMs count as LUTs.
        bram36: memory in BRAM36.
        memory: ``bram18`` or ``m10k``, what its memory consists of.
        multipliers: products of 8 bits that a DSP block computes as VTA is written.
        bus_bits: of the widest memory port.
        clocks: clocks by block, ascending; the last one also stands for larger blocks.
        target: VTA's ``TARGET`` of a board with it.
    """

    name: str
    lut: int
    dsp: int
    bram36: float
    memory: str = "bram18"
    multipliers: int = 1
    bus_bits: int = 128
    clocks: tuple[Clock, ...] = (Clock(100, 16, "assumed"),)
    target: str = "sim"

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """How a block of memory may be read."""
        return _BLOCKS[self.memory][0]

    @property
    def blocks_of_bram36(self) -> float:
        """Blocks of memory that are a BRAM36."""
        return _BLOCKS[self.memory][1]

    def clock_of(self, block: int) -> Clock:
        """The clock for a block; one larger than any that was built gets that of the largest, and says so."""
        for clock in self.clocks:
            if block <= clock.block:
                return clock
        last = self.clocks[-1]
        return dataclasses.replace(last, source=f"assumed: no build of a block of {block} is known; {last.source}")


_PYNQ = "apache/tvm-vta, pkg_config.py (pynq); builds of it missed timing by 0.6 ns and by 1.6 ns (tvm issue 1475)"
_ULTRA96 = (
    "a build with weights of 4 bits at 200 MHz; VTA's own 333 MHz (ultra96) misses timing, 250 MHz was reported to work"
)
_ZCU104 = "a build of VTA with wider memory access on a ZCU104 at 200 MHz; VTA's own setting is 333 MHz (zcu104)"
_DE10 = "apache/tvm-vta, pkg_config.py (de10nano)"
FPGAS = {
    fpga.name: fpga
    for fpga in (
        Fpga("xc7z020", 53_200, 220, 140, bus_bits=64, clocks=(Clock(100, 16, _PYNQ),), target="pynq"),
        Fpga("xczu3eg", 70_560, 360, 216, clocks=(Clock(200, 16, _ULTRA96),), target="ultra96"),
        Fpga("xczu7ev", 230_400, 1_728, 312, clocks=(Clock(200, 16, _ZCU104),), target="zcu104"),
        Fpga("5cseba6", 41_910, 112, 154.7, "m10k", 3, 64, (Clock(100, 16, _DE10),), "de10nano"),
    )
}
_NUMBERS = ("lut", "dsp", "bram36", "multipliers", "bus_bits")


def load_fpga(name: str | Path) -> Fpga:
    """One of `FPGAS` by name, or a JSON file: an object with the fields of `Fpga`, and ``clock_mhz``.

    Raises:
        OneShotError: no such FPGA (names those there are), or a bad file.
    """
    path = Path(name)
    if path.suffix != ".json":
        if str(name) not in FPGAS:
            raise OneShotError(f"{unknown('FPGA', str(name), FPGAS)}; or give a JSON file of yours")
        return FPGAS[str(name)]
    data = read_json(path)
    if not isinstance(data, dict):
        raise OneShotError(f"{path}: expected an object with lut, dsp, bram36")
    known = {*_NUMBERS, "name", "memory", "clock_mhz"}
    strange = sorted(data.keys() - known)
    missing = [key for key in ("lut", "dsp", "bram36") if key not in data]
    if strange or missing:
        raise OneShotError(
            f"{path}: {', '.join(strange + missing)}: allowed: {', '.join(sorted(known))}; lut, dsp and bram36 must be"
            " there"
        )
    return _of_data(path, data)


def _of_data(path: Path, data: dict[str, Any]) -> Fpga:
    try:
        fields: dict[str, Any] = {key: whole_number(data[key], key, 1, 1 << 30) for key in _NUMBERS if key in data}
        if "memory" in data:
            if data["memory"] not in _BLOCKS:
                raise ValueError(f"memory is {data['memory']!r}; allowed: {', '.join(_BLOCKS)}")
            fields["memory"] = data["memory"]
        if "clock_mhz" in data:
            fields["clocks"] = (Clock(whole_number(data["clock_mhz"], "clock_mhz", 1, 10_000), 64, str(path)),)
    except ValueError as error:
        raise OneShotError(f"{path}: {error}") from error
    return Fpga(str(data.get("name", path.stem)), **fields)
