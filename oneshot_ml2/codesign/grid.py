"""The members of VTA's family that are looked at: every legal combination of lists of values.

The HLS design is built with as many inputs as accumulators, and with elements no narrower than the bus (its `vta.cc`
and `hw_spec.h`); the RTL with any.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from oneshot_ml2.common.errors import AcceleratorError, OneShotError
from oneshot_ml2.common.reading import read_json, whole_number
from oneshot_ml2.vta.accelerator import DESIGNS, Accelerator, sram_fields
from oneshot_ml2.vta.hls_keys import KEYS, HlsTiming

# Of each design the log2 of every size: of the block, the batch, the bus's bits, and of the elements of each SRAM.
AXES = ("block", "batch", "bus", "uop", "inp", "wgt", "acc")
DEFAULT: dict[str, dict[str, Sequence[int]]] = {
    "chisel": {
        "block": range(2, 7), "batch": range(4), "bus": (6, 7, 8), "uop": (11,), "inp": range(6, 14),
        "wgt": range(4, 13), "acc": range(5, 12),
    },
    "hls": {
        "block": range(2, 7), "batch": range(4), "bus": (6, 7, 8), "uop": range(7, 14), "inp": range(5, 12),
        "wgt": range(2, 13), "acc": (),
    },
}  # fmt: skip
# Keys of a grid's file: what VTA is shipped with stands for those that are not there.
_STOCK: dict[str, Any] = {
    "LOG_BATCH": 0, "LOG_BLOCK": 4, "LOG_UOP_BUFF_SIZE": 15, "LOG_INP_BUFF_SIZE": 15, "LOG_WGT_BUFF_SIZE": 18,
    "LOG_ACC_BUFF_SIZE": 17, "BUS_BITS": 64,
}  # fmt: skip
_OTHERS = ("BURST_LEN_BITS", "MEMORY_LATENCY", "INSTRUCTION_QUEUE", *KEYS)


def legal(accelerator: Accelerator) -> bool:
    """Whether an accelerator's design can be built with its sizes."""
    a = accelerator
    element = 8 * a.batch * a.block
    # A bus word holds no several batch rows of an element that is wider than the bus.
    whole = 8 * a.block >= a.bus_bits or element <= a.bus_bits
    if a.hls is None:
        return whole
    return whole and a.inp_depth == a.acc_depth and element >= a.bus_bits


def members(design: str, lists: Mapping[str, Sequence[int]], base: Accelerator | None = None) -> Iterator[Accelerator]:
    """The legal accelerators of a design among all combinations of ``lists`` (`AXES`), in a fixed order.

    ``base``: what has the other properties; none: the design's defaults.
    """
    start = base or Accelerator(0, 4, 15, 15, 18, 17, hls=HlsTiming() if design == "hls" else None)
    # The HLS design has as many inputs as accumulators.
    for block, batch, bus, uop, inp, wgt, acc in itertools.product(*(lists[name] or (-1,) for name in AXES)):
        sizes = (uop + 2, inp + batch + block, wgt + 2 * block, (acc if acc >= 0 else inp) + batch + block + 2)
        try:
            core = dataclasses.replace(
                start, log_batch=batch, log_block=block, bus_bits=1 << bus, **sram_fields(*sizes)
            )
        except AcceleratorError:
            continue
        if legal(core):
            yield dataclasses.replace(core, name=name_of(core))


def name_of(accelerator: Accelerator) -> str:
    """A name that says block, batch, SRAMs and bus."""
    a = accelerator
    sizes = "_".join(str(getattr(a, f"log_{name}_buff_size")) for name in ("uop", "inp", "wgt", "acc"))
    return f"{a.batch}x{a.block}_{sizes}_bus{a.bus_bits}"


def default_grid(design: str) -> list[Accelerator]:
    """The members of a design's own grid, more than 20,000.

    Raises:
        OneShotError: no such design.
    """
    if design not in DEFAULT:
        raise OneShotError(f"--design is {design!r}; allowed: {', '.join(DESIGNS)}")
    return list(members(design, DEFAULT[design]))


def read_grid(path: str | Path, design: str) -> list[Accelerator]:
    """The members of a grid of one's own (JSON): an object whose keys are those of VTA's JSON and ``BUS_BITS``, each
    with a value or a list of them; or a list of VTA JSON objects, each an accelerator.

    Raises:
        OneShotError: an unreadable file, unknown keys, or nothing legal in it.
    """
    data = read_json(path)
    if isinstance(data, list):
        try:
            found = [
                Accelerator.from_json(entry, name=str(entry.get("name", number))) for number, entry in enumerate(data)
            ]
        except (AcceleratorError, AttributeError) as error:
            raise OneShotError(f"{path}: {error}") from error
    elif isinstance(data, dict):
        found = _product(Path(path), data, design)
    else:
        raise OneShotError(f"{path}: expected an object of lists, or a list of accelerators")
    if not found:
        raise OneShotError(f"{path}: no legal accelerator of the {design} design in it; give other sizes")
    return list(dict.fromkeys(found))


def _product(path: Path, data: Mapping[str, Any], design: str) -> list[Accelerator]:
    """All legal combinations of the values of VTA's keys."""
    allowed = (*_STOCK, *_OTHERS)
    strange = sorted(data.keys() - set(allowed))
    if strange:
        raise OneShotError(f"{path}: unknown {', '.join(strange)}; allowed: {', '.join(allowed)}")
    lists = {key: value if isinstance(value, list) else [value] for key, value in {**_STOCK, **data}.items()}
    try:
        for key, given in lists.items():
            for value in given:
                whole_number(value, key, 0)
    except ValueError as error:
        raise OneShotError(f"{path}: {error}") from error
    found = []
    for values in itertools.product(*lists.values()):
        try:
            chip = Accelerator.from_json(dict(zip(lists, values, strict=True)) | {"DESIGN": design})
        except AcceleratorError:
            continue
        if legal(chip):
            found.append(dataclasses.replace(chip, name=name_of(chip)))
    return found
