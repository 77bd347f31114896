"""What an accelerator takes of an FPGA, before any synthesis: memory from geometry, the rest roughly.

**Memory** follows from the sizes of the SRAMs: each is as wide as an element and as deep as it has elements, and is
built of blocks of memory in their cheapest shape (`vta.cc`: `inp_mem`, `wgt_mem`, `acc_mem`, `out_mem`, `uop_mem`; in
the RTL `TensorLoad`, `LoadUop`, `TensorStore`). Three instruction queues of 512 words of 128 bits come with both.
Beside these stand interconnect and the ports' buffers, as a constant: two builds had 1 and 14 BRAM36 of them.

**DSP blocks**: one product each of the GEMM core's BATCH x BLOCK x BLOCK, and a dozen for addresses (a build with more
DSP blocks than it needs had twelve); what exceeds the device's is built of LUTs.

**LUTs** are a rough figure: adders of the GEMM core, lanes of the ALU, products for which no DSP block is left, and
what every VTA has, so that two builds come out within a tenth or so. Take it with 30 %.

Power is out of reach: nothing that a synthesis would not have to tell first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from oneshot_ml2.codesign.fpga import FPGAS, Fpga, load_fpga
from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.common.reading import read_json
from oneshot_ml2.vta.accelerator import Accelerator

# Bits of inputs, weights, accumulators: what the programs of this package compute with.
WIDTHS = (8, 8, 32)
# Words and bits of an instruction queue, and how many there are.
_QUEUE, _QUEUES = (512, 128), 3
_UOP_BITS = 32
# DSP blocks of address arithmetic.
_ADDRESS_DSP = 12
# LUTs of an adder and pipeline of a product, of a lane of the ALU, of a product without a DSP block.
_LUT_MAC, _LUT_LANE, _LUT_PRODUCT = 17, 330, 60


@dataclass(frozen=True)
class Overhead:
    """What stands beside the formulas, and how far builds were from them.

    Attributes:
        bram36: of interconnect and ports.
        lut: of what every VTA has.
        bram36_margin, lut_margin: shares that builds are off by.
    """

    bram36: float = 7.0
    lut: float = 8_500.0
    bram36_margin: float = 0.10
    lut_margin: float = 0.30


@dataclass(frozen=True)
class Resources:
    """What an accelerator takes: memory in BRAM36, of which ``sram`` is the SRAMs' own, DSP blocks and LUTs."""

    bram36: float
    sram: float
    dsp: int
    lut: int


def blocks_of(words: int, bits: int, shapes: Sequence[tuple[int, int]]) -> int:
    """Blocks of memory for so many words of so many bits, in the cheapest shape."""
    return min(math.ceil(words / deep) * math.ceil(bits / wide) for deep, wide in shapes)


