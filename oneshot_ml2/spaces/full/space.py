"""The `full` schedule space: what VTA's instruction set allows beyond AutoTVM's template."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.kernels import njit
from oneshot_ml2.spaces.base import BatchResult, Knob
from oneshot_ml2.spaces.full import canonical as aliases
from oneshot_ml2.spaces.full import emit, legality, totals
from oneshot_ml2.spaces.full import features as full_features
from oneshot_ml2.spaces.full.knobs import (
    BIAS_LOAD,
    DRAIN,
    FLOW_CO_STREAM,
    FOLD_CI_CO,
    FOLD_CI_ROWS,
    FOLD_SPACE,
    FOLD_TAPS,
    HEAD_DOUBLING,
    HEAD_SINGLE,
    HEAD_WHOLE,
    PAD_LOAD,
    PAD_SKIP,
    schedules,
)
from oneshot_ml2.spaces.full.knobs import KNOBS as KNOBS
from oneshot_ml2.spaces.full.shown import short as short
from oneshot_ml2.vta.nest import PORTABLE_UOPS, Nest, buffers, make_nest
from oneshot_ml2.vta.program import Insns, Program
from oneshot_ml2.vta.reasons import InvalidSchedule, NoSchedule, Reason
from oneshot_ml2.vta.timing import designs, records
from oneshot_ml2.workload.base import Workload

if TYPE_CHECKING:
    from oneshot_ml2.spaces.space import ScheduleSpace
    from oneshot_ml2.vta.accelerator import Accelerator

SPACE_VERSION = 2

# Largest number of canonical schedules that candidate lists are thinned to (before aliases are removed).
_LIMIT = 380_000
_BUFFERS = (1, 2)
# What an empty last tile weighs beside a factor of e between the wanted size and the chosen one.
_SLIVER = 0.3


def _ceilings(extent: int) -> list[int]:
    """Distinct tile sizes ceil(extent / m), descending: all that an even cut of a loop can give."""
    root = math.isqrt(extent - 1)
    return sorted({1, *range(2, root + 2), *((extent - 1) // m + 1 for m in range(1, root + 1))}, reverse=True)


def _thin(sizes: list[int], extent: int, count: int) -> tuple[int, ...]:
    """About ``count`` of the tile sizes of a loop of ``extent``, spread in the logarithm, both ends kept; ascending.

    Near each place a size is preferred whose last tile is well filled: a sliver of a tile costs much, and where its
    accumulators recur too soon it makes the schedule illegal.
    """
    if len(sizes) <= count:
        return tuple(sorted(sizes))
    tiles = np.array(sizes, dtype=float)
    last = (extent - 1) % tiles + 1
    wanted = np.linspace(0.0, np.log(tiles.max()), count)
    cost = np.abs(np.log(tiles) - wanted[:, None]) + _SLIVER * (1.0 - last / tiles)
    return tuple(sorted({1, max(sizes), *(sizes[int(best)] for best in cost.argmin(axis=1))}))


def knobs(workload: Workload, accelerator: Accelerator) -> tuple[Knob, ...]:
    """Knobs and candidates (`KNOBS` in order) of a workload on an accelerator.

    Raises:
        NoSchedule: a workload that VTA cannot address, or with a kernel of more taps a side than there are micro-ops.
    """
    nest = make_nest(workload, accelerator)
    if max(nest.kh, nest.kw) > PORTABLE_UOPS:
        raise NoSchedule(
            workload,
            accelerator,
            Reason.UOP_OVERFLOW,
            f"its kernel has {nest.kh:,} x {nest.kw:,} taps, and a program has {PORTABLE_UOPS:,} micro-ops, "
            f"one for each at least; allowed: {PORTABLE_UOPS:,} a side",
        )
    co, ci, oh, ow = (int(nest[name]) for name in ("co", "ci", "oh", "ow"))
    # Tiles whose accumulators or inputs cannot fit are left out of the lists; smaller ones are thinned.
    fits = [s for s in _ceilings(co) if s <= nest.acc_depth]
    padded = workload.loops.zeros_around
    strided = int(nest.kh) == 1 and int(nest.sh) > 1
    pool = bool(nest.pool)
    head = (ci > 1 or co > 5) and not pool
    fixed = {
        "dataflow": aliases.dataflows(nest),
        "inp_buffers": _BUFFERS,
        "wgt_buffers": (1,) if pool else _BUFFERS,
        "acc_buffers": _BUFFERS,
        "fold": (FOLD_SPACE, FOLD_CI_ROWS, FOLD_CI_CO),
        "pad": (PAD_SKIP, PAD_LOAD) if padded or strided else (PAD_SKIP,),
        "head": (HEAD_WHOLE, HEAD_SINGLE, HEAD_DOUBLING) if head else (HEAD_WHOLE,),
        "drain": DRAIN,
        "bias": aliases.bias_forms(nest),
    }
    rest = int(np.prod([len(v) for v in fixed.values()]))
    counts = {"tile_co": 8, "tile_h": 10, "tile_w": 4 if oh > 1 else 14, "tile_ci": 4}
    if pool:
        counts |= {"tile_co": 16, "tile_h": 16, "tile_w": 16}
    sizes = {"tile_co": fits, "tile_h": _ceilings(oh), "tile_w": _ceilings(ow), "tile_ci": _ceilings(ci)}
    extents = {"tile_co": co, "tile_h": oh, "tile_w": ow, "tile_ci": ci}
    while True:
        tiles = {name: _thin(sizes[name], extents[name], counts[name]) for name in counts}
        if np.prod([len(v) for v in tiles.values()]) * rest <= _LIMIT:
            break
        longest = max(counts, key=lambda name: (len(tiles[name]), name))
        # Thinning keeps both ends, so it may leave more than it was asked for.
        counts[longest] = min(counts[longest], len(tiles[longest])) - 1
    candidates = tiles | fixed
    if _recurs_always(nest, candidates):
        candidates["fold"] = (*candidates["fold"], FOLD_TAPS)
    return tuple(Knob(name, candidates[name]) for name in KNOBS)


def _recurs_always(nest: Nest, candidates: dict[str, tuple[int, ...]]) -> bool:
    """Whether no schedule of some candidates is legal, as the accumulators of all that the SRAMs hold recur too soon.

    Chunks of one channel, streamed, with biases loaded into ACC, fit and are free of hazards if any schedule is.
    """
    taps = nest.kh * nest.kw
    if taps == 1 or (taps >= nest.wgt_depth and not nest.pool):
        # No accumulator recurs; or no SRAM holds a kernel, however large.
        return False
    least = dict.fromkeys(KNOBS, (1,)) | {"dataflow": (FLOW_CO_STREAM,), "head": (HEAD_WHOLE,)}
    least |= {"bias": (BIAS_LOAD if nest.bias else 0,)}
    varied = {name: candidates[name] for name in ("tile_co", "tile_h", "tile_w", "fold", "pad")}
    grid = np.meshgrid(*(least | varied).values(), indexing="ij")
    values = np.stack([column.ravel() for column in grid], axis=1).astype(np.int64)
    return bool(legality.recurs_always(nest, schedules(aliases.canonical(nest, values))))


def canonical(workload: Workload, accelerator: Accelerator, values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Knob values (n, knobs) of the aliases that stand for each schedule."""
    return aliases.canonical(make_nest(workload, accelerator), values)


