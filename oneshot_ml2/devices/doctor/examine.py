"""Examines a device: every probe in its turn, what each found, and the board file that follows."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from oneshot_ml2.common.errors import AcceleratorError, DeviceError, OneShotError
from oneshot_ml2.devices import build
from oneshot_ml2.devices.doctor import limits, probes, timing
from oneshot_ml2.devices.doctor.bench import Bench
from oneshot_ml2.devices.doctor.stream import TooSmall
from oneshot_ml2.devices.raw import Fault, RawBoard
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.board import FEATURES, MOST_TOKENS, NOT_TRIED, RIGHT, SLOW, WRONG, Board
from oneshot_ml2.vta.program import Memory
from oneshot_ml2.vta.tokens import QUEUES

# SRAMs by what their probe needs beside the least program.
_SRAMS = {Memory.ACC: "run", Memory.INP: "gemm", Memory.WGT: "gemm", Memory.UOP: "gemm"}


# What timed programs need, all of them, and those of some kinds of work besides.
_TIMED = ("run", "gemm", "load_inp", "add_imm", "store")
_NEEDS = {
    "read row": ("load_inp_strides",),
    "stored row": ("store_strides",),
    "pad": ("load_inp_pads",),
    "ALU": ("alu_outer_dst",),
    "GEMM": ("gemm_outer_acc",),
    "weight": ("load_wgt",),
    "accumulator": ("load_acc",),
}


@dataclass(frozen=True)
class Finding:
    """What a probe found: the feature, one of `board.VERDICTS`, and a sentence."""

    feature: str
    verdict: str
    sentence: str


@dataclass(frozen=True)
class Report:
    """What a device does.

    Attributes:
        name: of the device.
        chip: the accelerator that it is, with its `Board`.
        findings: by feature, in the order of `board.FEATURES`.
    """

    name: str
    chip: Accelerator
    findings: dict[str, Finding]

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong."""
        return not any(one.verdict == WRONG for one in self.findings.values())

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        rows = [dataclasses.asdict(one) for one in self.findings.values()]
        return {"device": self.name, "accelerator": json.loads(self.chip.to_json()), "findings": rows}


class _Examination:
    """The state of an examination: what is known so far."""

    def __init__(self, board: RawBoard, chip: Accelerator, repeats: int, shown: bool) -> None:
        self.bench, self.chip, self.repeats = Bench(board, chip), chip, repeats
        self.asked, self.carrier = chip, -1
        self.findings: dict[str, Finding] = {}
        self.limits: dict[str, Any] = {"flush": board.options.flush}
        self.times: timing.Times | None = None
        self.bar = tqdm(total=len(FEATURES), desc="doctor", unit="probe", disable=None if shown else True)

    def say(self, feature: str, verdict: str, sentence: str) -> bool:
        """Note a finding; whether it is right."""
        self.findings[feature] = Finding(feature, verdict, sentence)
        self.bar.update()
        return verdict == RIGHT

    def right(self, feature: str) -> bool:
        """Whether a feature was found right."""
        return feature in self.findings and self.findings[feature].verdict == RIGHT

    def blocked(self, feature: str, requires: tuple[str, ...]) -> bool:
        """Whether a feature cannot be tried, as what it requires is not right or the device hangs; that is noted."""
        missing = [name for name in requires if not self.right(name)]
        if self.bench.hung:
            self.say(feature, NOT_TRIED, f"the device hangs since another probe: {self.bench.hung}")
        elif missing:
            self.say(feature, NOT_TRIED, f"it needs {', '.join(missing)}")
        return bool(self.bench.hung or missing)

    def tried(self, feature: str, requires: tuple[str, ...], probe: Callable[[], tuple[str, str]]) -> None:
        """Let a probe say its verdict and sentence, unless it is `blocked`."""
        if self.blocked(feature, requires):
            return
        try:
            self.say(feature, *probe())
        except TooSmall as error:
            # What no program can do that fits is not asked of it either.
            self.say(feature, RIGHT, f"no program can tell: {error}")
        except Fault as fault:
            self.say(feature, WRONG, f"it fails: {fault}")

    def become(self, chip: Accelerator) -> None:
        """The device is another accelerator than was thought."""
        self.chip = self.bench.chip = chip


