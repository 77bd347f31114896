"""What the network sees of a task and of its schedules: logarithms of sizes, one-hots of choices, closed-form cycles.

Features come in two parts: those of the task (accelerator and workload), the same for all of its schedules, and those
of a schedule. Every closed-form figure is `totals.summaries`'s; nothing here knows a formula of the hardware.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.common.kernels import njit
from oneshot_ml2.common.parallel import in_parallel
from oneshot_ml2.spaces import base, designs
from oneshot_ml2.spaces.full import canonical, totals, waits
from oneshot_ml2.spaces.full.axes import RECURRENCE
from oneshot_ml2.spaces.full.geometry import NARROW, Geometries, geometry_table
from oneshot_ml2.spaces.full.knobs import KNOBS, schedules
from oneshot_ml2.spaces.full.totals import SUMMARY, column
from oneshot_ml2.spaces.registry import DEFAULT_KIND
from oneshot_ml2.vta.bound import engine_bound
from oneshot_ml2.vta.nest import MAX_INSNS, Nest, make_nest

if TYPE_CHECKING:
    from oneshot_ml2.spaces.space import ScheduleSpace

# Raised whenever a feature changes its meaning; weights of another version are refused. The second is of the features
# of weights that know the HLS design: the same, and more. The third is of weights that know what the RTL's modules wait
# for, too, and predict latencies beside the guess that `waits` makes.
FEATURE_VERSION, HLS_FEATURE_VERSION, WAITS_FEATURE_VERSION = 5, 6, 7

# Logarithms of fields of a nest, by name.
ACCELERATOR_LOGS = {
    "batch": "batch",
    "block": "block",
    "bus bytes": "bus",
    "burst beats": "burst",
    "memory latency": "latency",
    "input elements": "inp_depth",
    "weight elements": "wgt_depth",
    "accumulator elements": "acc_depth",
    "micro-ops": "uop_limit",
    "instruction queue": "queue",
}
WORKLOAD_LOGS = {
    "batch blocks": "nb",
    "output channel blocks": "co",
    "input channel blocks": "ci",
    "output height": "oh",
    "output width": "ow",
    "input height": "ih",
    "input width": "iw",
    "kernel height": "kh",
    "kernel width": "kw",
    "stride height": "sh",
    "stride width": "sw",
    "dilation height": "dh",
    "dilation width": "dw",
    "pad top": "pt",
    "pad left": "pl",
    "groups": "groups",
    "output step height": "th",
    "output step width": "tw",
}
FLAGS = {
    "channels innermost": "minor",
    "bias": "bias",
    "bias by GEMM": "bias_gemm_fits",
    "residual": "residual",
    "depthwise": "depthwise",
    "pooling": "pool",
    "half to even": "even",
}
_EXTRA = ("stage cycles", "engine bound", "compute share", "read share", "store share")
TASK_FEATURES = (*ACCELERATOR_LOGS, *WORKLOAD_LOGS, *FLAGS, *_EXTRA)

# What is cut (a knob ``tile_...``), and the extent in the nest.
_TILES = {"co": "co", "h": "oh", "w": "ow", "ci": "ci"}
# Knobs whose values are choices, and how many are told apart.
_CHOICES = {"dataflow": 6, "fold": 3, "head": 3, "bias": 3}
_NUMBERS = ("inp_buffers", "wgt_buffers", "acc_buffers", "pad", "drain")
# A tile: logarithms of its size and of how many there are, and the share of the last one that is filled.
_TILE_FEATURES = tuple(f"{kind} {name}" for name in _TILES for kind in ("tile", "tiles", "last tile"))
_CHOICE_FEATURES = tuple(f"{name}={value}" for name, values in _CHOICES.items() for value in range(values))
# How a summary column is shown: cycles beside the bound, counts that cost a few cycles each, sizes, shares of an SRAM.
_COUNTS = ("loads", "gemms", "steps", "tiles", "instructions")
_SIZES = ("uops", "recurrence")
_USES = ("inp_use", "wgt_use", "acc_use")
_HLS_CYCLES = ("inp_rows", "wgt_rows", "store_rows", "pads", "epilogue")
_CYCLES = tuple(name for name in SUMMARY[1:] if name not in _COUNTS + _SIZES + _USES + _HLS_CYCLES)
SCHEDULE_FEATURES = (
    *_TILE_FEATURES,
    *_CHOICE_FEATURES,
    *_NUMBERS,
    "log bound / engine bound",
    *(f"{form} {name} / bound" for name in _CYCLES for form in ("log", "linear")),
    *(text for name in _COUNTS for text in (f"log {name}", f"linear {name} x 16 / bound")),
    *(f"log {name}" for name in _SIZES),
    "near recurrence",
    "recurs",
    "log micro-ops / limit",
    *(f"{form} {name}" for name in ("micro-ops", "instructions") for form in ("sharp", "sharper", "many")),
    *(f"{form} {name}" for name in _USES for form in ("log", "linear", "fits")),
)
FEATURES = TASK_FEATURES + SCHEDULE_FEATURES
_HLS_SCHEDULE_FEATURES = (
    *(f"{form} {name} / bound" for name in _HLS_CYCLES for form in ("log", "linear")),
    "log recurrence / accumulator distance",
    "recurs within the accumulator distance",
)
_BESIDE = f"log {waits.WAITS[0]} / bound"
_WAIT_FEATURES = (
    _BESIDE,
    *(f"{form} {name} / {waits.WAITS[0]}" for name in waits.WAITS[1:] for form in ("log", "linear")),
)
FEATURE_SETS = designs.feature_sets(
    FEATURE_VERSION, HLS_FEATURE_VERSION, TASK_FEATURES, SCHEDULE_FEATURES, _HLS_SCHEDULE_FEATURES
)
_OF_HLS = FEATURE_SETS[HLS_FEATURE_VERSION]
FEATURE_SETS[WAITS_FEATURE_VERSION] = base.FeatureSet(
    WAITS_FEATURE_VERSION, _OF_HLS.task, _OF_HLS.schedule + _WAIT_FEATURES, _BESIDE
)

_TILE_COLUMNS = np.array([KNOBS.index(f"tile_{name}") for name in _TILES], dtype=np.int64)
_CHOICE_COLUMNS = np.array([[KNOBS.index(knob), values] for knob, values in _CHOICES.items()], dtype=np.int64)
_NUMBER_COLUMNS = np.array([KNOBS.index(knob) for knob in _NUMBERS], dtype=np.int64)
_CYCLE_COLUMNS = np.array([SUMMARY.index(name) for name in _CYCLES], dtype=np.int64)
_HLS_COLUMNS = np.array([SUMMARY.index(name) for name in _HLS_CYCLES], dtype=np.int64)
_COUNT_COLUMNS = np.array([SUMMARY.index(name) for name in _COUNTS], dtype=np.int64)
_SIZE_COLUMNS = np.array([SUMMARY.index(name) for name in _SIZES], dtype=np.int64)
_USE_COLUMNS = np.array([SUMMARY.index(name) for name in _USES], dtype=np.int64)
# Columns of a summary that count or measure something, and the cycles that computing and storing take by themselves: no
# latencies, overlap, limits or verdicts.
_COUNTED = (
    "compute", "store", "read_beats", "inp_beats", "wgt_beats", "loads", "gemms", "steps", "tiles", "instructions",
    "uops", "inp_use", "wgt_use", "acc_use", "recurrence",
)  # fmt: skip
COUNTED = np.array([SUMMARY.index(name) for name in _COUNTED], dtype=np.int64)
_BOUND, _UOPS, _INSTRUCTIONS, _RECURRENCE = (
    SUMMARY.index(name) for name in ("bound", "uops", "instructions", "recurrence")
)
# Linear ratios to the bound are cut here: what is so much slower need not be told apart finely.
_LINEAR_LIMIT = np.float32(4.0)
_USE_FLOOR = np.float32(1 / 64)
# More parts than cores, as some stretches of a space have fewer canonical schedules.
_PARTS = 8
_ONE, _FEW, _SOON = np.float32(1.0), np.float32(8.0), np.float32(RECURRENCE)
_SHARP, _SHARPER, _MANY = np.float32(4.0), np.float32(64.0), np.float32(MAX_INSNS)


def check_space(space: ScheduleSpace) -> None:
    """Raise OneShotError unless the space is one that features are defined for."""
    if space.kind != DEFAULT_KIND:
        raise OneShotError(f"the network knows the schedule space {DEFAULT_KIND!r}, not {space.kind!r}")


def nest_of(space: ScheduleSpace) -> Nest:
    """The nest of a space's workload on its accelerator."""
    return make_nest(space.workload, space.accelerator)


