"""DRAM by region: where programs lie when a driver gives memory at addresses of its own, maybe in several pieces.

Programs are made for one DRAM image from address 0 on. A region is a range of it that some instruction or the host
uses; ranges that overlap, as activations of joined models do, are one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.vta import isa, link
from oneshot_ml2.vta.program import INSN_BYTES, PAGE, Buffer, Memory, Program, element_bytes

_UOP_BYTES = 4


@dataclass(frozen=True)
class Region:
    """Bytes ``begin`` to ``end`` - 1 of a DRAM image."""

    begin: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.begin


def regions(programs: Iterable[Program]) -> list[Region]:
    """What programs that share a DRAM image use of it: whole pages, apart from one another, ascending.

    The micro-ops and the instructions have theirs also where no buffer of the program names them.
    """
    ranges = []
    for program in programs:
        sizes = element_bytes(program.accelerator)
        ranges += [(one.address, one.elements * sizes[one.memory]) for one in program.buffers]
        ranges.append((program.uop_address, _UOP_BYTES * len(program.uops)))
        ranges.append((program.insn_address, INSN_BYTES * len(program.insns)))
    found: list[Region] = []
    for address, size in sorted(item for item in ranges if item[1] > 0):
        begin, end = address // PAGE * PAGE, -(-(address + size) // PAGE) * PAGE
        if found and begin < found[-1].end:
            found[-1] = Region(found[-1].begin, max(end, found[-1].end))
        else:
            found.append(Region(begin, end))
    return found


def grouped(parts: Sequence[Region], largest: int | None) -> list[Region]:
    """Ranges of the image that hold all regions, as few as there can be of at most ``largest`` bytes (None: one).

    Raises:
        OneShotError: a region is larger than that.
    """
    groups: list[Region] = []
    for part in parts:
        if largest is not None and part.size > largest:
            raise OneShotError(f"a part of {part.size:,} bytes must be in one piece; the largest is {largest:,}")
        if groups and (largest is None or part.end - groups[-1].begin <= largest):
            groups[-1] = Region(groups[-1].begin, part.end)
        else:
            groups.append(part)
    return groups


def place_of(groups: Sequence[Region], address: int, size: int) -> tuple[int, int]:
    """Which range holds ``size`` bytes at an address of the image, and how far from its begin.

    Raises:
        OneShotError: none holds them all.
    """
    for number, group in enumerate(groups):
        if group.begin <= address and address + size <= group.end:
            return number, address - group.begin
    raise OneShotError(f"{size:,} bytes at {address:#x} are outside of the programs' memory")


def relocated(
    program: Program, parts: Sequence[Region], groups: Sequence[Region], addresses: Sequence[int]
) -> NDArray[np.uint64]:
    """The instruction words, uint64 (n, 2), of a program whose ranges ``groups`` are at other byte addresses.

    Args:
        parts: the regions of all programs of the image, see `regions`.

    Raises:
        OneShotError: an address that does not suit its elements or does not fit the instruction's field, or an access
            that leaves its region.
    """
    named, placement = [], {}
    for number, part in enumerate(parts):
        group, offset = place_of(groups, part.begin, part.size)
        named.append(Buffer(str(number), Memory.UOP, part.begin, part.size // _UOP_BYTES))
        placement[str(number)] = addresses[group] + offset
    whole = dataclasses.replace(program, buffers=tuple(named))
    return isa.encode(link.relocated(whole, placement), program.accelerator)
