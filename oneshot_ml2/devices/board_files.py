"""Published measurements of boards of the HLS design: three forms of files, read into layers with records.

What tells them apart is their content: campaigns of TVM's schedules with outcomes by record (``records`` and
``workloads``), AutoTVM's trials and winners (``tuning``, ``winners``), and micro-benchmarks of DMA and ALU (records
with a ``case_id``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.common.reading import shown, whole_number
from oneshot_ml2.spaces.registry import TVM_KIND, backend
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.program import AluOp, Flag, Insns, Memory, Opcode, insns_of
from oneshot_ml2.workload.conv2d import Conv2d

# What a record ended with; only the first two have a time. `TIMED`: it ran, and nobody looked at its result; `UNTRIED`
# says nothing of the schedule.
CORRECT, TIMED, LOWERING, RUN_TIME, WRONG, TIMEOUT, UNTRIED = (
    "correct",
    "timed",
    "lowering",
    "run_time",
    "wrong_result",
    "timeout",
    "untried",
)
OUTCOMES = (CORRECT, TIMED, LOWERING, RUN_TIME, WRONG, TIMEOUT)
# AutoTVM's error numbers; unless told to, it does not look at results.
_AUTOTVM = {
    0: TIMED,
    1: LOWERING,
    2: LOWERING,
    3: LOWERING,
    4: RUN_TIME,
    5: WRONG,
    6: LOWERING,
    7: TIMEOUT,
}
# Kinds of times, by what they hold beside a program's own: the submission seen by a busy poll; by a poll that sleeps;
# and a whole call, whose host generates the instructions.
BUSY, DEVICE, WALL = "busy", "device", "wall"
# Seconds of a call after which AutoTVM's sessions with the Pynq were over, which counts as a run-time error: its
# longest call with a time took 2.78 s, and the shortest of those that it lost would take 4.18 s.
_SESSION = 3.5
# Board -> the preset of its design.
BOARDS = {"axu5evb": "axu5evb-hls", "pynq": "pynq-hls"}
_KNOBS = backend(TVM_KIND).KNOBS


@dataclass(frozen=True)
class Record:
    """One measurement of a schedule, or of a case of a micro-benchmark.

    Attributes:
        index: of the schedule in TVM's space, or of the case.
        knobs: values by `KNOBS` as the file gives them; empty: it gives none.
        outcome: one of `OUTCOMES`, or `UNTRIED`.
        seconds: kind of time -> seconds; empty unless it is correct, or at least ran.
        dma_bytes: bytes that its LOADs and STOREs moved; None where the file does not say.
    """

    index: int
    knobs: tuple[int, ...]
    outcome: str
    seconds: Mapping[str, float]
    dma_bytes: int | None = None


@dataclass(frozen=True)
class BoardLayer:
    """What a file says of one workload; ``cases``: programs of a micro-benchmark, then there is no ``workload``;
    ``limit``: seconds of a whole call that whoever measured did not wait for, None if they always did."""

    name: str
    board: str
    workload: Conv2d | None
    records: tuple[Record, ...]
    cases: tuple[Insns, ...] = field(default=(), repr=False)
    limit: float | None = None

    @property
    def key(self) -> tuple[str, Conv2d | str]:
        """What is the same for all that is known of a workload on a board."""
        return (self.board, self.workload if self.workload is not None else self.name)

    def space(self, accelerator: Accelerator) -> ScheduleSpace:
        """TVM's space of the workload, which there has to be."""
        assert self.workload is not None
        return ScheduleSpace(self.workload, accelerator, TVM_KIND)

    def programs(self, accelerator: Accelerator, indices: NDArray[np.int64]) -> Iterator[Insns]:
        """The instructions (n,) of schedules that lower, or of cases; each may be overwritten by the next one."""
        if self.workload is None:
            return iter([self.cases[i] for i in indices.tolist()])
        return self.space(accelerator).programs(indices)

    @cached_property
    def timed(self) -> dict[int, dict[str, float]]:
        """Index of each configuration that ran, and was not wrong -> kind of time -> median seconds of its repeats."""
        found: dict[int, dict[str, list[float]]] = {}
        for record in self.records:
            if record.outcome in (CORRECT, TIMED) and record.seconds:
                times = found.setdefault(record.index, {})
                for kind, seconds in record.seconds.items():
                    times.setdefault(kind, []).append(seconds)
        return {index: {k: float(np.median(v)) for k, v in times.items()} for index, times in found.items()}