def task_features(space: ScheduleSpace, version: int = FEATURE_VERSION) -> NDArray[np.float32]:
    """A version's features of a space's workload and accelerator, float32 (task features,)."""
    check_space(space)
    nest = nest_of(space)
    bound = engine_bound(space.workload, space.accelerator)
    logs = [*ACCELERATOR_LOGS.values(), *WORKLOAD_LOGS.values()]
    row = [math.log2(1 + nest[name]) for name in logs]
    row += [float(nest[name]) for name in FLAGS.values()]
    row += [float(space.workload.epilogue.stage_cycles), math.log2(bound.bound)]
    row += [part / bound.bound for part in (bound.compute, bound.read_beats, bound.store_cycles)]
    if version != FEATURE_VERSION:
        row = designs.with_design(space.accelerator, TASK_FEATURES, row)
    return np.array(row, dtype=np.float32)


def accelerator_and_workload(row: NDArray[np.float32], version: int = FEATURE_VERSION) -> dict[str, float]:
    """The named task features that a person can read a range of: all but the derived ones."""
    named = zip(FEATURE_SETS[version].task, row, strict=True)
    return {name: float(value) for name, value in named if name not in (*_EXTRA, designs.FLAG)}


def candidates(space: ScheduleSpace) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Knob candidates as int64 (knobs, most), filled with zeros, and how many each knob has, int64 (knobs,)."""
    radix = np.array([len(knob.values) for knob in space.knobs], dtype=np.int64)
    table = np.zeros((len(radix), int(radix.max())), dtype=np.int64)
    for row, knob in zip(table, space.knobs, strict=True):
        row[: len(knob.values)] = knob.values
    return table, radix


@njit(cache=True, nogil=True)
def _canonical_rows(nest, begin, end, candidates, radix, pair, schedules_of_pair, indices, values):  # type: ignore[no-untyped-def]
    """Indices (n,) and knob values (n, knobs) of those of begin..end that stand for themselves, in place; returns n.

    ``pair``: work array int64 (2, knobs), and ``schedules_of_pair`` the same as schedules.
    """
    knobs = len(radix)
    digits, given = np.empty(knobs, dtype=np.int64), pair[0]
    rest, n = begin, 0
    for j in range(knobs):
        digits[j] = rest % radix[j]
        given[j] = candidates[j, digits[j]]
        rest //= radix[j]
    for index in range(begin, end):
        if canonical.is_canonical(nest, schedules_of_pair, pair):
            indices[n] = index
            for j in range(knobs):
                values[n, j] = given[j]
            n += 1
        # The next index, without the divisions that decoding it anew would take.
        for j in range(knobs):
            digits[j] += 1
            if digits[j] < radix[j]:
                given[j] = candidates[j, digits[j]]
                break
            digits[j] = 0
            given[j] = candidates[j, 0]
    return n


@njit(cache=True, nogil=True)
def _encode_rows(nest, extents, values, summary, log_engine_bound, out):  # type: ignore[no-untyped-def]
    """Schedule features of knob values (n, knobs) with their summaries (n, len(SUMMARY)), in place.

    ``extents``: int64 (4,), of the loops that `_TILES` cuts.
    """
    for i in range(len(values)):
        v = values[i]
        at = 0
        for t in range(len(_TILE_COLUMNS)):
            size, extent = v[_TILE_COLUMNS[t]], extents[t]
            count = -(-extent // size)
            out[i, at] = np.log2(np.float32(size))
            out[i, at + 1] = np.log2(np.float32(count))
            out[i, at + 2] = np.float32(extent - (count - 1) * size) / np.float32(size)
            at += 3
        for c in range(len(_CHOICE_COLUMNS)):
            for value in range(_CHOICE_COLUMNS[c, 1]):
                out[i, at] = 1.0 if v[_CHOICE_COLUMNS[c, 0]] == value else 0.0
                at += 1
        for c in range(len(_NUMBER_COLUMNS)):
            out[i, at] = np.float32(v[_NUMBER_COLUMNS[c]])
            at += 1
        bound = max(summary[i, _BOUND], 1.0)
        log_bound = np.log2(np.float32(bound))
        scale = np.float32(1.0 / bound)
        out[i, at] = log_bound - log_engine_bound
        at += 1
        for c in _CYCLE_COLUMNS:
            value = np.float32(summary[i, c])
            out[i, at] = np.log2(np.float32(1.0) + value) - log_bound
            out[i, at + 1] = min(value * scale, _LINEAR_LIMIT)
            at += 2
        for c in _COUNT_COLUMNS:
            value = np.float32(summary[i, c])
            out[i, at] = np.log2(np.float32(1.0) + value)
            out[i, at + 1] = min(np.float32(16.0) * value * scale, _LINEAR_LIMIT)
            at += 2
        for c in _SIZE_COLUMNS:
            out[i, at] = np.log2(np.float32(1.0 + summary[i, c]))
            at += 1
        # What limits sharply is shown sharply too: a network is smooth.
        out[i, at] = min(np.float32(summary[i, _RECURRENCE]), _FEW)
        out[i, at + 1] = 1.0 if summary[i, _RECURRENCE] < _SOON else 0.0
        out[i, at + 2] = np.log2(max(np.float32(summary[i, _UOPS]), _ONE) / np.float32(nest.uop_limit))
        at += 3
        for over in (out[i, at - 1], np.log2(np.float32(summary[i, _INSTRUCTIONS]) / _MANY)):
            out[i, at] = min(max(_SHARP * over, -_ONE), _ONE)
            out[i, at + 1] = min(max(_SHARPER * over, -_ONE), _ONE)
            out[i, at + 2] = 1.0 if over > 0 else 0.0
            at += 3
        for c in _USE_COLUMNS:
            value = np.float32(summary[i, c])
            out[i, at] = np.log2(_USE_FLOOR + value)
            out[i, at + 1] = min(value, _LINEAR_LIMIT)
            out[i, at + 2] = 1.0 if value <= _ONE else 0.0
            at += 3


@njit(cache=True, nogil=True)
def _encode_hls_rows(nest, summary, out):  # type: ignore[no-untyped-def]
    """What `HLS_FEATURE_VERSION` adds to the features of schedules with their summaries (n, len(SUMMARY)), in place."""
    distance = np.float32(max(RECURRENCE, nest.acc_distance))
    for i in range(len(out)):
        bound = max(summary[i, _BOUND], 1.0)
        log_bound, scale, at = np.log2(np.float32(bound)), np.float32(1.0 / bound), 0
        for c in _HLS_COLUMNS:
            value = np.float32(summary[i, c])
            out[i, at] = np.log2(np.float32(1.0) + value) - log_bound
            out[i, at + 1] = min(value * scale, _LINEAR_LIMIT)
            at += 2
        recurrence = np.float32(summary[i, _RECURRENCE])
        out[i, at] = min(max(np.log2(max(recurrence, _ONE) / distance), -_ONE), _ONE)
        out[i, at + 1] = 1.0 if recurrence < distance else 0.0


@njit(cache=True, nogil=True)
def _encode_wait_rows(bound, given, out):  # type: ignore[no-untyped-def]
    """What `WAITS_FEATURE_VERSION` adds to the features of schedules with the bounds (n,) and `waits.WAITS`
    (n, len(WAITS)), in place."""
    for i in range(len(out)):
        waiting = max(given[i, 0], bound[i])
        out[i, 0] = np.log2(waiting / max(bound[i], 1.0))
        for c in range(1, given.shape[1]):
            out[i, 2 * c - 1] = np.log2((1.0 + given[i, c]) / (1.0 + waiting))
            out[i, 2 * c] = min(np.float32(given[i, c] / max(waiting, 1.0)), _LINEAR_LIMIT)


@njit(cache=True, nogil=True)
def _decode_canonical(nest, indices, candidates, radix, values, batch):  # type: ignore[no-untyped-def]
    """Canonical knob values (n, knobs) of mixed-radix indices (n,), in place; ``candidates``: int64 (knobs, most).

    ``batch``: ``values`` as schedules.
    """
    for i in range(len(indices)):
        rest = indices[i]
        for j in range(len(radix)):
            values[i, j] = candidates[j, rest % radix[j]]
            rest //= radix[j]
        canonical.canonical_row(nest, batch[i])


@dataclass(frozen=True)
class Candidates(base.Candidates):
    """Schedules of a space and what closed forms say of them; ``summary``: `SUMMARY` of each; ``waited``: `waits.WAITS`
    of each, float64 (n, len(WAITS)), where `with_waits` has told them already.
    """

    waited: NDArray[np.float64] | None = None

    def take(self, places: NDArray[np.int64] | slice) -> Candidates:
        """Those at some positions."""
        waited = None if self.waited is None else self.waited[places]
        return Candidates(self.indices[places], self.values[places], self.summary[places], waited)

    @property
    def bound(self) -> NDArray[np.float64]:
        """The proven lower bound LB of the cycles, float64 (n,)."""
        return self.summary[:, _BOUND]

    @property
    def estimate(self) -> NDArray[np.float64]:
        """The closed-form estimate, which knows of heads, tails and what is not overlapped, float64 (n,)."""
        return column(self.summary, "estimate")

    @property
    def reads(self) -> NDArray[np.float64]:
        """Beats of INP and WGT LOADs, float64 (n,)."""
        return column(self.summary, "inp_beats") + column(self.summary, "wgt_beats")

    @property
    def roofline(self) -> NDArray[np.float64]:
        """max(compute cycles, cycles of the memory port), float64 (n,)."""
        return np.maximum(column(self.summary, "compute"), column(self.summary, "read_beats"))


@dataclass(frozen=True)
class Encoder:
    """What turns schedules of one space into numbers, on all cores.

    ``nest``: of the task; ``table``, ``radix``: `candidates`; ``size``: of the space; ``log_bound``: log2 of the engine
    bound; ``version``: of the features; ``tables``: `geometry.geometry_table` that no thread uses now.
    """

    nest: Nest
    table: NDArray[np.int64]
    radix: NDArray[np.int64]
    size: int
    log_bound: float
    version: int = FEATURE_VERSION
    tables: list[Geometries] = field(default_factory=list, compare=False, repr=False)

    @classmethod
    def of(cls, space: ScheduleSpace, version: int = FEATURE_VERSION) -> Encoder:
        """Raises OneShotError: a space other than ``full``."""
        check_space(space)
        bound = engine_bound(space.workload, space.accelerator).bound
        return cls(nest_of(space), *candidates(space), len(space), math.log2(bound), version)

    def canonical(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Indices (m,), ascending, and knob values (m, knobs) of all canonical schedules."""
        found: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}

        def part(begin: int, end: int) -> None:
            indices = np.empty(end - begin, dtype=np.int64)
            values = np.empty((end - begin, len(self.radix)), dtype=np.int64)
            pair = np.empty((2, len(self.radix)), dtype=np.int64)
            work = (pair, schedules(pair))
            n = _canonical_rows(self.nest, begin, end, self.table, self.radix, *work, indices, values)
            found[begin] = (indices[:n], values[:n])

        in_parallel(part, self.size, _PARTS)
        parts = [found[begin] for begin in sorted(found)]
        return np.concatenate([indices for indices, _ in parts]), np.concatenate([values for _, values in parts])

    @contextlib.contextmanager
    def _geometries(self) -> Iterator[Geometries]:
        """A table that no other thread uses now; tables are kept, as making their records takes time."""
        try:
            table = self.tables.pop()
        except IndexError:
            table = geometry_table()
        yield table
        self.tables.append(table)

    def fits(self, values: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether the SRAMs hold what schedules of canonical knob values (n, knobs) keep in them, bool (n,)."""
        out, batch = np.empty(len(values), dtype=np.bool_), schedules(values)

        def part(begin: int, end: int) -> None:
            with self._geometries() as table:
                totals.fits_into(self.nest, batch[begin:end], out[begin:end], *table)

        in_parallel(part, len(values))
        return out

    def candidates(self, indices: NDArray[np.int64], values: NDArray[np.int64]) -> Candidates:
        """Indices (n,) and their canonical knob values (n, knobs) with their closed forms."""
        summary = np.empty((len(values), len(SUMMARY)))
        batch, rows = schedules(values), totals.totals_of(summary)

        def part(begin: int, end: int) -> None:
            with self._geometries() as table:
                totals.summaries_into(self.nest, batch[begin:end], rows[begin:end], *table)

        in_parallel(part, len(values))
        return Candidates(indices, values, summary)

    def candidates_at(self, indices: NDArray[np.int64]) -> Candidates:
        """The schedules at some indices (n,), aliases by the values of those that stand for them; on this thread."""
        values = np.empty((len(indices), len(self.radix)), dtype=np.int64)
        _decode_canonical(self.nest, indices, self.table, self.radix, values, schedules(values))
        summary = np.empty((len(values), len(SUMMARY)))
        with self._geometries() as table:
            totals.summaries_into(self.nest, schedules(values), totals.totals_of(summary), *table)
        return Candidates(indices, values, summary)

    def waits(self, given: base.Candidates) -> NDArray[np.float64]:
        """`waits.WAITS` of candidates, float64 (n, len(WAITS)), on this thread.

        On the HLS design, whose memory has no latency of its own, the guess is their `Candidates.estimate`.
        """
        if isinstance(given, Candidates) and given.waited is not None:
            return given.waited
        out = np.zeros((len(given), len(waits.WAITS)))
        if self.nest.hls:
            out[:, 0] = given.estimate
            return out
        uops = np.ascontiguousarray(column(given.summary, "uops"))
        with self._geometries() as table:
            waits.waits_into(self.nest, schedules(given.values), uops, waits.waits_of(out), *table)
        return out

    def encode(self, given: base.Candidates, out: NDArray[np.float32]) -> None:
        """The features of candidates into the first columns of float32 (n, at least so many), on this thread."""
        extents = np.array([self.nest[extent] for extent in _TILES.values()], dtype=np.int64)
        _encode_rows(self.nest, extents, given.values, given.summary, np.float32(self.log_bound), out)
        if self.version != FEATURE_VERSION:
            at = len(_OF_HLS.schedule)
            _encode_hls_rows(self.nest, given.summary, out[:, len(SCHEDULE_FEATURES) : at])
            if self.version == WAITS_FEATURE_VERSION:
                ends = at + len(_WAIT_FEATURES)
                _encode_wait_rows(np.ascontiguousarray(given.bound), self.waits(given), out[:, at:ends])


def canonical_table(space: ScheduleSpace) -> NDArray[np.int64]:
    """Indices of the canonical schedules of a space, int64 (m,), ascending; on all cores."""
    return Encoder.of(space).canonical()[0]


def all_candidates(space: ScheduleSpace, fitting: bool = False) -> Candidates:
    """All canonical schedules of a space; with ``fitting`` those that the SRAMs hold."""
    encoder = Encoder.of(space)
    indices, values = encoder.canonical()
    if fitting:
        fits = encoder.fits(values)
        indices, values = indices[fits], values[fits]
    return encoder.candidates(indices, values)


def no_hazard(nest: Nest, summary: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether schedules of summaries (n, len(SUMMARY)) update no accumulator again too soon, bool (n,).

    False is always right. What recurs after `NARROW` operations or more is not told apart by the summary.
    """
    return summary[:, _RECURRENCE] >= min(max(RECURRENCE, int(nest["acc_distance"])), NARROW)


def without_hazards(space: ScheduleSpace, given: base.Candidates) -> base.Candidates:
    """The candidates with `no_hazard`: no others are legal."""
    return given.take(np.flatnonzero(no_hazard(nest_of(space), given.summary)))


def candidates_at(space: ScheduleSpace, indices: NDArray[np.int64]) -> Candidates:
    """The schedules at some indices (n,), on all cores; aliases by the values of those that stand for them."""
    encoder, indices = Encoder.of(space), np.ascontiguousarray(indices, dtype=np.int64)
    values = np.empty((len(indices), len(encoder.radix)), dtype=np.int64)
    summary = np.empty((len(indices), len(SUMMARY)))

    def part(begin: int, end: int) -> None:
        given = encoder.candidates_at(indices[begin:end])
        values[begin:end], summary[begin:end] = given.values, given.summary

    in_parallel(part, len(indices))
    return Candidates(indices, values, summary)


def with_waits(space: ScheduleSpace, given: base.Candidates) -> Candidates:
    """The same candidates with what modules wait for, told on all cores once for all that asks for it."""
    encoder, out = Encoder.of(space), np.empty((len(given), len(waits.WAITS)))

    def part(begin: int, end: int) -> None:
        out[begin:end] = encoder.waits(given.take(slice(begin, end)))

    in_parallel(part, len(given))
    return Candidates(given.indices, given.values, given.summary, out)


def waiting(space: ScheduleSpace, given: base.Candidates) -> NDArray[np.float64]:
    """A guess of the cycles of candidates of a space that knows what modules wait for, float64 (n,); not below their
    bound.
    """
    return np.maximum(Encoder.of(space).waits(with_waits(space, given))[:, 0], given.bound)


def summaries(space: ScheduleSpace, indices: NDArray[np.int64]) -> NDArray[np.float64]:
    """`totals.summaries` of indices (n,) of a space, on all cores: float64 (n, len(SUMMARY))."""
    return candidates_at(space, indices).summary


def encode(space: ScheduleSpace, values: NDArray[np.int64]) -> NDArray[np.float32]:
    """All `FEATURES` of knob values (n, knobs) of a space, float32 (n, len(FEATURES)).

    Raises:
        OneShotError: a space other than ``full``.
    """
    task = task_features(space)
    out = np.empty((len(values), len(FEATURES)), dtype=np.float32)
    out[:, : len(task)] = task
    encoder = Encoder.of(space)
    given = encoder.candidates(np.arange(len(values)), canonical.canonical(encoder.nest, values))
    encoder.encode(given, out[:, len(task) :])
    return out
