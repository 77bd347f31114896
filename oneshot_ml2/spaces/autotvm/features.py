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
from oneshot_ml2.spaces import base, designs
from oneshot_ml2.spaces.autotvm import plan
from oneshot_ml2.spaces.autotvm.space import canonical
from oneshot_ml2.spaces.autotvm.template import Task, make_task, schedules
from oneshot_ml2.spaces.autotvm.validity import MAX_INSTRUCTIONS, MAX_SIZE, recurrence
from oneshot_ml2.spaces.registry import TVM_KIND
from oneshot_ml2.vta.bound import engine_bound

if TYPE_CHECKING:
    from oneshot_ml2.spaces.space import ScheduleSpace

# Raised whenever a feature changes its meaning; weights of another version are refused. The second is of the features
# of weights that know the HLS design: the same, and more.
FEATURE_VERSION, HLS_FEATURE_VERSION = 1, 2

# Latencies are predicted beside this share of the estimate, which few schedules are faster than.
_BELOW = 0.9

# Logarithms of sizes of a task, by name: of the accelerator, then of the workload.
_ACCELERATOR_LOGS = {
    "burst beats": "burst",
    "memory latency": "latency",
    "instruction queue": "queue",
    "input elements": "inp_depth",
    "weight elements": "wgt_depth",
    "accumulator elements": "acc_depth",
    "micro-ops": "uop_depth",
}
_WORKLOAD_LOGS = {
    "batch blocks": "nb",
    "input channel blocks": "ci",
    "output channel blocks": "co",
    "input height": "h",
    "input width": "w",
    "output height": "oh",
    "output width": "ow",
    "kernel height": "kh",
    "kernel width": "kw",
    "stride height": "sh",
    "stride width": "sw",
    "pad height": "ph",
    "pad width": "pw",
}
_SIZES = ("batch", "block", "bus bytes")
_EXTRA = ("stages", "padded", "engine bound", "compute share", "read share", "store share")
TASK_FEATURES = (*_SIZES, *_ACCELERATOR_LOGS, *_WORKLOAD_LOGS, *_EXTRA)

_TILES = ("h", "w", "ci", "co")
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
    *(f"{kind} {name}" for name in _TILES for kind in ("tile", "tiles")),
    "log estimate / engine bound",
    *(f"{form} {name} / estimate" for name in _CYCLES for form in ("log", "linear")),
    *(text for name in _COUNTS for text in (f"log {name}", f"linear {name} x 16 / estimate")),
    *(f"log {name}" for name in _LOGS),
    *(f"{form} {name}" for name in _USES for form in ("log", "linear", "fits")),
    *(f"{form} {name} / limit" for name in _LIMITED for form in ("log", "sharp")),
    *_FACTS,
)
FEATURES = TASK_FEATURES + SCHEDULE_FEATURES
_HLS_SCHEDULE_FEATURES = ("recurs within the accumulator distance",)
FEATURE_SETS = designs.feature_sets(
    FEATURE_VERSION, HLS_FEATURE_VERSION, TASK_FEATURES, SCHEDULE_FEATURES, _HLS_SCHEDULE_FEATURES
)

_CYCLE_COLUMNS, _COUNT_COLUMNS, _LOG_COLUMNS, _USE_COLUMNS, _LIMITED_COLUMNS = (
    np.array([plan.SUMMARY.index(name) for name in names], dtype=np.int64)
    for names in (_CYCLES, _COUNTS, _LOGS, _USES, _LIMITED)
)
# Columns of a summary that count or measure something: no cycles, limits or verdicts.
COUNTED = np.arange(plan.SUMMARY.index("inp bytes"), len(plan.SUMMARY))
_LINEAR_LIMIT, _USE_FLOOR, _SHARP, _TURN_LIMIT = 4.0, 1 / 64, 4.0, 8.0


def check_space(space: ScheduleSpace) -> None:
    """Raise OneShotError unless the space is one that features are defined for here."""
    if space.kind != TVM_KIND:
        raise OneShotError(f"these are the features of the schedule space {TVM_KIND!r}, not of {space.kind!r}")