@dataclass(frozen=True)
class BoardFile:
    """A file of measurements: its board, what it says of the VTA (VTA's keys), and its layers, one a workload."""

    path: str
    board: str
    config: Mapping[str, Any]
    layers: tuple[BoardLayer, ...]

    def accelerator(self, given: Accelerator | None) -> Accelerator:
        """The accelerator of the board, or the one that was given in its place.

        Raises:
            OneShotError: the file tells of another VTA than the board's.
        """
        chip = given or Accelerator.load(BOARDS[self.board])
        keys = dict(chip_keys(chip))
        for key, value in self.config.items():
            if key in keys and value != keys[key]:
                raise OneShotError(
                    f"{self.path}: measured with {key} {shown(value)}, but {chip.name} has {keys[key]}; "
                    "give the accelerator it was measured on with --accelerator"
                )
        return chip


def chip_keys(chip: Accelerator) -> Iterator[tuple[str, int]]:
    """The keys of VTA's JSON that decide what a schedule is, and what a cycle takes."""
    for memory in ("uop", "inp", "wgt", "acc"):
        yield f"LOG_{memory.upper()}_BUFF_SIZE", getattr(chip, f"log_{memory}_buff_size")
    yield "LOG_BATCH", chip.log_batch
    yield "LOG_BLOCK", chip.log_block
    yield "BUS_BITS", chip.bus_bits
    yield "CLOCK_MHZ", chip.clock_mhz


def is_board_file(data: Any) -> bool:
    """Whether a JSON value is one of the three forms."""
    return isinstance(data, dict) and _form(data) is not None


def board_file(path: str | Path, data: Mapping[str, Any]) -> BoardFile:
    """Read a file of one of the three forms.

    Raises:
        OneShotError: damaged.
    """
    form = _form(data)
    assert form is not None
    try:
        config = dict(data["accelerator"])
        layers = {"campaign": _campaign, "trials": _trials, "benchmark": _benchmark}[form](data)
        board = "pynq" if form == "trials" else "axu5evb"
    except OneShotError as error:
        raise OneShotError(f"{path}: {error}") from error
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise OneShotError(f"{path}: damaged, {type(error).__name__}: {error}") from error
    return BoardFile(str(path), board, config, _joined(layers, board))


def _form(data: Mapping[str, Any]) -> str | None:
    records = data.get("records")
    first = records[0] if isinstance(records, list) and records else None
    if not isinstance(data.get("accelerator"), dict):
        return None
    if isinstance(data.get("workloads"), dict) and isinstance(records, list):
        return "campaign"
    if isinstance(first, dict) and "case_id" in first:
        return "benchmark"
    return "trials" if isinstance(data.get("tuning", data.get("winners")), dict) else None


def _joined(layers: Sequence[BoardLayer], board: str) -> tuple[BoardLayer, ...]:
    """One layer a workload, in the order in which they came; what has another name is named by the first one."""
    found: dict[tuple[str, Conv2d | str], BoardLayer] = {}
    for layer in layers:
        known = found.get(layer.key)
        records = (*known.records, *layer.records) if known else layer.records
        name = known.name if known else layer.name
        found[layer.key] = BoardLayer(name, board, layer.workload, records, layer.cases, layer.limit)
    return tuple(found.values())


def _pair(value: Any, what: str) -> tuple[int, int]:
    """A number, or one for rows and one for columns."""
    pair = value if isinstance(value, list) else [value, value]
    return whole_number(pair[0], what), whole_number(pair[1], what)


def _conv(w: Mapping[str, Any]) -> Conv2d:
    """The convolution of the template: shift 8, clip to 0..127; four pads are top, left, bottom, right."""
    kernel, pad = _pair(w["kernel"], "kernel"), w["pad"]
    pads: Any = (pad[0], pad[2], pad[1], pad[3]) if isinstance(pad, list) and len(pad) == 4 else _pair(pad, "pad")
    return Conv2d(w["n"], w["ci"], w["h"], w["w"], w["co"], *kernel, stride=_pair(w["stride"], "stride"), padding=pads)