def examine(
    board: RawBoard,
    name: str,
    chip: Accelerator,
    repeats: int = timing.REPEATS,
    timed: bool = True,
    guess: bool = False,
    shown: bool = True,
) -> Report:
    """Find out what a device does.

    Args:
        name: the device's, for the board file.
        chip: the accelerator that it should be; what another board file says of it is not looked at.
        repeats: runs of a timed program of which the median counts.
        timed: whether times are looked at.
        guess: whether, if it is not ``chip``, others are tried. A STORE of a wrong one goes to another address.
        shown: with a bar.

    Raises:
        DeviceError: it does not run at all, so that nothing can be said.
    """
    board.start()
    work = _Examination(board, dataclasses.replace(chip, board=None), repeats, shown)
    with work.bar:
        _run(work, guess)
        _shape(work)
        _functions(work)
        _sizes(work)
        work.tried("acc_distance", ("run",), lambda: _distance(work))
        work.tried("allocation", (), lambda: _allocation(work))
        if timed:
            _times(work)
        # Last, since a device that loses tokens may hang for good.
        work.tried(
            "tokens_255", tuple(f"tokens_{queue.replace('-to-', '_')}" for queue in QUEUES), lambda: _tokens(work)
        )
    ordered = {feature: work.findings[feature] for feature in FEATURES if feature in work.findings}
    return Report(name, _with_board(work, name), ordered)


# Whether it runs -------------------------------------------------------------------------------
def _run(work: _Examination, guess: bool) -> None:
    """The least program, on the accelerator that it should be, or on one that it may be; and how memory is seen."""
    bench, seen = work.bench, ""
    flushed = bench.flush
    for chip in (work.asked, *(limits.guesses(work.asked) if guess else ())):
        for flush in (True,) if flushed else (False, True):
            bench.set_flush(flush)
            bench.chip = chip
            try:
                work.carrier, wrong = limits.first_carrier(bench, chip)
            except DeviceError as error:
                # Some libraries cannot flush.
                wrong = str(error)
            seen = seen or wrong
            if work.carrier >= 0 or bench.hung:
                break
        if work.carrier >= 0 or bench.hung:
            break
    if work.carrier < 0:
        bench.set_flush(flushed)
        raise DeviceError(
            f"the least program does not run ({bench.hung or seen}); check that the bitstream is loaded and of "
            f"{work.asked.name}, or let other accelerators be tried with --guess (docs/doctor.md)"
        )
    work.become(bench.chip)
    work.say("run", RIGHT, "the least program runs")
    _coherence(work, flushed)
    seen = bench.repeated([probes.copy(work.chip, work.carrier, seed, uops_first=False) for seed in (1, 2, 3)])
    if seen:
        work.say("done_any", WRONG, f"a run that begins with a LOAD: {seen}; is its DONE that of the run before?")
    else:
        work.say("done_any", RIGHT, "a run is done when it says so, whatever it begins with")


def _coherence(work: _Examination, flushed: bool) -> None:
    """Runs one after the other in the same memory, without flushing caches if nobody asked for that."""
    bench = work.bench
    streams = [probes.copy(work.chip, work.carrier, seed) for seed in (4, 5, 6)]
    if flushed:
        work.say("coherence", NOT_TRIED, "caches are flushed, as the device is asked to (flush=1)")
        return
    seen = "" if bench.flush else bench.repeated(streams)
    if not bench.flush and not seen:
        work.say("coherence", RIGHT, "host and device see the same memory without flushing")
        return
    bench.set_flush(True)
    again = bench.repeated(streams)
    if again:
        bench.set_flush(False)
        work.say("coherence", WRONG, f"a second run in the same memory is wrong: {again}; with flushed caches, too")
        return
    work.limits["flush"] = True
    work.say("coherence", WRONG, f"memory is not coherent: {seen or 'nothing runs'}, unless caches are flushed")


