"""A library with VTA's driver interface as a device: a board's, a simulator's, or one that `build` makes.

Whatever the library does, one program's failure is that program's: it runs in a process that is begun anew. Every run's
result is looked at, so that a device that lies, or says too early that it is done, is told from one that works.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import DeviceError
from oneshot_ml2.devices import build
from oneshot_ml2.devices.base import DeviceKind, Measurement, legal_schedule, measure_one_by_one
from oneshot_ml2.devices.driver_library import LibraryProcess
from oneshot_ml2.devices.raw import (
    HANG,
    LATE,
    NO_RESULT,
    TIMED_OUT,
    WRONG,
    Fault,
    Options,
    Ran,
    RawBoard,
    Write,
)
from oneshot_ml2.devices.specification import NUMBERS, read_options
from oneshot_ml2.spaces.base import BatchResult
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta import image, isa, packing, regions, simulator, tokens
from oneshot_ml2.vta.program import PAGE, Program
from oneshot_ml2.vta.reasons import Reason

if TYPE_CHECKING:
    from oneshot_ml2.vta.accelerator import Accelerator
    from oneshot_ml2.vta.board import Board
    from oneshot_ml2.workload.base import Workload
    from oneshot_ml2.workload.epilogue import Tensors

# The largest allocation that all libraries grant (VTA_MAX_XFER of VTA's driver.h).
LARGEST = 1 << 25
# A compute instruction that does nothing, and FINISH: a run that only starts and ends.
_EMPTY = np.array([[0, 0], [3, 0]], dtype="<u8")
_EMPTY_RUNS = 9
# What a result is filled with before a run, so that one that is not written shows.
_UNWRITTEN = np.random.default_rng(0).integers(0, 256, PAGE, dtype=np.uint8)
# Of each layer's result, the bytes that are looked at for that.
_MARK = 64
# A run is late that takes so many times the median, and so many seconds, longer than it.
_LATE_FACTOR, _LATE_SECONDS = 10.0, 0.02
_SEED = 18

# An address of the DRAM image, and the bytes there, or how many.
ImageWrite = tuple[int, NDArray[np.uint8]]
ImageRead = tuple[int, int]


class Session:
    """Programs that share a DRAM image, placed in a library's memory."""

    def __init__(self, device: DriverDevice, programs: Sequence[Program], dram: NDArray[np.uint8]) -> None:
        """``dram``: the image, uint8 (bytes,), with the constants in place.

        Raises:
            OneShotError: a program that the library cannot run, or that would spoil the next one.
        """
        self._device, self._programs, self._dram = device, programs, dram
        self._parts = regions.regions(programs)
        for program in programs:
            device.check_accelerator(program.accelerator)
            tokens.check_submission(program.insns)
        # Now, since it takes the memory.
        device.measure_empty()
        self._groups: list[regions.Region] = []
        self._addresses: list[int] = []
        # Of each program, seconds of its runs so far.
        self._times: dict[int, list[float]] = {}

    def _place(self) -> None:
        """Get memory, and put everything there.

        Raises:
            Fault: the library hangs or crashes.
            DeviceError: it has no room.
        """
        self._groups, self._addresses = self._device.allocate(self._parts)
        contents = [(part.begin, self._dram[part.begin : part.end]) for part in self._parts]
        for program in self._programs:
            uops = isa.encode_uops(program.uops, program.accelerator).astype("<u4")
            contents.append((program.uop_address, uops.view(np.uint8)))
            words = regions.relocated(program, self._parts, self._groups, self._addresses)
            contents.append((program.insn_address, np.frombuffer(isa.to_bytes(words), np.uint8)))
        self._device.process.run(0, 0, [self._sent(*one) for one in contents], ())
        self._device.owner = (self, self._device.process.number)

    def _sent(self, address: int, content: NDArray[np.uint8]) -> Write:
        return (*regions.place_of(self._groups, address, content.size), content)

    def attempt(self, number: int, writes: Sequence[ImageWrite], reads: Sequence[ImageRead]) -> Ran:
        """Run a program of the session once; ``writes`` before it, ``reads`` after it, by the image's addresses.

        Raises:
            Fault: it fails, or leaves what is read as it was.
        """
        if self._device.owner != (self, self._device.process.number) or not self._device.process.running:
            self._place()
        program = self._programs[number]
        # Where every layer begins to write; operands may lie where a later one does.
        marks = [(address, min(size, _MARK)) for address, size in _outputs(program)]
        marks = [mark for mark in marks if _apart(*mark, writes)]
        filled = [self._sent(address, np.resize(_UNWRITTEN, size)) for address, size in (*reads, *marks)]
        sent = [*filled, *(self._sent(*one) for one in writes)]
        places = [(group, offset, content.size) for group, offset, content in filled]
        group, offset = regions.place_of(self._groups, program.insn_address, 1)
        ran = self._device.process.run(self._addresses[group] + offset, len(program.insns), sent, places)
        results, marked = ran.contents[: len(reads)], ran.contents[len(reads) :]
        if any(np.array_equal(content, _UNWRITTEN[: content.size]) for content in marked):
            raise Fault(NO_RESULT, "it said that it was done before all was written; was that the last run's DONE?")
        ran = dataclasses.replace(ran, contents=results)
        self._check_time(number, ran)
        self._device.took(ran)
        return ran

    def _check_time(self, number: int, ran: Ran) -> None:
        """Note a run that took far longer than those of the same program before; what it gave is taken."""
        times = self._times.setdefault(number, [])
        usual = statistics.median(times) if times else ran.seconds
        if ran.seconds > _LATE_FACTOR * usual and ran.seconds > usual + _LATE_SECONDS:
            self._device.note(Fault(LATE, f"{ran.seconds:.3g} s, where {usual:.3g} s are usual"))
        else:
            times.append(ran.seconds)

    def run(self, number: int, writes: Sequence[ImageWrite], reads: Sequence[ImageRead]) -> list[NDArray[np.uint8]]:
        """As `attempt`, tried again after faults: what is read.

        Raises:
            DeviceError: it fails again and again; says how.
        """
        expected: list[NDArray[np.uint8]] = []
        if self._device.options.check:
            program, dram = self._programs[number], self._dram.copy()
            for address, content in writes:
                dram[address : address + content.size] = content
            simulator.run(program, dram)
            expected = [dram[address : address + size] for address, size in reads]

        def once() -> Ran:
            ran = self.attempt(number, writes, reads)
            if any(not np.array_equal(one, two) for one, two in zip(expected, ran.contents)):
                raise Fault(WRONG, "it is not what the functional simulator computes")
            return ran

        return list(self._device.tried(once).contents)

    def seconds(self) -> list[float | None]:
        """Of each program the median wall time of its runs, less that of an empty run; None: it has not run."""
        empty = self._device.measure_empty()
        runs = (self._times.get(number) for number in range(len(self._programs)))
        return [max(statistics.median(times) - empty, 0.0) if times else None for times in runs]