def task_features(space: ScheduleSpace, version: int = FEATURE_VERSION) -> NDArray[np.float32]:
    """A version's features of a space's workload and accelerator, float32 (task features,)."""
    check_space(space)
    task, _, _ = make_task(space.workload, space.accelerator)
    chip, bound = space.accelerator, engine_bound(space.workload, space.accelerator)
    row = [math.log2(1 + size) for size in (chip.batch, chip.block, chip.bus_bytes)]
    row += [math.log2(1 + task[field]) for field in (*_ACCELERATOR_LOGS.values(), *_WORKLOAD_LOGS.values())]
    row += [float(task.stages), float(task.ph > 0 or task.pw > 0), math.log2(bound.bound)]
    row += [part / bound.bound for part in (bound.compute, bound.read_beats, bound.store_cycles)]
    if version == HLS_FEATURE_VERSION:
        row = designs.with_design(space.accelerator, TASK_FEATURES, row)
    return np.array(row, dtype=np.float32)


def accelerator_and_workload(row: NDArray[np.float32], version: int = FEATURE_VERSION) -> dict[str, float]:
    """The named task features that a person can read a range of: all but the derived ones."""
    named = zip(FEATURE_SETS[version].task, row, strict=True)
    return {name: float(value) for name, value in named if name not in (*_EXTRA, designs.FLAG)}