def table(space: ScheduleSpace) -> NDArray[np.int64]:
    """Indices of all canonical schedules of a space, int64 (m,), ascending; on all cores."""
    return full_features.canonical_table(space)


@njit(cache=True, nogil=True)
def _measure(nest, batch, insns, tables, insn_address, params, reason, cycles, busy):  # type: ignore[no-untyped-def]
    """Lower and time the rows whose ``reason`` is 0 so far."""
    unrecorded = records.nothing()
    for i in range(len(batch)):
        if reason[i] != 0:
            continue
        why, n, _ = emit.lower_into(nest, batch[i], insns, tables)
        reason[i] = why
        if why == 0:
            total, hang, times = designs.simulate_any(insns[:n], insn_address, params, unrecorded)
            cycles[i] = total
            if hang:
                reason[i] = emit.DEADLOCK
                cycles[i] = -1
            busy[i, 0], busy[i, 1], busy[i, 2] = times.load, times.compute, times.store


def validity(workload: Workload, accelerator: Accelerator, values: NDArray[np.int64]) -> NDArray[np.uint8]:
    """`Reason` of each row of knob values, uint8 (n,), in closed form: what lowering says, without emitting."""
    return legality.reasons(make_nest(workload, accelerator), values)


def estimate(workload: Workload, accelerator: Accelerator, values: NDArray[np.int64]) -> NDArray[np.float64]:
    """Closed-form guess of the cycles of each row of knob values, float64 (n,); infinite where an SRAM is too small."""
    found = totals.totals_of(totals.summaries(make_nest(workload, accelerator), values))
    fits = (found["inp_use"] <= 1.0) & (found["wgt_use"] <= 1.0) & (found["acc_use"] <= 1.0)
    return np.where(fits, found["estimate"], np.inf)


def lower(workload: Workload, accelerator: Accelerator, values: NDArray[np.int64]) -> Program:
    """The program of one row of knob values.

    Raises:
        InvalidSchedule: with the reason.
    """
    insns, uops, tables = emit.work_arrays()
    nest = make_nest(workload, accelerator)
    reason, n, m = emit.lower_into(nest, schedules(values[None])[0], insns, tables)
    if reason:
        raise InvalidSchedule(Reason(reason))
    placed, end = buffers(workload, accelerator)
    uop_address = next(b.address for b in placed if b.name == "uops")
    features = dict(zip(totals.SUMMARY, totals.summaries(nest, values[None])[0].tolist(), strict=True))
    return Program(accelerator, insns[:n].copy(), uops[:m].copy(), end, uop_address, placed, features)


def programs(workload: Workload, accelerator: Accelerator, values: NDArray[np.int64]) -> Iterator[Insns]:
    """The instructions (m,) of valid rows of knob values, each a view that the next one overwrites.

    Raises:
        InvalidSchedule: a row that does not lower.
    """
    insns, _, tables = emit.work_arrays()
    nest = make_nest(workload, accelerator)
    for schedule in schedules(values):
        reason, n, _ = emit.lower_into(nest, schedule, insns, tables)
        if reason:
            raise InvalidSchedule(Reason(reason))
        yield insns[:n]


def measure_batch(workload: Workload, accelerator: Accelerator, values: NDArray[np.int64]) -> BatchResult:
    """Lower and time every row of knob values that is valid."""
    found = BatchResult.untimed(validity(workload, accelerator, values))
    insns, _, tables = emit.work_arrays()
    _, end = buffers(workload, accelerator)
    _measure(
        make_nest(workload, accelerator), schedules(values), insns, tables, end, records.params(accelerator),
        found.reason, found.cycles, found.busy,
    )  # fmt: skip
    return found
