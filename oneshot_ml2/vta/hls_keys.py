"""What the time of VTA's HLS design depends on: the ``HLS_*`` keys of an accelerator's JSON (docs/accelerator.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from oneshot_ml2.common.errors import AcceleratorError

# Cycles are counted in such parts, as a fitted rate need not be whole.
TICKS = 100


@dataclass(frozen=True)
class Key:
    """A key of the JSON: lowest and highest value, unit (TICKS: hundredths of a cycle), and what it is."""

    low: int
    high: int
    unit: str
    help: str


_CYCLES, _TIME = "1/100 cycle", "ns"


@dataclass(frozen=True)
class HlsTiming:
    """Time of the HLS design beside what its source fixes: a beat and a GEMM's micro-op take one cycle.

    Attributes:
        read_row, store_row: latency of each row of a LOAD and of a STORE, 1/100 cycle.
        wgt_beat, alu_op: a bus beat of a LOAD WGT, and a micro-op of the ALU, 1/100 cycle.
        load_start, compute_start, store_start: what an instruction of that module takes beside its work, 1/100 cycle.
        pad: an element of padding, 1/100 cycle.
        acc_distance: operations from one update of an accumulator to the next one in an instruction, at least.
        submission: from the start of the modules until the end is seen, without a program's own time, ns.
        poll: what a driver that sleeps between its looks adds to that, ns.
        call: what a call has beside the run of the device, ns.
        host_instruction: what a runtime takes to generate an instruction, where it does so in every call, ns.
    """

    read_row: int = 5400
    store_row: int = 4300
    wgt_beat: int = 200
    alu_op: int = 200
    load_start: int = 400
    compute_start: int = 2300
    store_start: int = 0
    pad: int = 400
    acc_distance: int = 2
    submission: int = 7_500
    poll: int = 0
    call: int = 0
    host_instruction: int = 0

    def __post_init__(self) -> None:
        for name, key in KEYS.items():
            value = getattr(self, field_of(name))
            if isinstance(value, bool) or not isinstance(value, int) or not key.low <= value <= key.high:
                raise AcceleratorError(f"{name} is {value!r}; allowed: an integer {key.low} to {key.high} ({key.unit})")

    def scaled(self, factors: Mapping[str, float]) -> HlsTiming:
        """With some fields times a factor each, within what their keys allow."""
        keys = {field_of(name): key for name, key in KEYS.items()}
        wanted = {name: round(getattr(self, name) * factor) for name, factor in factors.items()}
        return replace(self, **{name: min(max(v, keys[name].low), keys[name].high) for name, v in wanted.items()})

    def to_keys(self) -> dict[str, int]:
        """Key -> value, all of `KEYS`."""
        return {name: getattr(self, field_of(name)) for name in KEYS}

    @classmethod
    def from_keys(cls, data: Mapping[str, Any]) -> HlsTiming:
        """Those of `KEYS` that a JSON object has; the others are at their defaults.

        Raises:
            AcceleratorError: a value out of range.
        """
        return cls(**{field_of(name): data[name] for name in KEYS if name in data})


def field_of(key: str) -> str:
    """The field of `HlsTiming` of one of `KEYS`."""
    return key.removeprefix("HLS_").lower()


KEYS: dict[str, Key] = {
    "HLS_READ_ROW": Key(0, 1_000_000, _CYCLES, "latency of each row of a LOAD"),
    "HLS_STORE_ROW": Key(0, 1_000_000, _CYCLES, "latency of each row of a STORE"),
    "HLS_WGT_BEAT": Key(1, 10_000, _CYCLES, "a bus beat of a LOAD WGT"),
    "HLS_ALU_OP": Key(1, 10_000, _CYCLES, "a micro-op of the ALU"),
    "HLS_LOAD_START": Key(0, 1_000_000, _CYCLES, "an instruction of the load module, beside its work"),
    "HLS_COMPUTE_START": Key(0, 1_000_000, _CYCLES, "an instruction of the compute module, beside its work"),
    "HLS_STORE_START": Key(0, 1_000_000, _CYCLES, "an instruction of the store module, beside its work"),
    "HLS_PAD": Key(0, 100_000, _CYCLES, "an element of padding"),
    "HLS_ACC_DISTANCE": Key(1, 64, "operations", "from an accumulator's update to the next in an instruction"),
    "HLS_SUBMISSION": Key(0, 1_000_000_000, _TIME, "around a run, until the end is seen"),
    "HLS_POLL": Key(0, 1_000_000_000, _TIME, "what a driver that sleeps between its looks adds"),
    "HLS_CALL": Key(0, 1_000_000_000, _TIME, "around a call, beside the run"),
    "HLS_HOST_INSTRUCTION": Key(
        0, 10_000_000, _TIME, "the host's time for an instruction, where a call generates them"
    ),
}
# What a fit to measurements may change: what a program's cycles are made of.
RATES = tuple(field_of(name) for name, key in KEYS.items() if key.unit == _CYCLES)