def _outputs(program: Program) -> list[ImageRead]:
    """Where the layers of a program, one or several joined ones, leave their results: addresses and bytes."""
    named = [one for one in program.buffers if one.name.rpartition(".")[2] == "output"]
    return [(one.address, program.buffer_bytes(one.name)) for one in named]


def _apart(address: int, size: int, writes: Sequence[ImageWrite]) -> bool:
    """Whether none of what is written lies in a range."""
    return all(address + size <= begin or begin + content.size <= address for begin, content in writes)


class DriverDevice:
    """See the module. Its board is begun when it is first needed; `close` ends it.

    Attributes:
        process: the board: a library's process, or a server's.
        owner: the session that the library's memory is of, and the number of the process that has it.
        faults: how often each kind of fault was seen; ``last_fault``: the kind of the last, "" after a run without one.
    """

    exclusive = True

    def __init__(self, board: str | Path | RawBoard, options: Options | None = None, name: str | None = None) -> None:
        """``board``: or a library's path, to be opened with ``options``; ``name``: what corpora and logs record."""
        if isinstance(board, (str, Path)):
            name = name or f"driver:{board}"
            board = LibraryProcess(str(board), options or Options())
        self.process = board
        self.options = board.options
        self.name = name or board.name
        self.owner: tuple[Session | None, int] = (None, 0)
        self.faults: Counter[str] = Counter()
        self.last_fault = ""
        self._last = ""
        self._runs, self._seconds = 0, 0.0
        self._empty: float | None = None
        # Of the last task: tensors may be large.
        self._task: tuple[Workload, Accelerator, Tensors, NDArray[np.int8]] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return DriverDevice, (self.process, None, self.name)

    def close(self) -> None:
        """End its board's part: the library's process, the server's connection."""
        self.process.close()

    # Memory ----------------------------------------------------------------------------------
    def allocate(self, parts: Sequence[regions.Region]) -> tuple[list[regions.Region], list[int]]:
        """Memory for regions of an image: the ranges that it comes in, and their addresses.

        One for all of them where the library gives it: in one of more than `LARGEST` some give none, and some end.

        Raises:
            Fault: the library hangs or crashes.
            DeviceError: there is not so much.
        """
        self.owner = (None, 0)
        limits: list[int | None] = [self.options.largest] if self.options.largest else [None, LARGEST]
        for limit in limits:
            groups = regions.grouped(parts, limit)
            try:
                addresses = self.process.allocate([group.size for group in groups])
            except Fault:
                if limit is not None or groups[0].size <= LARGEST:
                    raise
                addresses = None
            if addresses is not None:
                return groups, addresses
        total = sum(part.size for part in parts)
        raise DeviceError(
            f"{self.process.name} has no memory for {total:,} bytes in pieces of {limits[-1]:,}; give it more"
        )

    def check_accelerator(self, chip: Accelerator) -> None:
        """Raise DeviceError if the board says that it is for another accelerator, or does not answer.

        What is known of the accelerator's board decides what is asked of its memory from then on.
        """
        self._keep_to(chip.board)
        try:
            self.process.start()
        except Fault as fault:
            self.note(fault)
            raise DeviceError(f"{self.name}: {fault}") from fault
        built, needed = self.process.configuration, build.configuration(chip)
        if built is not None and built != needed:
            raise DeviceError(
                f"{self.process.name} is built for {built}; the program is for {needed}: build it with --accelerator "
                f"{chip.name}, or give the accelerator that the library is for"
            )

    def _keep_to(self, board: Board | None) -> None:
        """Take memory in pieces as small as a board gives, and flush its caches if it needs that."""
        if board is None:
            return
        largest = self.options.largest or board.largest_allocation
        flush = self.options.flush or board.flush
        if flush != self.options.flush:
            self.process.close()
        self.options = self.process.options = dataclasses.replace(self.options, largest=largest, flush=flush)

    def session(self, programs: Sequence[Program], dram: NDArray[np.uint8]) -> Session:
        """See `Session`."""
        return Session(self, programs, dram)

    # Runs and their faults -------------------------------------------------------------------
    def note(self, fault: Fault) -> None:
        """Count a fault."""
        self.faults[fault.kind] += 1
        self.last_fault = fault.kind
        self._last = str(fault)

    def took(self, ran: Ran) -> None:
        """Count a run."""
        self.last_fault = ""
        self._runs += 1
        self._seconds += ran.seconds

    def tried(self, once: Callable[[], Ran]) -> Ran:
        """What a run gives, tried again after faults.

        Raises:
            DeviceError: the last try failed, too.
        """
        for _ in range(self.options.retries + 1):
            try:
                return once()
            except Fault as fault:
                self.note(fault)
        raise DeviceError(f"{self.name}: a program failed {self.options.retries + 1} times, the last: {self._last}")

    def measure_empty(self) -> float:
        """Seconds of wall time of a run that only starts and ends: the median of a few; measured once.

        Raises:
            DeviceError: such a run fails again and again.
        """
        if self._empty is None:
            self._empty = statistics.median(self.tried(self._run_empty).seconds for _ in range(_EMPTY_RUNS))
        return self._empty

    def _run_empty(self) -> Ran:
        (address,) = self.allocate([regions.Region(0, PAGE)])[1]
        return self.process.run(address, len(_EMPTY), [(0, 0, _EMPTY.view(np.uint8).reshape(-1))], ())

    def notes(self) -> list[str]:
        """What the runs took and which faults there were, lines for whoever reads a command's output."""
        lines = []
        if self._empty is not None:
            lines.append(f"{self.name}: an empty run takes {self._empty * 1e6:,.1f} us")
            if self._runs:
                rest = max(self._seconds - self._runs * self._empty, 0.0)
                lines.append(f"{self.name}: {self._runs:,} runs took {rest * 1e3:,.3f} ms, that not counted")
        if self.faults:
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.faults.items()))
            lines.append(f"{self.name}: faults: {kinds}; the last: {self._last}")
        return lines

    # Measuring -------------------------------------------------------------------------------
    def warm_up(self, space: ScheduleSpace) -> None:
        """See `Device`; what an empty run takes is measured."""
        self.check_accelerator(space.accelerator)
        for index in legal_schedule(space).tolist():
            space.lower(index)
        self.measure_empty()

    def measure_schedules(self, space: ScheduleSpace, indices: NDArray[np.int64]) -> BatchResult:
        """See `Device.measure_schedules`; every result is held against the operator's reference."""
        self.check_accelerator(space.accelerator)
        return measure_one_by_one(space, indices, lambda program, _: self._measure_layer(program, space.workload))

    def _measure_layer(self, program: Program, workload: Workload) -> Measurement:
        chip = program.accelerator
        if self._task is None or self._task[:2] != (workload, chip):
            drawn = workload.random_inputs(np.random.default_rng(_SEED))
            self._task = (workload, chip, drawn, workload.reference(drawn))
        _, _, tensors, expected = self._task

        def right(contents: Sequence[NDArray[np.uint8]]) -> bool:
            result = packing.activation_of_bytes(contents[0].view(np.int8), workload.output_shape, chip)
            return np.array_equal(result, expected)

        return self._measure(program, image.dram_image(program, workload, tensors), _outputs(program), right)

    def measure(self, programs: Sequence[Program]) -> list[Measurement]:
        """See `Device.measure`; on random bytes, and held against the functional simulator."""
        return [self._measure_random(program) for program in programs]

    def _measure_random(self, program: Program) -> Measurement:
        reads = _outputs(program)
        dram = np.random.default_rng(_SEED).integers(0, 256, program.dram_bytes, dtype=np.uint8)
        expected = dram.copy()
        simulator.run(program, expected)

        def right(contents: Sequence[NDArray[np.uint8]]) -> bool:
            return all(
                np.array_equal(content, expected[address : address + size])
                for content, (address, size) in zip(contents, reads)
            )

        return self._measure(program, dram, reads, right)

    def _measure(
        self,
        program: Program,
        dram: NDArray[np.uint8],
        reads: Sequence[ImageRead],
        right: Callable[[Sequence[NDArray[np.uint8]]], bool],
    ) -> Measurement:
        """Time a program; ``right``: whether what a run leaves at ``reads`` is."""
        session = self.session([program], dram)
        good: list[Ran] = []
        failures: list[str] = []
        # The first one warms up.
        while len(good) <= self.options.repeats:
            try:
                ran = session.attempt(0, (), reads)
                if not right(ran.contents):
                    raise Fault(WRONG, "it is not what the reference computes")
                good.append(ran)
                failures = []
            except Fault as fault:
                self.note(fault)
                failures.append(fault.kind)
                if len(failures) > self.options.retries:
                    return Measurement(False, _reason(failures), -1, float("nan"), (0, 0, 0))
        seconds = max(statistics.median(ran.seconds for ran in good[1:]) - self.measure_empty(), 0.0)
        clock = program.accelerator.clock_mhz * 1e6
        counted = round(statistics.median(ran.cycles for ran in good[1:]))
        if counted > 0:
            return Measurement(True, Reason.VALID, counted, counted / clock, (0, 0, 0))
        return Measurement(True, Reason.VALID, max(1, round(seconds * clock)), seconds, (0, 0, 0))