@njit(cache=True, nogil=True)
def _encode_rows(task, batch, summary, rows, limits, log_engine_bound, out):  # type: ignore[no-untyped-def]
    """Schedule features of schedules (n,) in place; ``rows``: their ``summary`` by name; ``limits``: of `_LIMITED`."""
    padded = task.ph > 0 or task.pw > 0
    for i in range(len(batch)):
        v, s, figures = batch[i], summary[i], rows[i]
        at = 0
        # In the order of `_TILES`.
        tiles = ((v.tile_h, task.oh), (v.tile_w, task.ow), (v.tile_ci, task.ci), (v.tile_co, task.co))
        for size, extent in tiles:
            out[i, at] = np.log2(size)
            out[i, at + 1] = np.log2(extent // size)
            at += 2
        estimate = figures.estimate
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
        by_rows, by_channels = v.h_nthread > 1, v.oc_nthread > 1
        few = figures.accumulators_in_turn < 3
        facts = (
            figures.inp_dimensions > 2 and not padded,
            figures.out_dimensions > 2,
            padded and v.tile_ci > 1,
            padded and figures.inp_rows == 1,
            padded and figures.inp_columns == 1,
            figures.rows_left_over > 0,
            figures.channels_left_over > 0,
            by_rows,
            by_channels,
            by_rows and by_channels,
            figures.reduces_in_turn > 0,
        )
        for fact in facts:
            out[i, at] = 1.0 if fact else 0.0
            at += 1
        out[i, at] = min(figures.accumulators_in_turn, _TURN_LIMIT)
        out[i, at + 1] = 1.0 if few else 0.0
        out[i, at + 2] = 1.0 if few and figures.reduces_in_turn > 0 else 0.0


@njit(cache=True, nogil=True)
def _encode_hls_rows(task, batch, out):  # type: ignore[no-untyped-def]
    """What `HLS_FEATURE_VERSION` adds to the features of schedules (n,), in place."""
    for i in range(len(out)):
        out[i, 0] = 1.0 if recurrence(task, batch[i]) < task.acc_distance else 0.0


@dataclass(frozen=True)
class Candidates(base.Candidates):
    """Schedules of a space and what closed forms say of them; ``summary``: `plan.SUMMARY` of each."""

    @property
    def figures(self) -> NDArray[np.void]:
        """``summary`` by name, `plan.FIGURES` (n,)."""
        return plan.figures_of(self.summary)

    @property
    def bound(self) -> NDArray[np.float64]:
        """What latencies are predicted beside, float64 (n,): a share of the estimate; no proven bound."""
        return _BELOW * self.estimate

    @property
    def estimate(self) -> NDArray[np.float64]:
        """The `plan` estimate, float64 (n,)."""
        return self.figures["estimate"]

    @property
    def reads(self) -> NDArray[np.float64]:
        """Bytes of inputs and weights, float64 (n,)."""
        return self.figures["inp_bytes"] + self.figures["wgt_bytes"]

    @property
    def roofline(self) -> NDArray[np.float64]:
        """Cycles of the compute or of the load module with nothing beside it, whichever are more, float64 (n,)."""
        return np.maximum(self.figures["compute"], self.figures["load"])


@dataclass(frozen=True)
class Encoder:
    """What turns schedules of a ``space`` into numbers.

    ``task``: of the template; ``limits``: of `_LIMITED`, float64; ``log_bound``: log2 of the engine bound;
    ``version``: of the features.
    """

    space: ScheduleSpace
    task: Task
    limits: NDArray[np.float64]
    log_bound: float
    version: int = FEATURE_VERSION

    @classmethod
    def of(cls, space: ScheduleSpace, version: int = FEATURE_VERSION) -> Encoder:
        """Raises OneShotError: a space other than ``autotvm``; WorkloadError: one that cannot be made."""
        check_space(space)
        task, _, _ = make_task(space.workload, space.accelerator)
        uops = float(task.uop_depth)
        limits = np.array([uops, uops, uops, MAX_INSTRUCTIONS, MAX_SIZE, MAX_SIZE], dtype=np.float64)
        return cls(space, task, limits, math.log2(engine_bound(space.workload, space.accelerator).bound), version)

    def candidates(self, indices: NDArray[np.int64], values: NDArray[np.int64]) -> Candidates:
        """Indices (n,) and their canonical knob values (n, 7) with their closed forms."""
        return Candidates(indices, values, plan.summaries_of(self.task, values))

    def candidates_at(self, indices: NDArray[np.int64]) -> Candidates:
        """The schedules at some indices (n,), aliases by the values of those that stand for them; on this thread."""
        values = canonical(self.space.workload, self.space.accelerator, self.space.values(indices))
        return Candidates(indices, values, plan.summaries_of(self.task, values, parallel=False))

    def encode(self, given: base.Candidates, out: NDArray[np.float32]) -> None:
        """The features of candidates into the first columns of float32 (n, at least so many), on this thread."""
        batch, summary = schedules(given.values), np.ascontiguousarray(given.summary)
        _encode_rows(self.task, batch, summary, plan.figures_of(summary), self.limits, self.log_bound, out)
        if self.version == HLS_FEATURE_VERSION:
            _encode_hls_rows(self.task, batch, out[:, len(SCHEDULE_FEATURES) :])


def all_candidates(space: ScheduleSpace, fitting: bool = False) -> Candidates:
    """All canonical schedules of a space; with ``fitting`` those whose tiles the SRAMs hold."""
    given = candidates_at(space, space.table())
    if fitting:
        given = given.take(np.flatnonzero((given.summary[:, _USE_COLUMNS] <= 1.0).all(axis=1)))
    return given


def without_hazards(space: ScheduleSpace, given: base.Candidates) -> base.Candidates:
    """The same candidates: no schedule of the space has one."""
    return given


def candidates_at(space: ScheduleSpace, indices: NDArray[np.int64]) -> Candidates:
    """The schedules at some indices (n,); aliases by the values of those that stand for them."""
    return Encoder.of(space).candidates_at(indices)


def with_waits(space: ScheduleSpace, given: base.Candidates) -> base.Candidates:
    """The same candidates: nothing more is known of what modules wait for."""
    return given


def waiting(space: ScheduleSpace, given: base.Candidates) -> NDArray[np.float64]:
    """A guess of the cycles of candidates of a space, float64 (n,): their `Candidates.estimate`."""
    return given.estimate