def _seconds(value: Any, scale: float) -> float:
    """A time, in a unit of ``scale`` seconds."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise OneShotError(f"a time is {shown(value)}; allowed: a number above 0")
    return float(value) * scale


def _campaign_outcome(record: Mapping[str, Any]) -> str:
    if record["lowering"] != "ok":
        return LOWERING
    board = record.get("board")
    if board is None:
        return UNTRIED
    text = str(board)
    for word, outcome in (("pass", CORRECT), ("wrong", WRONG), ("timeout", TIMEOUT)):
        if word in text:
            return outcome
    return RUN_TIME


def _campaign(data: Mapping[str, Any]) -> list[BoardLayer]:
    """Schedules of TVM's template by layer; those of changed templates (``residency_records``) are not TVM's."""
    by_workload: dict[str, list[Record]] = {name: [] for name in data["workloads"]}
    for record in data["records"]:
        outcome, seconds = _campaign_outcome(record), {}
        if outcome == CORRECT and record["ms_median"] is not None:
            seconds[WALL] = _seconds(record["ms_median"], 1e-3)
            # What several submissions took is not told apart.
            if record.get("device_run_ms") is not None and record.get("submissions") == 1:
                seconds[DEVICE] = _seconds(record["device_run_ms"], 1e-3)
        dma = record.get("dma")
        by_workload[record["workload"]].append(
            Record(
                whole_number(record["config_index"], "config_index", 0),
                tuple(whole_number(record["knobs"][name], name) for name in _KNOBS),
                outcome,
                seconds,
                None if dma is None else sum(whole_number(dma[name], name, 0) for name in ("inp", "wgt", "out")),
            )
        )
    return [
        BoardLayer(str(data["workloads"][name]["name"]), "axu5evb", _conv(data["workloads"][name]), tuple(records))
        for name, records in by_workload.items()
    ]


def _trials(data: Mapping[str, Any]) -> list[BoardLayer]:
    """AutoTVM's trials, and the winners of other runs: rows of index, knobs, error and milliseconds."""
    layers = []
    for part in ("tuning", "winners"):
        for source, tasks in data.get(part, {}).items():
            for number, task in enumerate(tasks):
                records = []
                for index, knobs, error, times in task["rows"]:
                    outcome = _AUTOTVM.get(error, RUN_TIME)
                    seconds = {}
                    if outcome == TIMED and times is not None:
                        seconds[WALL] = float(np.mean([_seconds(ms, 1e-3) for ms in times]))
                    values = tuple(whole_number(value, "a knob") for value in knobs)
                    records.append(Record(whole_number(index, "an index", 0), values, outcome, seconds))
                name = f"{source.removesuffix('.log')}:{number}"
                layers.append(BoardLayer(name, "pynq", _conv(task["workload"]), tuple(records), limit=_SESSION))
    return layers


def _benchmark(data: Mapping[str, Any]) -> list[BoardLayer]:
    """Cases of loading ACC, shifting it and storing it, all timed by a busy poll."""
    records, cases = [], []
    for number, case in enumerate(data["records"]):
        cases.append(_case_program(case))
        seconds = {BUSY: _seconds(case["device_run_wait_us"], 1e-6)}
        moved = whole_number(case["load_bytes"], "load_bytes", 0) + whole_number(case["store_bytes"], "store_bytes", 0)
        records.append(Record(number, (), CORRECT, seconds, moved))
    return [BoardLayer("micro-benchmarks", "axu5evb", None, tuple(records), tuple(cases))]


def _case_program(case: Mapping[str, Any]) -> Insns:
    """The program of a case: one LOAD ACC for each operand, ALU passes over all of it, and its stores.

    A contiguous block is one row; strides and pads keep rows apart. Of ``alu_repeats`` passes one goes with each
    further operand: two operands are added in the pass that one is shifted in.
    """
    x, y, pad = (whole_number(case[name], name, 0, 1 << 16) for name in ("load_x", "load_y", "pad"))
    loads, stores = (whole_number(case[name], name, 1, 64) for name in ("load_calls", "store_calls"))
    passes = max(1, whole_number(case["alu_repeats"], "alu_repeats", 1, 1 << 16) - (loads - 1))
    kind = case["access_kind"]
    padded, strided = kind == "padded", kind == "strided"
    # Contiguous cases give the block that is stored, pads included; strided ones the rows with their gaps.
    height, width = whole_number(case["y"], "y", 1, 1 << 16), whole_number(case["x"], "x", 1, 1 << 16)
    if strided:
        width = whole_number(case["load_bytes"], "load_bytes", 1) // (64 * height)
    count = height * width
    shape = (y, x if padded else width, x) if padded or strided else (1, count, count)
    pads = (pad,) * 4 if padded else (0,) * 4
    rows = [[Opcode.LOAD, 0, Memory.UOP, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0]]
    rows += [[Opcode.LOAD, 0, Memory.ACC, 0, 0, *shape, *pads, 0, 0] for _ in range(loads)]
    rows += [[Opcode.ALU, 0, 0, 0, 1, 1, count, 0, 1, 0, 1, AluOp.SHR, 1, 0] for _ in range(passes)]
    rows[-1][1] = Flag.PUSH_NEXT
    rows += [[Opcode.STORE, 0, Memory.OUT, 0, 0, 1, count, count, 0, 0, 0, 0, 0, 0] for _ in range(stores)]
    rows[-stores][1] |= Flag.POP_PREV
    rows[-1][1] |= Flag.PUSH_PREV
    # What takes the last store's token before FINISH, which waits for nothing itself.
    rows.append([Opcode.LOAD, Flag.POP_NEXT, Memory.UOP, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    rows.append([Opcode.FINISH, 0, *[0] * 12])
    return insns_of(rows)
