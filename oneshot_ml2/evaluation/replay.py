"""Replay of programs measured on the VTA RTL: do our cycles, traces and memories equal them?"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common import hdf5
from oneshot_ml2.common.errors import CorpusError
from oneshot_ml2.common.reading import parse_json
from oneshot_ml2.vta import isa, simulator, work
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.program import Insns
from oneshot_ml2.vta.timing import chisel, records

SCHEMA = "vta-rtl-runs/1"
# Files are small; they are timed again and again for this long.
_TIMED_SECONDS = 0.2
# Column -> the kinds of numbers that it may have.
_COLUMNS = {
    "insns": "u",
    "insn_offset": "iu",
    "uops": "u",
    "uop_offset": "iu",
    "insn_address": "iu",
    "uop_address": "iu",
    "dram_size": "iu",
    "dram_seed": "iu",
    "cycles": "iu",
    "trace": "iu",
    "hang": "iub",
    "assertion": "iub",
}
_ADDRESSES = ("insn_address", "uop_address")
_OF_RUNS = (*_ADDRESSES, "dram_size", "dram_seed", "cycles", "hang", "assertion")
_LARGEST, _LARGEST_DRAM = (1 << 32) - 1, 1 << 28
_FORM = "a file of measured runs"
_ADVICE = "is the file complete?"


@dataclass(frozen=True)
class Runs:
    """One file of measured runs, the columns as in the file; ``insns`` are decoded, (all,).

    ``pipelined``: whether the RTL had its pipelined units; others are not modelled.
    """

    path: Path
    accelerator: Accelerator
    pipelined: bool
    insns: Insns
    insn_bytes: NDArray[np.uint8]
    insn_offset: NDArray[np.int64]
    uops: NDArray[np.uint32]
    uop_offset: NDArray[np.int64]
    insn_address: NDArray[np.int64]
    uop_address: NDArray[np.int64]
    dram_size: NDArray[np.int64]
    dram_seed: NDArray[np.int64]
    cycles: NDArray[np.int64]
    trace: NDArray[np.int64]
    hang: NDArray[np.bool_]
    assertion: NDArray[np.bool_]
    dram_sha256: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.cycles)

    def program(self, run: int) -> Insns:
        """Decoded instructions of one run, (n,)."""
        return self.insns[self.insn_offset[run] : self.insn_offset[run + 1]]

    def micro_ops(self, run: int) -> NDArray[np.uint32]:
        """Micro-op image of one run, uint32 (m,)."""
        return self.uops[self.uop_offset[run] : self.uop_offset[run + 1]]

    def expected_trace(self, run: int) -> NDArray[np.int64]:
        """Measured execution cycles [start, done) of one run, int64 (n, 2), -1 if not seen."""
        return self.trace[self.insn_offset[run] : self.insn_offset[run + 1]]

    def dram(self, run: int) -> NDArray[np.uint8]:
        """DRAM image before one run, uint8 (dram_size,): random bytes, the micro-ops, the instructions."""
        image = np.random.default_rng(int(self.dram_seed[run])).integers(0, 256, int(self.dram_size[run]), np.uint8)
        stream = self.insn_bytes[self.insn_offset[run] : self.insn_offset[run + 1]].ravel()
        for address, part in (
            (int(self.uop_address[run]), self.micro_ops(run).astype("<u4").view(np.uint8)),
            (int(self.insn_address[run]), stream),
        ):
            if address < 0 or address + len(part) > len(image):
                raise CorpusError(f"{self.path}: run {run} does not fit its DRAM image of {len(image)} bytes")
            image[address : address + len(part)] = part
        return image


def read_runs(path: str | Path) -> Runs:
    """Read a file of measured runs.

    Raises:
        CorpusError: no such file, not HDF5, truncated, another schema, or columns that do not fit together.
        AcceleratorError: an accelerator that is not valid.
    """
    path = Path(path)
    if not path.is_file():
        raise CorpusError(f"{path}: no such file")
    with (
        hdf5.checked(path, CorpusError, _ADVICE),
        hdf5.open_file(path, CorpusError, "it is not a readable HDF5 file of measured runs") as file,
    ):
        schema = hdf5.attribute(file, "schema", str, _FORM)
        if schema != SCHEMA:
            raise CorpusError(f"{path}: schema is {schema!r}; expected {SCHEMA!r}")
        described = parse_json(hdf5.attribute(file, "accelerator", str, _FORM), f"{path}: accelerator", CorpusError)
        names = [*_COLUMNS, *(("dram_sha256",) if "dram_sha256" in file else ())]
        found = {name: hdf5.dataset(file, name) for name in names}
        for name, dataset in found.items():
            # Texts have one length, or each its own.
            text = name not in _COLUMNS
            fits = hdf5.is_text(dataset) if text else dataset.dtype.kind in _COLUMNS[name]
            if not fits or dataset.ndim != (2 if name in ("insns", "trace") else 1):
                raise CorpusError(f"{path}: {name} is {dataset.dtype} with {dataset.ndim} dimensions; it is foreign")
        hdf5.check_sizes(list(found.values()), path)
        most = path.stat().st_size
        sums = hdf5.read_texts(found.pop("dram_sha256"), most) if "dram_sha256" in found else None
        columns = {name: dataset[:] for name, dataset in found.items()}
    if not isinstance(described, dict):
        raise CorpusError(f"{path}: its accelerator is no JSON object; the file is foreign")
    pipelined = described.pop("PIPELINED_GEMM", True)
    accelerator = Accelerator.from_json(described, name=path.stem)
    sums = [""] * len(columns["cycles"]) if sums is None else sums
    _check_columns(path, columns, len(sums))
    insn_bytes = np.ascontiguousarray(columns["insns"], np.uint8)
    numbers = (
        "insn_offset", "uop_offset", "insn_address", "uop_address", "dram_size", "dram_seed", "cycles", "trace"
    )  # fmt: skip
    return Runs(
        path=path,
        accelerator=accelerator,
        pipelined=bool(pipelined),
        insns=isa.decode(isa.from_bytes(insn_bytes), accelerator),
        insn_bytes=insn_bytes,
        uops=columns["uops"].astype(np.uint32),
        hang=columns["hang"].astype(bool),
        assertion=columns["assertion"].astype(bool),
        dram_sha256=tuple(sums),
        **{name: columns[name].astype(np.int64) for name in numbers},
    )


def _check_columns(path: Path, columns: Mapping[str, NDArray[Any]], sums: int) -> None:
    """Raise CorpusError unless the columns fit each other, and every run its DRAM."""
    runs = len(columns["cycles"])
    for offset, column in (("insn_offset", "insns"), ("uop_offset", "uops")):
        values, size = columns[offset].astype(np.float64), len(columns[column])
        ordered = len(values) == runs + 1 and values[0] == 0 and (np.diff(values) >= 0).all()
        if not ordered or values[-1] != size:
            raise CorpusError(f"{path}: {offset} does not fit the file's columns; is the file complete?")
    sizes_fit = all(len(columns[name]) == runs for name in _OF_RUNS) and sums == runs
    if not sizes_fit or columns["insns"].shape[1:] != (16,) or columns["trace"].shape != (len(columns["insns"]), 2):
        raise CorpusError(f"{path}: columns of different lengths; is the file complete?")
    for name, most in (("dram_size", _LARGEST_DRAM), *((name, _LARGEST) for name in ("dram_seed", *_ADDRESSES))):
        values = columns[name].astype(np.float64)
        if ((values < 0) | (values > most)).any():
            run = int(np.flatnonzero((values < 0) | (values > most))[0])
            raise CorpusError(f"{path}: run {run}: {name} is {columns[name][run]}; allowed: 0 to {most}")


@dataclass(frozen=True)
class Report:
    """How one file compares; the fields of the JSON output, which has ``status`` only where nothing was compared.

    A run's cycles are equal if its hang flag is too; of a run that hangs only the flag is compared.
    ``max_relative_error``: largest |ours - measured| / measured over the runs that end.
    ``cycles_per_second``: simulated cycles of the timing model alone, one core, per second.
    ``status``: "compared", or "not modelled" (nothing was timed).
    """

    file: str
    runs: int
    cycles_equal: int
    traces_checked: int
    traces_equal: int
    memories_checked: int
    memories_equal: int
    max_relative_error: float
    cycles_per_second: float
    status: str = "compared"


def replay(runs: Runs) -> Report:
    """Time every run, execute those whose memory is known, and count what is equal."""
    if not runs.pipelined:
        return Report(str(runs.path), len(runs), 0, 0, 0, 0, 0, 0.0, 0.0, "not modelled")
    p = records.params(runs.accelerator)
    unrecorded = records.nothing()
    chisel.simulate(runs.insns[:0], 0, p, unrecorded)  # compiles, outside the measured time
    programs = [np.ascontiguousarray(runs.program(run)) for run in range(len(runs))]
    for run, program in enumerate(programs):
        work.check(program, runs.accelerator, f"{runs.path}: run {run}", executed=bool(runs.dram_sha256[run]))
    simulated = 0
    seconds = 0.0
    start = time.perf_counter()
    while seconds < _TIMED_SECONDS and programs:
        for program, address in zip(programs, runs.insn_address.tolist(), strict=True):
            simulated += chisel.simulate(program, address, p, unrecorded)[0]
        seconds = time.perf_counter() - start

    cycles_equal = traces_checked = traces_equal = memories_checked = memories_equal = 0
    worst = 0.0
    for run, program in enumerate(programs):
        expected = runs.expected_trace(run)
        trace = np.empty((len(program), 2), np.int64)
        cycles, hang, _ = chisel.simulate(program, int(runs.insn_address[run]), p, unrecorded._replace(trace=trace))
        if hang or runs.hang[run]:
            cycles_equal += bool(hang) == bool(runs.hang[run])
            if not (hang and runs.hang[run]):
                worst = max(worst, 1.0)
        else:
            cycles_equal += int(cycles == runs.cycles[run])
            worst = max(worst, abs(cycles - int(runs.cycles[run])) / max(int(runs.cycles[run]), 1))
        if (expected >= 0).any():
            traces_checked += 1
            traces_equal += bool(np.array_equal(trace, expected))
        if runs.dram_sha256[run]:
            memories_checked += 1
            dram = runs.dram(run)
            status, _ = simulator.execute(program, simulator.params(runs.accelerator), dram)
            same = hashlib.sha256(dram.data).hexdigest() == runs.dram_sha256[run]
            memories_equal += status == simulator.OK and same
    return Report(
        file=str(runs.path),
        runs=len(runs),
        cycles_equal=cycles_equal,
        traces_checked=traces_checked,
        traces_equal=traces_equal,
        memories_checked=memories_checked,
        memories_equal=memories_equal,
        max_relative_error=worst,
        cycles_per_second=simulated / seconds if seconds > 0 else 0.0,
    )
