"""What the network sees of a schedule of the space ``autotvm``.

Every closed-form figure is `plan`'s. What limits sharply (SRAM sizes, dimensions of a copy, what threads leave
over) is shown sharply, one fact at a time: which of them make a schedule invalid, and in what company, is learnt.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.common.kernels import njit
from oneshot_ml2.common.parallel import in_parallel
from oneshot_ml2.spaces import base
from oneshot_ml2.spaces.autotvm import plan
from oneshot_ml2.spaces.autotvm import space as A
from oneshot_ml2.spaces.registry import TVM_KIND
from oneshot_ml2.vta.bound import engine_bound
from oneshot_ml2.vta.timing import chisel

if TYPE_CHECKING:
    from oneshot_ml2.spaces.space import ScheduleSpace

# Raised whenever a feature changes its meaning; weights of another version are refused.
FEATURE_VERSION = 1

# Latencies are predicted beside this share of the estimate, which few schedules are faster than.
_BELOW = 0.9

# Logarithms of sizes of a task, by name: of the accelerator, then of the workload.
_ACCELERATOR_LOGS = {
    "burst beats": A._TASK_FIELDS + chisel.P_BURST,
    "memory latency": A._TASK_FIELDS + chisel.P_LATENCY,
    "instruction queue": A._TASK_FIELDS + chisel.P_QUEUE,
    "input elements": A.G_INP,
    "weight elements": A.G_WGT,
    "accumulator elements": A.G_ACC,
    "micro-ops": A.G_UOP,
}
_WORKLOAD_LOGS = {
    "batch blocks": A.G_NB,
    "input channel blocks": A.G_CI,
    "output channel blocks": A.G_CO,
    "input height": A.G_H,
    "input width": A.G_W,
    "output height": A.G_OH,
    "output width": A.G_OW,
    "kernel height": A.G_KH,
    "kernel width": A.G_KW,
    "stride height": A.G_SH,
    "stride width": A.G_SW,
    "pad height": A.G_PH,
    "pad width": A.G_PW,
}
_SIZES = ("batch", "block", "bus bytes")
_EXTRA = ("stages", "padded", "engine bound", "compute share", "read share", "store share")
TASK_FEATURES = (*_SIZES, *_ACCELERATOR_LOGS, *_WORKLOAD_LOGS, *_EXTRA)

_TILES = (
    ("h", A.TILE_H, A.G_OH),
    ("w", A.TILE_W, A.G_OW),
    ("ci", A.TILE_CI, A.G_CI),
    ("co", A.TILE_CO, A.G_CO),
)
_CYCLES = (
    "load", "compute", "store", "fetch", "gemm", "epilogue", "uop load", "pads", "step load", "step gemm",
    "tile epilogue", "tile store", "head",
)  # fmt: skip
# Counts that cost a few cycles each, and sizes.
_COUNTS = ("inp bursts", "wgt bursts", "out bursts", "loads", "instructions", "tiles")
_LOGS = ("inp bytes", "wgt bytes", "out bytes", "steps", "reset uops", "gemm uops")
_USES = ("inp use", "wgt use", "acc use")
# Figures with a limit of the ISA or of an SRAM.
_LIMITED = ("reset uops", "gemm uops", "uops", "instructions", "longest run", "widest stride")
_FACTS = (
    "input copy of three dimensions",
    "output copy of three dimensions",
    "padded copy of several planes",
    "padded copy of one row",
    "padded copy of one column",
    "rows left over",
    "channels left over",
    "two threads of rows",
    "two threads of channels",
    "threads both ways",
    "reduces in turn",
    "accumulators in turn",
    "under three in turn",
    "under three in turn, reduces",
)
SCHEDULE_FEATURES = (
    *(f"{kind} {name}" for name, _, _ in _TILES for kind in ("tile", "tiles")),
    "log estimate / engine bound",
    *(f"{form} {name} / estimate" for name in _CYCLES for form in ("log", "linear")),
    *(text for name in _COUNTS for text in (f"log {name}", f"linear {name} x 16 / estimate")),
    *(f"log {name}" for name in _LOGS),
    *(f"{form} {name}" for name in _USES for form in ("log", "linear", "fits")),
    *(f"{form} {name} / limit" for name in _LIMITED for form in ("log", "sharp")),
    *_FACTS,
)
FEATURES = TASK_FEATURES + SCHEDULE_FEATURES

_TILE_COLUMNS = np.array([[knob, extent] for _, knob, extent in _TILES], dtype=np.int64)
_CYCLE_COLUMNS, _COUNT_COLUMNS, _LOG_COLUMNS, _USE_COLUMNS, _LIMITED_COLUMNS = (
    np.array([plan.SUMMARY.index(name) for name in names], dtype=np.int64)
    for names in (_CYCLES, _COUNTS, _LOGS, _USES, _LIMITED)
)
# Columns of a summary that count or measure something: no cycles, limits or verdicts.
COUNTED = np.arange(plan.S_INP_BYTES, len(plan.SUMMARY))
_LINEAR_LIMIT, _USE_FLOOR, _SHARP, _TURN_LIMIT = 4.0, 1 / 64, 4.0, 8.0


def check_space(space: ScheduleSpace) -> None:
    """Raise OneShotError unless the space is one that features are defined for here."""
    if space.kind != TVM_KIND:
        raise OneShotError(f"these are the features of the schedule space {TVM_KIND!r}, not of {space.kind!r}")


def task_features(space: ScheduleSpace) -> NDArray[np.float32]:
    """`TASK_FEATURES` of a space's workload and accelerator, float32 (len(TASK_FEATURES),)."""
    check_space(space)
    p = plan.task_vector(space.workload, space.accelerator)
    chip, bound = space.accelerator, engine_bound(space.workload, space.accelerator)
    row = [math.log2(1 + size) for size in (chip.batch, chip.block, chip.bus_bytes)]
    row += [math.log2(1 + p[column]) for column in (*_ACCELERATOR_LOGS.values(), *_WORKLOAD_LOGS.values())]
    row += [float(p[A.G_ALU]), float(p[A.G_PH] > 0 or p[A.G_PW] > 0), math.log2(bound.bound)]
    row += [part / bound.bound for part in (bound.compute, bound.read_beats, bound.store_cycles)]
    return np.array(row, dtype=np.float32)