def _shape(work: _Examination) -> None:
    """Block and batch by products, and thereby whether GEMMs work."""
    bench, chip = work.bench, work.chip
    if not limits.is_shape(bench, chip):
        size = chip.log_batch + chip.log_block
        for other in limits.other_shapes(chip):
            if bench.hung:
                break
            if other.log_batch + other.log_block == size and limits.is_shape(bench, other):
                work.become(other)
                break
        else:
            work.say("block", NOT_TRIED, "products are wrong for every block and batch of this size")
            work.say("gemm", WRONG, f"products are wrong: {bench.check(probes.product(chip))}")
            return
    work.say("gemm", RIGHT, "products of inputs and weights are right")
    found, asked = limits.shape_of(work.chip), limits.shape_of(work.asked)
    if found == asked:
        work.say("block", RIGHT, f"{found}, as the file says")
    else:
        work.say("block", WRONG, f"the device has {found}, and the file says {asked}")


# What programs may need --------------------------------------------------------------------------
def _functions(work: _Examination) -> None:
    tensors = []
    for probe in probes.operations():
        _function(work, probe)
        if probe.name.endswith("_tensor") and work.right(probe.name):
            tensors.append(probe.name)
    for probe in probes.others(work.carrier, probes.working_tensor(tensors)):
        _function(work, probe)


def _function(work: _Examination, probe: probes.Probe) -> None:
    def verdict() -> tuple[str, str]:
        for seed in (1, 2):
            for what, stream in probe.cases(work.chip, seed):
                seen = work.bench.check(stream)
                if seen:
                    return WRONG, f"{what}: {seen}" if what else seen
        return RIGHT, FEATURES[probe.name]

    work.tried(probe.name, probe.requires, verdict)


# Sizes and limits --------------------------------------------------------------------------------
def _sizes(work: _Examination) -> None:
    for memory, needed in _SRAMS.items():
        name = memory.name.lower()

        def verdict(memory: Memory = memory, name: str = name) -> tuple[str, str]:
            most = int(getattr(work.chip, f"{name}_depth"))
            found, seen = limits.depth(work.bench, work.chip, memory, work.carrier)
            if found == most:
                return RIGHT, f"{most:,} {name.upper()} elements"
            if found == 0:
                return WRONG, f"no size explains what the {name.upper()} SRAM does: {seen}"
            try:
                work.become(limits.with_depth(work.chip, memory, found))
            except AcceleratorError as error:
                return WRONG, f"{found:,} of {most:,} {name.upper()} elements, which no accelerator has: {error}"
            return WRONG, f"the SRAM holds {found:,} {name.upper()} elements, and the file says {most:,}"

        work.tried(f"{name}_depth", (needed,), verdict)


def _distance(work: _Examination) -> tuple[str, str]:
    found = limits.acc_distance(work.bench, work.chip, work.right("gemm"), work.right("add_imm"))
    allowed = max(work.chip.acc_distance, 1)
    if found > limits.FARTHEST:
        return WRONG, f"an accumulator that is updated again within {limits.FARTHEST} operations is wrong"
    work.limits["acc_distance"] = max(found, allowed)
    if found <= allowed:
        return RIGHT, f"updates of an accumulator may be {allowed} operations apart"
    return WRONG, f"updates of an accumulator have to be {found} operations apart, and the file says {allowed}"


def _allocation(work: _Examination) -> tuple[str, str]:
    found = limits.largest_allocation(work.bench)
    if found >= limits.GRANTED:
        at_least = "at least " if found == limits.MOST_MEMORY else ""
        return RIGHT, f"{at_least}{found >> 20:,} MiB in one piece"
    work.limits["largest_allocation"] = found
    return WRONG, f"{found / (1 << 20):,.2f} MiB in one piece, where VTA's libraries give {limits.GRANTED >> 20} MiB"


