"""What a device takes: programs of one kind of work each, their slopes, and the timing parameters that follow."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from oneshot_ml2.devices.doctor.bench import Bench
from oneshot_ml2.devices.doctor.stream import Stream
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.hls_keys import KEYS, HlsTiming, field_of
from oneshot_ml2.vta.program import AluOp, Memory, Program
from oneshot_ml2.vta.timing import designs, hls_fit
from oneshot_ml2.vta.tokens import COMPUTES, LOADS, STORES

# Runs of each program of which the median counts; instructions and operations that are timed.
REPEATS = 9
_INSTRUCTIONS, _OPERATIONS = 2000, 16000
# A device whose times are on average further from the fitted model than this is none that the model describes.
_FOREIGN = 0.1
# What takes so many times as long as the file says is slow.
SLOW = 1.5
# What the fit starts from: the default of a STORE's start is 0, with which no path would lead through STOREs alone.
_START = HlsTiming(store_start=1000)
# Of the Chisel design, memory latencies that are tried, in cycles.
_MOST_LATENCY = 4096


@dataclass(frozen=True)
class Kind:
    """A kind of work: how much of it there is in a program, and the program of so much.

    ``feature``: whose time it is.
    """

    name: str
    feature: str
    unit: str
    size: Callable[[Accelerator], int]
    make: Callable[[Accelerator, int], Stream]


@dataclass(frozen=True)
class Times:
    """What was found.

    Attributes:
        slopes: by `Kind.name`, what one more unit of its work takes, cycles, and what the file says.
        submission: seconds around a run.
        keys: keys of the accelerator's JSON with their values.
        errors: standard errors of those that have one, in their units.
        deviation: the median of abs(log(predicted / measured)) over all programs.
    """

    slopes: dict[str, tuple[float, float]]
    submission: float
    keys: dict[str, int] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    deviation: float = 0.0

    @property
    def foreign(self) -> bool:
        """Whether the model does not describe this device."""
        return not self.deviation < _FOREIGN


def _nops(module: int) -> Callable[[Accelerator, int], Stream]:
    def make(chip: Accelerator, n: int) -> Stream:
        stream = Stream(chip)
        for _ in range(n):
            stream.nop(module)
        return stream

    return make


def _row(memory: Memory) -> Callable[[Accelerator, int], Stream]:
    """A LOAD of one row of ``n`` elements."""

    def make(chip: Accelerator, n: int) -> Stream:
        stream = Stream(chip)
        stream.load(stream.buffer(memory, n))
        return stream

    return make


def _read_rows(chip: Accelerator, n: int) -> Stream:
    stream = Stream(chip)
    stream.load(stream.buffer(Memory.INP, 2 * n), 0, n, 1, 2)
    return stream


def _stored(rows: bool) -> Callable[[Accelerator, int], Stream]:
    def make(chip: Accelerator, n: int) -> Stream:
        stream = Stream(chip)
        if rows:
            stream.store(stream.output(2 * n, looked_at=False), 0, n, 1, 2)
        else:
            stream.store(stream.output(n, looked_at=False))
        return stream

    return make


def _padded(chip: Accelerator, n: int) -> Stream:
    """LOADs of one element with pads around, as many of them as an SRAM holds at a time; ``n`` pads in all."""
    stream = Stream(chip)
    source, width = stream.buffer(Memory.INP, 1), min(15, chip.inp_depth // 2 - 1)
    for _ in range(n // width):
        stream.load(source, 0, 1, 1, 1, (0, 0, width, 0))
    return stream


def _alu(chip: Accelerator, n: int) -> Stream:
    stream = Stream(chip)
    width = _apart(chip)
    stream.alu(AluOp.ADD, stream.uops([(i, i, 0) for i in range(width)]), 1, (n // width, 0, 0, 0))
    return stream


def _gemm(chip: Accelerator, n: int) -> Stream:
    stream = Stream(chip)
    width = _apart(chip)
    stream.gemm(stream.uops([(i, 0, 0) for i in range(width)]), (n // width, 0, 0, 0))
    return stream


def _apart(chip: Accelerator) -> int:
    """Accumulators that take turns, so that none is updated too soon."""
    return min(16, chip.acc_depth // 2, chip.uop_depth)


def _half(memory: str) -> Callable[[Accelerator], int]:
    # One LOAD of a whole SRAM may be told to be done too early (docs/hardware.md, Hazards).
    return lambda chip: min(int(getattr(chip, f"{memory}_depth")) // 2, 4096)


def _always(n: int) -> Callable[[Accelerator], int]:
    return lambda _: n


KINDS: tuple[Kind, ...] = (
    Kind(
        "load instruction", "time_instruction", "instruction of the load module", _always(_INSTRUCTIONS), _nops(LOADS)
    ),
    Kind("compute instruction", "time_instruction", "of compute", _always(_INSTRUCTIONS), _nops(COMPUTES)),
    Kind("store instruction", "time_instruction", "of store", _always(_INSTRUCTIONS), _nops(STORES)),
    Kind("read row", "time_row", "row of a LOAD", _half("inp"), _read_rows),
    Kind("stored row", "time_row", "of a STORE", _half("acc"), _stored(True)),
    Kind("input", "time_byte", "input", _half("inp"), _row(Memory.INP)),
    Kind("weight", "time_byte", "weight", _half("wgt"), _row(Memory.WGT)),
    Kind("accumulator", "time_byte", "accumulator", _half("acc"), _row(Memory.ACC)),
    Kind("output", "time_byte", "output", _half("acc"), _stored(False)),
    Kind("pad", "time_row", "pad", _always(_INSTRUCTIONS), _padded),
    Kind("ALU", "time_alu", "micro-op", _always(_OPERATIONS), _alu),
    Kind("GEMM", "time_gemm", "micro-op", _always(_OPERATIONS), _gemm),
)


@dataclass(frozen=True)
class _Timed:
    """A program, its work and its time; ``seconds`` without what stands around a run if ``counted``."""

    kind: str
    work: int
    program: Program
    seconds: float
    counted: bool


def measure(bench: Bench, chip: Accelerator, repeats: int, kinds: Sequence[Kind] = KINDS) -> Times:
    """Time a device.

    Raises:
        Fault: it fails.
    """
    cycle, timed = 1e-6 / chip.clock_mhz, []
    empty, empty_cycles = bench.seconds(Stream(chip), repeats)
    for kind in kinds:
        most = kind.size(chip)
        for work in (most, most // 2):
            stream = kind.make(chip, work)
            seconds, cycles = bench.seconds(stream, repeats)
            taken = cycles * cycle if cycles else seconds
            timed.append(_Timed(kind.name, work, stream.program(), taken, cycles > 0))
    slopes = {}
    for one, half in zip(timed[::2], timed[1::2]):
        more = one.work - half.work
        said = designs.measure(one.program).cycles - designs.measure(half.program).cycles
        slopes[one.kind] = ((one.seconds - half.seconds) / cycle / more, said / more)
    counted = empty_cycles > 0
    timed.append(_Timed("empty", 0, Stream(chip).program(), empty_cycles * cycle if counted else empty, counted))
    around = max(empty - empty_cycles * cycle, 0.0) if counted else None
    return (_fit_chisel if chip.hls is None else _fit_hls)(chip, timed, slopes, around)


def _fit_hls(
    chip: Accelerator, timed: Sequence[_Timed], slopes: dict[str, tuple[float, float]], around: float | None
) -> Times:
    """The parameters of the HLS design; ``around``: seconds around a run where the device counts its own cycles."""
    assert chip.hls is not None

    def paths_of(timing: HlsTiming) -> hls_fit.Paths:
        with_timing = dataclasses.replace(chip, hls=timing)
        found = []
        for one in timed:
            path = hls_fit.path_of(one.program.insns, with_timing)
            found.append((0, path if one.counted else path.around(("submission",)), one.seconds))
        return hls_fit.as_paths(found)

    fitted, paths = hls_fit.iterate(paths_of, chip.hls.acc_distance, _START, shown=False)
    values = np.array([getattr(fitted.timing, name) for name in hls_fit.FITTED], dtype=np.float64)
    deviation = np.abs(np.log((paths.fixed + paths.counts @ values) / paths.seconds))
    names = [name for place, name in enumerate(hls_fit.FITTED) if paths.counts[:, place].any()]
    keys = {key: getattr(fitted.timing, field_of(key)) for key in KEYS if field_of(key) in names}
    errors = {key: fitted.errors[field_of(key)] for key in keys}
    if around is not None:
        keys["HLS_SUBMISSION"] = round(around * 1e9)
    # How its driver looks for the end is in what stands around a run.
    keys["HLS_POLL"] = 0
    return Times(slopes, keys["HLS_SUBMISSION"] * 1e-9, keys, errors, float(np.median(deviation)))


def _fit_chisel(
    chip: Accelerator, timed: Sequence[_Timed], slopes: dict[str, tuple[float, float]], around: float | None
) -> Times:
    """Latency and burst length of the Chisel design's memory with which its model is closest."""
    cycle = 1e-6 / chip.clock_mhz
    seconds = np.array([one.seconds for one in timed])

    def tried(latency: int, burst: int) -> tuple[float, float]:
        """How far off the model is on average, and the seconds around a run, with some memory."""
        with_memory = dataclasses.replace(chip, memory_latency=latency, burst_len_bits=burst)
        programs = [dataclasses.replace(one.program, accelerator=with_memory) for one in timed]
        predicted = np.array([designs.measure(program).cycles for program in programs]) * cycle
        rest = 0.0 if around is not None else max(float(np.median(seconds - predicted)), 0.0)
        return float(np.abs(np.log((predicted + rest) / seconds)).mean()), rest

    best: tuple[float, int, int] = (np.inf, chip.memory_latency, chip.burst_len_bits)
    for burst in range(1, 9):
        low, high = 1, _MOST_LATENCY
        # By thirds of the logarithm: a longer latency takes longer, so that there is one best.
        while high - low > 2:
            first, second = round(low * (high / low) ** (1 / 3)), round(low * (high / low) ** (2 / 3))
            first, second = max(first, low + 1), min(max(second, first + 1), high - 1)
            if first >= second:
                break
            if tried(first, burst)[0] <= tried(second, burst)[0]:
                high = second
            else:
                low = first
        for latency in range(low, high + 1):
            best = min(best, (tried(latency, burst)[0], latency, burst))
    deviation, latency, burst = best
    rest = tried(latency, burst)[1] if around is None else around
    return Times(slopes, rest, {"MEMORY_LATENCY": latency, "BURST_LEN_BITS": burst}, {}, deviation)