def accelerator_and_workload(row: NDArray[np.float32]) -> dict[str, float]:
    """The named task features that a person can read a range of: all but the derived ones."""
    return {name: float(value) for name, value in zip(TASK_FEATURES, row, strict=True) if name not in _EXTRA}


@njit(cache=True, nogil=True)
def _encode_rows(p, values, summary, limits, log_engine_bound, out):  # type: ignore[no-untyped-def]
    """Schedule features of knob values (n, 7) with their summaries, in place; ``limits``: of `_LIMITED`."""
    padded = p[A.G_PH] > 0 or p[A.G_PW] > 0
    for i in range(len(values)):
        v, s = values[i], summary[i]
        at = 0
        for t in range(len(_TILE_COLUMNS)):
            size, extent = v[_TILE_COLUMNS[t, 0]], p[_TILE_COLUMNS[t, 1]]
            out[i, at] = np.log2(size)
            out[i, at + 1] = np.log2(extent // size)
            at += 2
        estimate = s[plan.S_ESTIMATE]
        log_estimate = np.log2(estimate)
        out[i, at] = log_estimate - log_engine_bound
        at += 1
        for c in _CYCLE_COLUMNS:
            out[i, at] = np.log2(1.0 + s[c]) - log_estimate
            out[i, at + 1] = min(s[c] / estimate, _LINEAR_LIMIT)
            at += 2
        for c in _COUNT_COLUMNS:
            out[i, at] = np.log2(1.0 + s[c])
            out[i, at + 1] = min(16.0 * s[c] / estimate, _LINEAR_LIMIT)
            at += 2
        for c in _LOG_COLUMNS:
            out[i, at] = np.log2(1.0 + s[c])
            at += 1
        for c in _USE_COLUMNS:
            out[i, at] = np.log2(_USE_FLOOR + s[c])
            out[i, at + 1] = min(s[c], _LINEAR_LIMIT)
            out[i, at + 2] = 1.0 if s[c] <= 1.0 else 0.0
            at += 3
        for k in range(len(_LIMITED_COLUMNS)):
            share = np.log2((1.0 + s[_LIMITED_COLUMNS[k]]) / (1.0 + limits[k]))
            out[i, at] = share
            out[i, at + 1] = min(max(_SHARP * share, -1.0), 1.0)
            at += 2
        by_rows, by_channels = v[A.H_NTHREAD] > 1, v[A.OC_NTHREAD] > 1
        few = s[plan.S_IN_TURN] < 3
        facts = (
            s[plan.S_INP_DIMENSIONS] > 2 and not padded,
            s[plan.S_OUT_DIMENSIONS] > 2,
            padded and v[A.TILE_CI] > 1,
            padded and s[plan.S_INP_ROWS] == 1,
            padded and s[plan.S_INP_COLUMNS] == 1,
            s[plan.S_ROWS_LEFT] > 0,
            s[plan.S_CHANNELS_LEFT] > 0,
            by_rows,
            by_channels,
            by_rows and by_channels,
            s[plan.S_REDUCES] > 0,
        )
        for fact in facts:
            out[i, at] = 1.0 if fact else 0.0
            at += 1
        out[i, at] = min(s[plan.S_IN_TURN], _TURN_LIMIT)
        out[i, at + 1] = 1.0 if few else 0.0
        out[i, at + 2] = 1.0 if few and s[plan.S_REDUCES] > 0 else 0.0


@dataclass(frozen=True)
class Candidates(base.Candidates):
    """Schedules of a space and what closed forms say of them; ``summary``: `plan.SUMMARY` of each."""

    @property
    def bound(self) -> NDArray[np.float64]:
        """What latencies are predicted beside, float64 (n,): a share of the estimate; no proven bound."""
        return _BELOW * self.estimate

    @property
    def estimate(self) -> NDArray[np.float64]:
        """The `plan` estimate, float64 (n,)."""
        return self.summary[:, plan.S_ESTIMATE]

    @property
    def reads(self) -> NDArray[np.float64]:
        """Bytes of inputs and weights, float64 (n,)."""
        return self.summary[:, plan.S_INP_BYTES] + self.summary[:, plan.S_WGT_BYTES]

    @property
    def roofline(self) -> NDArray[np.float64]:
        """Cycles of the compute or of the load module with nothing beside it, whichever are more, float64 (n,)."""
        return np.maximum(self.summary[:, plan.S_COMPUTE], self.summary[:, plan.S_LOAD])


@dataclass(frozen=True)
class Encoder:
    """What turns schedules of a ``space`` into numbers.

    ``p``: `plan.task_vector`; ``limits``: of `_LIMITED`, float64; ``log_bound``: log2 of the engine bound.
    """

    space: ScheduleSpace
    p: NDArray[np.int64]
    limits: NDArray[np.float64]
    log_bound: float

    @classmethod
    def of(cls, space: ScheduleSpace) -> Encoder:
        """Raises OneShotError: a space other than ``autotvm``; WorkloadError: one that cannot be made."""
        check_space(space)
        p = plan.task_vector(space.workload, space.accelerator)
        uops = float(p[A.G_UOP])
        limits = np.array([uops, uops, uops, A._MAX_INSTRUCTIONS, A._MAX_SIZE, A._MAX_SIZE], dtype=np.float64)
        return cls(space, p, limits, math.log2(engine_bound(space.workload, space.accelerator).bound))

    def candidates(self, indices: NDArray[np.int64], values: NDArray[np.int64]) -> Candidates:
        """Indices (n,) and their canonical knob values (n, 7) with their closed forms."""
        summary = np.empty((len(values), len(plan.SUMMARY)))
        in_parallel(lambda begin, end: plan.summaries_into(self.p, values[begin:end], summary[begin:end]), len(values))
        return Candidates(indices, values, summary)

    def candidates_at(self, indices: NDArray[np.int64]) -> Candidates:
        """The schedules at some indices (n,), aliases by the values of those that stand for them; on this thread."""
        values = A.canonical(self.space.workload, self.space.accelerator, self.space.values(indices))
        summary = np.empty((len(values), len(plan.SUMMARY)))
        plan.summaries_into(self.p, values, summary)
        return Candidates(indices, values, summary)

    def encode(self, given: base.Candidates, out: NDArray[np.float32]) -> None:
        """`SCHEDULE_FEATURES` of candidates into the first columns of float32 (n, at least so many), on this thread."""
        _encode_rows(self.p, given.values, given.summary, self.limits, self.log_bound, out)


def all_candidates(space: ScheduleSpace, fitting: bool = False) -> Candidates:
    """All canonical schedules of a space; with ``fitting`` those whose tiles the SRAMs hold."""
    given = candidates_at(space, space.table())
    if fitting:
        given = given.take(np.flatnonzero((given.summary[:, _USE_COLUMNS] <= 1.0).all(axis=1)))
    return given


def candidates_at(space: ScheduleSpace, indices: NDArray[np.int64]) -> Candidates:
    """The schedules at some indices (n,); aliases by the values of those that stand for them."""
    return Encoder.of(space).candidates_at(indices)