def memories(accelerator: Accelerator, widths: tuple[int, int, int] = WIDTHS) -> dict[str, tuple[int, int]]:
    """(words, bits) of each SRAM at widths of inputs, weights and accumulators; its size in bytes stays.

    The output SRAM is as deep as the accumulators', and as wide as an input.
    """
    a = accelerator
    inp, wgt, acc = widths
    bits = {
        "uop": _UOP_BITS,
        "inp": a.batch * a.block * inp,
        "wgt": a.block * a.block * wgt,
        "acc": a.batch * a.block * acc,
    }
    found = {name: (8 * (1 << getattr(a, f"log_{name}_buff_size")) // width, width) for name, width in bits.items()}
    return found | {"uop": (a.uop_depth, _UOP_BITS), "out": (found["acc"][0], bits["inp"])}


def resources_of(
    accelerator: Accelerator,
    fpga: Fpga,
    overhead: Overhead = Overhead(),
    widths: tuple[int, int, int] = WIDTHS,
) -> Resources:
    """What an accelerator takes of an FPGA; ``widths``: bits of inputs, weights and accumulators."""
    per_36 = fpga.blocks_of_bram36
    sram = sum(blocks_of(*size, fpga.shapes) for size in memories(accelerator, widths).values()) / per_36
    queues = _QUEUES * blocks_of(*_QUEUE, fpga.shapes) / per_36
    products = accelerator.batch * accelerator.block**2
    wanted = math.ceil((products + _ADDRESS_DSP) / fpga.multipliers)
    dsp = min(wanted, fpga.dsp)
    left = max(0, products + _ADDRESS_DSP - fpga.dsp * fpga.multipliers)
    lut = overhead.lut + _LUT_MAC * products + _LUT_LANE * accelerator.batch * accelerator.block + _LUT_PRODUCT * left
    return Resources(sram + queues + overhead.bram36, sram, dsp, round(lut))


@dataclass(frozen=True)
class Budget:
    """What an accelerator may take; the FPGA's own, or less.

    ``lut_share``: of the FPGA's LUTs that the rough figure may reach.
    """

    fpga: Fpga
    bram36: float
    dsp: int
    lut_share: float = 1.0

    def holds(self, accelerator: Accelerator, taken: Resources) -> bool:
        """Whether an accelerator that takes so much can be built."""
        fits = taken.bram36 <= self.bram36 and taken.lut <= self.lut_share * self.fpga.lut
        products = accelerator.batch * accelerator.block**2
        # Without a limit of one's own, products may be built of LUTs.
        few = self.dsp >= self.fpga.dsp or math.ceil((products + _ADDRESS_DSP) / self.fpga.multipliers) <= self.dsp
        return fits and few and accelerator.bus_bits <= self.fpga.bus_bits


def budget_of(fpga: Fpga, max_bram: float | None = None, max_dsp: int | None = None) -> Budget:
    """The budget of an FPGA with limits of one's own.

    Raises:
        OneShotError: limits that are not positive, or above the FPGA's.
    """
    for name, value, most in (("--max-bram", max_bram, fpga.bram36), ("--max-dsp", max_dsp, fpga.dsp)):
        if value is not None and not 0 < value <= most:
            raise OneShotError(f"{name} is {value:g}; {fpga.name} has {most:g}: give more than 0 and at most that")
    return Budget(fpga, fpga.bram36 if max_bram is None else max_bram, fpga.dsp if max_dsp is None else max_dsp)


# One's own synthesis reports --------------------------------------------------------------------


def calibrated(path: str | Path) -> Overhead:
    """The overhead that fits one's own builds: a JSON list of objects.

    Each has ``accelerator`` (VTA's JSON), ``fpga`` (a name or a file), and of ``bram36`` and ``lut`` what the report
    says. The constants become the mean of what is left beside the formulas; margins are the largest share that a build
    is off by then, at least 5 %.

    Raises:
        OneShotError: an unreadable file, or an entry that is none (says which).
    """
    data = read_json(path)
    if not isinstance(data, list) or not data:
        raise OneShotError(f'{path}: expected a list of builds: [{{"accelerator": ..., "fpga": ..., "bram36": ...}}]')
    builds = [_build(Path(path), number, entry) for number, entry in enumerate(data, 1)]
    found = Overhead()
    for name in ("bram36", "lut"):
        known = [(taken, fpga, chip) for chip, fpga, report in builds if (taken := report.get(name)) is not None]
        if not known:
            continue
        bare = replace(found, **{name: 0.0})
        rest = [taken - getattr(resources_of(chip, fpga, bare), name) for taken, fpga, chip in known]
        found = replace(found, **{name: max(0.0, float(np.mean(rest)))})
        off = [abs(getattr(resources_of(chip, fpga, found), name) / taken - 1) for taken, fpga, chip in known]
        found = replace(found, **{f"{name}_margin": max(0.05, *off)})
    return found


def _build(path: Path, number: int, entry: Any) -> tuple[Accelerator, Fpga, Mapping[str, float]]:
    try:
        if not isinstance(entry, dict) or not isinstance(entry.get("accelerator"), dict):
            raise ValueError("allowed: an object with accelerator, fpga, and bram36 or lut")
        chip = Accelerator.from_json(entry["accelerator"], name=f"build {number}")
        fpga = load_fpga(str(entry.get("fpga", next(iter(FPGAS)))))
        # Reports count blocks of 18 Kb, so halves are possible.
        figures = {name: entry[name] for name in ("bram36", "lut") if name in entry}
        for name, value in figures.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1 << 30:
                raise ValueError(f"{name} is {value!r}; allowed: a number above 0")
        if not figures:
            raise ValueError("neither bram36 nor lut; give what the synthesis reports")
    except (OneShotError, ValueError) as error:
        raise OneShotError(f"{path}: build {number}: {error}") from error
    return chip, fpga, figures
