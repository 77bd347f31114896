"""A program's timeline as a trace file for Perfetto."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.version import __version__
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.program import Memory, Opcode, element_bytes
from oneshot_ml2.vta.timeline import IDLE, ROWS, WAIT, Slice

if TYPE_CHECKING:
    from oneshot_ml2.vta.program import Program
    from oneshot_ml2.vta.timeline import Timeline

# The model's layers come first; a row's thread id in the file is its number plus this.
_LAYER_ROW = -1
_FIRST_TID = 2


@dataclass(frozen=True)
class Part:
    """A program that runs, and the cycles [begin, end) of it in which each of its layers does, by name and in order."""

    timeline: Timeline
    layers: tuple[tuple[str, int, int], ...]


def part(line: Timeline, program: Program, names: Sequence[str]) -> Part:
    """A program of one layer, or of joined ones: a layer ends when the last instruction before the next one's does.

    Each layer begins with the load of its micro-ops, whose buffer in a joined program is ``<number>.uops``.
    """
    if len(names) == 1:
        return Part(line, ((names[0], 0, line.cycles),))
    insns = program.insns
    loads = np.flatnonzero((insns["op"] == Opcode.LOAD) & (insns["mem"] == Memory.UOP) & (insns["x"] > 0))
    address = insns["dram"][loads] * element_bytes(program.accelerator)[Memory.UOP]
    ends = {piece.args["instruction"]: piece.end for piece in line.slices if "executes from" in piece.args}
    layers, begin = [], 0
    for number, name in enumerate(names):
        end = line.cycles
        if number + 1 < len(names):
            following = loads[address >= program.buffer(f"{number + 1}.uops").address]
            end = ends.get(int(following[0]) - 1, line.cycles)
        layers.append((name, begin, end))
        begin = end
    return Part(line, tuple(layers))


def microseconds(cycles: NDArray[np.int64] | Sequence[int], clock_mhz: float) -> NDArray[np.float64]:
    """Cycles as the time stamps of a trace file: whole nanoseconds, in microseconds.

    Perfetto multiplies by 1000 and cuts off the fraction, so a value that would lose a nanosecond there is the next
    larger double: slices that touch still do.
    """
    nanoseconds = np.rint(np.asarray(cycles, np.float64) * 1000 / clock_mhz).astype(np.int64)
    result = nanoseconds / 1000
    lost = (result * 1000).astype(np.int64) != nanoseconds
    return np.where(lost, np.nextafter(result, np.inf), result)


def trace_events(name: str, clock_mhz: float, parts: Sequence[Part]) -> list[dict[str, Any]]:
    """Programs that run one after the other as events of the Chrome trace event format, one process, a row a thread."""
    events: list[dict[str, Any]] = [
        {"ph": "M", "pid": 1, "tid": 0, "ts": 0, "name": "process_name", "args": {"name": name}},
        *(
            {"ph": "M", "pid": 1, "tid": tid, "ts": 0, "name": what, "args": args}
            for tid, title in enumerate(("layer", *ROWS), _FIRST_TID + _LAYER_ROW)
            for what, args in (
                ("thread_name", {"name": title}),
                ("thread_sort_index", {"sort_index": tid}),
            )
        ),
    ]
    offset = 0
    for entry in parts:
        line = entry.timeline
        layers = [
            Slice(_LAYER_ROW, begin, end, title, "layer", {"ends": "hangs" if line.hang else "FINISH"})
            for title, begin, end in entry.layers
        ]
        slices = [*layers, *line.slices]
        starts = np.array([piece.start for piece in slices], np.int64) - line.begin + offset
        ends = np.array([piece.end for piece in slices], np.int64) - line.begin + offset
        begin, finish = microseconds(starts, clock_mhz), microseconds(ends, clock_mhz)
        # Durations are nanoseconds, too; as differences of doubles they would not be.
        lasting = microseconds(np.rint(finish * 1000).astype(np.int64) - np.rint(begin * 1000).astype(np.int64), 1000)
        for index, piece in enumerate(slices):
            args = {"cycle": piece.start, "cycles": piece.end - piece.start, **piece.args}
            category = WAIT if piece.kind == IDLE else piece.kind
            events.append(_event(_FIRST_TID + piece.row, piece.name, category, begin[index], lasting[index], args))
        offset += line.cycles
    return events


def _event(tid: int, name: str, category: str, ts: float, dur: float, args: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "ph": "X", "pid": 1, "tid": tid, "name": name, "cat": category, "ts": float(ts), "dur": float(dur),
        "args": dict(args),
    }  # fmt: skip


def document(name: str, accelerator: Accelerator, parts: Sequence[Part]) -> str:
    """The text of a trace file."""
    clock = float(accelerator.clock_mhz)
    head = {
        "displayTimeUnit": "ns",
        "otherData": {
            "model": name,
            "accelerator": accelerator.name,
            "clock_mhz": clock,
            "cycles": sum(entry.timeline.cycles for entry in parts),
            "version": f"oneshot-ml2 {__version__}",
        },
    }
    events = trace_events(f"{name} on {accelerator.name}, {clock:g} MHz", clock, parts)
    encode = json.JSONEncoder(separators=(",", ":")).encode
    body = ",\n".join(map(encode, events))
    return f'{encode(head)[:-1]},"traceEvents":[\n{body}\n]}}\n'