def _reason(failures: Sequence[str]) -> Reason:
    """What is said of a program that failed in these ways and in no other: only lasting wrong results are its own."""
    if set(failures) == {WRONG}:
        return Reason.WRONG_RESULT
    return Reason.TIMEOUT if {HANG, TIMED_OUT} & set(failures) else Reason.DEVICE_ERROR


# Specifications ------------------------------------------------------------------------------
_FORM = "driver:PATH[?OPTION=N&...]"


def parse(argument: str) -> tuple[Path, Options]:
    """The library and the options of ``PATH`` or ``PATH?limit=5&flush=1``.

    Raises:
        DeviceError: no such option, or a value that it does not take.
    """
    return Path(argument.partition("?")[0]), read_options(f"driver:{argument}")[0]


def _open(argument: str) -> DriverDevice:
    """The device of a library that is there."""
    path, options = parse(argument)
    if not path.is_file():
        raise DeviceError(f"no library {str(path)!r}; oneshot-ml2 driver build makes one, or give another: {_FORM}")
    device = DriverDevice(path.absolute(), options, f"driver:{argument}")
    device.process.start()
    return device


DRIVER = DeviceKind(
    _FORM,
    f"a library with VTA's driver interface; options: limit (seconds of a run), {', '.join(NUMBERS)}",
    _open,
)