def _tokens(work: _Examination) -> tuple[str, str]:
    least, where = MOST_TOKENS, ""
    for queue in range(len(QUEUES)):
        found = limits.most_tokens(work.bench, work.chip, queue)
        if work.bench.hung:
            work.limits["tokens"] = 1
            return WRONG, f"{MOST_TOKENS} tokens {limits.queue_name(queue)}: {work.bench.hung}"
        if found < least:
            least, where = found, limits.queue_name(queue)
    work.limits["tokens"] = least
    if least == MOST_TOKENS:
        return RIGHT, f"each queue holds {MOST_TOKENS} tokens"
    return WRONG, f"the queue {where} holds {least} tokens, and VTA's hold {MOST_TOKENS}"


# Times -------------------------------------------------------------------------------------------
def _times(work: _Examination) -> None:
    features = tuple(dict.fromkeys(kind.feature for kind in timing.KINDS))
    told = (*features, "time_submission")
    blocked = [work.blocked(feature, _TIMED) for feature in told]
    if any(blocked):
        return
    kinds = [kind for kind in timing.KINDS if all(work.right(name) for name in _NEEDS.get(kind.name, ()))]
    try:
        times = timing.measure(work.bench, work.chip, work.repeats, kinds)
    except (Fault, OneShotError) as error:
        for feature in told:
            work.say(feature, NOT_TRIED, f"a timed program fails: {error}")
        return
    model = f"the {work.chip.design} design's model"
    if times.foreign:
        for feature in told:
            work.say(
                feature, NOT_TRIED,
                f"times do not follow {model} ({times.deviation:.0%} off): a simulator, or another design",
            )  # fmt: skip
        return
    work.times = times
    for feature in features:
        own = [kind for kind in kinds if kind.feature == feature]
        slow = [kind for kind in own if times.slopes[kind.name][0] > timing.SLOW * times.slopes[kind.name][1]]
        parts = [f"{times.slopes[kind.name][0]:,.2f} ({times.slopes[kind.name][1]:,.2f}) a {kind.name}" for kind in own]
        verdict = SLOW if slow else RIGHT
        work.say(feature, verdict if own else NOT_TRIED, f"cycles, in brackets the file's: {', '.join(parts)}")
    work.say("time_submission", RIGHT, f"{times.submission * 1e6:,.1f} us around a run")


# The board file ------------------------------------------------------------------------------------
def _with_board(work: _Examination, name: str) -> Accelerator:
    """The accelerator that was found, with what it cannot do."""
    chip = work.chip
    features = {feature: one.verdict for feature, one in work.findings.items()}
    if work.findings["acc_distance"].verdict != RIGHT and "acc_distance" not in work.limits:
        work.limits["acc_distance"] = limits.FARTHEST
    data: dict[str, Any] = {
        "device": name,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "driver": work.bench.board.configuration,
        "features": features,
        "limits": work.limits,
    }
    if work.times is not None:
        times = work.times
        data["timing"] = {key: {"value": value, "error": times.errors.get(key)} for key, value in times.keys.items()}
        data["timing_deviation"] = times.deviation
        given = json.loads(chip.to_json())
        given |= times.keys
        try:
            chip = Accelerator.from_json(given, chip.name)
        except AcceleratorError as error:
            raise DeviceError(f"the times that were found are no accelerator's: {error}") from error
    return dataclasses.replace(chip, board=Board.from_json(data))


def configuration_note(board: RawBoard, chip: Accelerator) -> str:
    """What a driver says of itself that is not what the accelerator is; "" if nothing."""
    says, asked = board.configuration, build.configuration(chip)
    return "" if says is None or says == asked else f"the driver says that it is built for {says}; asked for {asked}"
