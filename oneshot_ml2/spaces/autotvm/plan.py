"""Closed forms of an ``autotvm`` schedule: what its program loads, computes and stores, and how long that takes.

Nothing is lowered. Counts follow from the template's loop nest (VTA reference, 8.3), durations from the rules of the
modules (6.1 to 6.4); how they overlap is worked out for a few steps of a few tiles and drawn out over the others.
No legality is in here: a schedule that does not lower has figures, too, those of what it asks for.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.kernels import njit
from oneshot_ml2.common.parallel import in_parallel
from oneshot_ml2.spaces.autotvm import space as A
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.program import INP, OUT, WGT
from oneshot_ml2.vta.timing import chisel
from oneshot_ml2.workload.base import Workload

# Figures of a schedule. Cycles are those of whole programs unless a name says otherwise; "step" is one load and GEMM of
# a thread, "tile" one output tile of a thread.
SUMMARY = (
    # Cycles of the program by this model, then of each module with nothing beside it, and of parts of them.
    "estimate",
    "load",
    "compute",
    "store",
    "fetch",
    "gemm",
    "epilogue",
    "uop load",
    "pads",
    "step load",
    "step gemm",
    "tile epilogue",
    "tile store",
    "head",
    # Counts.
    "inp bytes",
    "wgt bytes",
    "out bytes",
    "inp bursts",
    "wgt bursts",
    "out bursts",
    "loads",
    "stores",
    "gemms",
    "instructions",
    "tiles",
    "steps",
    "reset uops",
    "gemm uops",
    "uops",
    # Shares of the SRAMs that all threads take together.
    "inp use",
    "wgt use",
    "acc use",
    # What the copies look like: dimensions left after merging, extents and strides in elements.
    "inp dimensions",
    "out dimensions",
    "inp rows",
    "inp columns",
    "longest run",
    "widest stride",
    # Remainders and repeats: output tiles that threads leave over, accumulators that micro-ops go round.
    "rows left over",
    "channels left over",
    "accumulators in turn",
    "reduces in turn",
)
(
    S_ESTIMATE, S_LOAD, S_COMPUTE, S_STORE, S_FETCH, S_GEMM, S_EPILOGUE, S_UOP_LOAD, S_PADS,
    S_STEP_LOAD, S_STEP_GEMM, S_TILE_EPILOGUE, S_TILE_STORE, S_HEAD,
    S_INP_BYTES, S_WGT_BYTES, S_OUT_BYTES, S_INP_BURSTS, S_WGT_BURSTS, S_OUT_BURSTS,
    S_LOADS, S_STORES, S_GEMMS, S_INSTRUCTIONS, S_TILES, S_STEPS, S_RESET_UOPS, S_GEMM_UOPS, S_UOPS,
    S_INP_USE, S_WGT_USE, S_ACC_USE,
    S_INP_DIMENSIONS, S_OUT_DIMENSIONS, S_INP_ROWS, S_INP_COLUMNS, S_LONGEST_RUN, S_WIDEST_STRIDE,
    S_ROWS_LEFT, S_CHANNELS_LEFT, S_IN_TURN, S_REDUCES,
) = range(len(SUMMARY))  # fmt: skip

# Tiles, and steps of each, that the overlap is worked out for.
_TILES, _STEPS = 4, 6
# Cycles from an instruction's start to the next one's beyond the work: of GEMM and ALU, and of a NOP (6.1).
_COMPUTE_EXTRA, _NOOP = 7, 2
# Where the timing's parameters begin in a task vector.
_P = A._TASK_FIELDS
# A LOAD of a narrow tensor: its latency beside the memory's (6.1, 6.3); of a wide one it is one cycle less.
_LOAD_EXTRA = 6


def task_vector(workload: Workload, accelerator: Accelerator) -> NDArray[np.int64]:
    """What `summaries_into` needs of a task: the template's task vector, then the timing's parameters, int64.

    Raises:
        WorkloadError: a workload that the template cannot express.
    """
    task, _, _ = A._task(workload, accelerator)
    return np.concatenate([task, chisel.params(accelerator)])


@njit(cache=True, nogil=True)
def _gcd(a: int, b: int) -> int:
    while b:
        a, b = b, a % b
    return a


@njit(cache=True, nogil=True)
def _pieces(run: int, stride: int, piece: int) -> float:
    """Aligned pieces that a run of bytes touches, on average over the rows of a copy, whose starts lie anywhere."""
    grain = _gcd(_gcd(run, stride), piece)
    return 1.0 + (run - grain) / piece


@njit(cache=True, nogil=True)
def _merged(planes: int, rows: int, cols: int, height: int, width: int) -> tuple[int, int, int, int]:
    """(dimensions, y, x, stride) of an unpadded copy; what cannot be merged counts into y (VTA reference, 5.2)."""
    extents, strides = (cols, rows, planes), (1, width, height * width)
    x, y, stride, dimensions = 1, 1, 0, 1
    last = 0
    for k in range(3):
        extent = extents[k]
        if extent == 1:
            continue
        if dimensions == 1 and strides[k] == x:
            x *= extent
        elif dimensions == 1:
            dimensions, y, stride, last = 2, extent, strides[k], extent * strides[k]
        elif strides[k] == last:
            y *= extent
            last *= extent
        else:
            dimensions, y = 3, y * extent
    return dimensions, y, x, stride if dimensions > 1 else x


@njit(cache=True, nogil=True)
def _input_loads(p: NDArray[np.int64], value: NDArray[np.int64], out: NDArray[np.float64]) -> float:
    """Mean execution cycles of the LOADs of input tiles; writes what they move."""
    th, tw, tci = value[A.TILE_H], value[A.TILE_W], value[A.TILE_CI]
    sh, sw, ph, pw, height, width = p[A.G_SH], p[A.G_SW], p[A.G_PH], p[A.G_PW], p[A.G_H], p[A.G_W]
    ih, iw = (th - 1) * sh + p[A.G_KH], (tw - 1) * sw + p[A.G_KW]
    h_tiles, w_tiles = p[A.G_OH] // th, p[A.G_OW] // tw
    size, bus = p[_P + chisel.P_BYTES + INP], 1 << p[_P + chisel.P_LOG_BUS]
    burst = bus * p[_P + chisel.P_BURST]
    narrow = size > bus
    wait = p[_P + chisel.P_LATENCY] + _LOAD_EXTRA - (0 if narrow else 1)
    if ph == 0 and pw == 0:
        dimensions, y, x, stride = _merged(tci, ih, iw, height, width)
        out[S_INP_DIMENSIONS] = dimensions
        out[S_LONGEST_RUN] = max(y, x)
        out[S_WIDEST_STRIDE] = stride if y > 1 else 0
        beats = y * (x * size / bus if narrow else _pieces(x * size, stride * size, bus))
        out[S_INP_BYTES] = y * x * size
        out[S_INP_BURSTS] = y * _pieces(x * size, stride * size, burst)
        return float(beats + wait)
    # Padded copies are never merged.
    out[S_INP_DIMENSIONS] = 2 + (tci > 1)
    out[S_LONGEST_RUN] = max(ih, iw)
    out[S_WIDEST_STRIDE] = width
    cycles, beats, bursts, pads = 0.0, 0.0, 0.0, 0.0
    for h in range(h_tiles):
        y = h * th * sh - ph
        top, bottom = max(0, -y), max(0, y + ih - height)
        rows = max(ih - top - bottom, 0)
        for w in range(w_tiles):
            x = w * tw * sw - pw
            left, right = max(0, -x), max(0, x + iw - width)
            cols = max(iw - left - right, 0)
            run = cols * size
            own = tci * rows * (run / bus if narrow else _pieces(run, width * size, bus))
            zeros = tci * ((top + bottom) * iw + rows * (left + right))
            zeros += rows if left + right == 0 and bottom > 0 else 0
            # Zeros are written while the first data are on their way; what is left of them adds to the time (6.3).
            exposed = max(0, zeros + 2 - (wait + top))
            cycles += own + wait + top + exposed
            beats += own
            bursts += tci * rows * _pieces(run, width * size, burst)
            pads += top + exposed
            out[S_INP_BYTES] += tci * rows * run
    count = h_tiles * w_tiles
    out[S_INP_BYTES] /= count
    out[S_INP_BURSTS] = bursts / count
    out[S_PADS] = pads / count
    return cycles / count


@njit(cache=True, nogil=True)
def _summary(p: NDArray[np.int64], value: NDArray[np.int64], out: NDArray[np.float64]) -> None:
    th, tw, tci, tco = value[A.TILE_H], value[A.TILE_W], value[A.TILE_CI], value[A.TILE_CO]
    threads = value[A.OC_NTHREAD] * value[A.H_NTHREAD]
    kh, kw, stages = p[A.G_KH], p[A.G_KW], p[A.G_ALU]
    ih, iw = (th - 1) * p[A.G_SH] + kh, (tw - 1) * p[A.G_SW] + kw
    acc, steps = tco * th * tw, p[A.G_CI] // tci
    # Tiles of all threads, and how often each thread has one.
    tiles = p[A.G_NB] * (p[A.G_OH] // th) * (p[A.G_OW] // tw) * (p[A.G_CO] // tco)
    rounds = max(1, tiles // threads)
    bus = 1 << p[_P + chisel.P_LOG_BUS]
    burst, latency = bus * p[_P + chisel.P_BURST], p[_P + chisel.P_LATENCY]
    out[:] = 0.0

    # Loads of a step.
    inp_cycles = _input_loads(p, value, out)
    size = p[_P + chisel.P_BYTES + WGT]
    run, rows = tci * kh * kw, tco
    stride = p[A.G_CI] * kh * kw
    if run == stride:
        run, rows = run * rows, 1
    narrow = size > bus
    beats = rows * (run * size / bus if narrow else _pieces(run * size, stride * size, bus))
    wgt_cycles = beats + latency + _LOAD_EXTRA - (0 if narrow else 1)
    out[S_WGT_BYTES] = rows * run * size
    out[S_WGT_BURSTS] = rows * _pieces(run * size, stride * size, burst)
    load = inp_cycles + wgt_cycles + 2

    # Stores of a tile.
    size = p[_P + chisel.P_BYTES + OUT]
    dimensions, y, x, stride = _merged(tco, th, tw, p[A.G_OH], p[A.G_OW])
    bursts = y * _pieces(x * size, stride * size, burst)
    if p[_P + chisel.P_STORE_NARROW]:
        beats = y * x * size / bus
        store = beats + math.ceil(beats / p[_P + chisel.P_STORE_ROW]) + 3 * bursts + 1
    else:
        beats = y * _pieces(x * size, stride * size, bus)
        store = beats + 4 * bursts + 1
    out[S_OUT_BYTES] = y * x * size
    out[S_OUT_BURSTS] = bursts
    out[S_OUT_DIMENSIONS] = dimensions
    out[S_LONGEST_RUN] = max(out[S_LONGEST_RUN], max(y, x))
    widest = max(stride if y > 1 else 0, p[A.G_CI] * kh * kw if tco > 1 else 0)
    out[S_WIDEST_STRIDE] = max(out[S_WIDEST_STRIDE], widest)

    # Compute.
    reset_uops, gemm_uops, _ = A._uop_counts(p, value)
    gemm = acc * tci * kh * kw + _COMPUTE_EXTRA
    reset = acc + _COMPUTE_EXTRA
    epilogue = stages * (acc + _COMPUTE_EXTRA)
    uop_beats = 4.0 / bus
    uop_reset = reset_uops * uop_beats + latency + _LOAD_EXTRA
    uop_gemm = gemm_uops * uop_beats + latency + _LOAD_EXTRA
    uop_stages = stages * (uop_beats + latency + _LOAD_EXTRA)
    # Kernels that do not fit together are loaded again in every round; a thread's GEMM, if two do not fit, every step.
    own = reset_uops + gemm_uops + stages
    again = threads * own > p[A.G_UOP]
    thrash = threads > 1 and 2 * gemm_uops > p[A.G_UOP]
    uop_first = threads * (uop_reset + uop_gemm + uop_stages)
    uop_rounds = 0.0
    if again:
        uop_rounds = uop_first + (threads * (steps - 1) * uop_gemm if thrash else 0.0)

    # How they overlap: times at which modules are free, and at which tokens are there (8.4).
    load_free, compute_free, store_free = 0.0, 0.0, 0.0
    to_load = np.zeros(4)
    to_compute = np.zeros(4)
    to_store = np.zeros(4)
    stored = np.zeros(4)
    some_tiles, some_steps = min(rounds, _TILES), min(steps, _STEPS)
    before, elapsed = 0.0, 0.0
    for i in range(some_tiles):
        if again and i > 0:
            compute_free += uop_rounds
        for t in range(threads):
            compute_free = max(compute_free, stored[t]) + reset
            if i == 0:
                compute_free += uop_reset
            to_load[t] = compute_free
        step_before = 0.0
        for s in range(some_steps):
            for t in range(threads):
                load_free = max(load_free, to_load[t]) + load
                to_compute[t] = load_free
            for t in range(threads):
                # The first time, micro-ops are loaded once the GEMM would begin.
                compute_free = max(compute_free, to_compute[t] if i > 0 or s > 0 else to_compute[t] + uop_gemm) + gemm
                to_load[t] = compute_free
                if steps == 1:
                    compute_free += epilogue
                    to_store[t] = compute_free
            if s == some_steps - 1 and steps > some_steps:
                drawn = (steps - some_steps) * (compute_free - step_before)
                load_free += drawn
                compute_free += drawn
                to_load += drawn
            step_before = compute_free
        if steps > 1:
            for t in range(threads):
                load_free = max(load_free, to_load[t]) + _NOOP
                compute_free += epilogue
                to_store[t] = compute_free
        for t in range(threads):
            store_free = max(store_free, to_store[t]) + store
            stored[t] = store_free
        before, elapsed = elapsed, store_free
    if rounds > some_tiles:
        elapsed += (rounds - some_tiles) * (elapsed - before)

    loads = tiles * steps
    noops = tiles * (1 if steps > 1 else 0) + 6
    uop_loads = threads * (2 + stages) * (rounds if again else 1)
    instructions = tiles * (2 + stages) + 3 * loads + noops + uop_loads
    # Fetch: chunks one after another, each read and then given out (6.5).
    wide = bus > 8
    chunk = p[_P + chisel.P_BURST] // (1 if wide else 2)
    chunk = min(chunk, instructions)
    words = chunk * 16 / bus
    fetch = (latency + (8 if wide else 5) + words + chunk) / chunk
    head = 4 + latency + min(chunk, 8) * (16 / bus) + 1
    out[S_HEAD] = latency + 4 + words + uop_reset
    out[S_FETCH] = fetch * instructions
    out[S_LOAD] = loads * load
    out[S_UOP_LOAD] = uop_rounds * rounds if again else uop_first
    out[S_GEMM] = loads * gemm
    out[S_EPILOGUE] = tiles * (reset + epilogue)
    out[S_COMPUTE] = out[S_GEMM] + out[S_EPILOGUE] + out[S_UOP_LOAD]
    out[S_STORE] = tiles * store
    out[S_ESTIMATE] = head + max(elapsed, out[S_FETCH])
    out[S_PADS] *= loads
    out[S_STEP_LOAD], out[S_STEP_GEMM] = load, gemm
    out[S_TILE_EPILOGUE], out[S_TILE_STORE] = epilogue, store
    for column in (S_INP_BYTES, S_WGT_BYTES, S_INP_BURSTS, S_WGT_BURSTS):
        out[column] *= loads
    for column in (S_OUT_BYTES, S_OUT_BURSTS):
        out[column] *= tiles
    out[S_LOADS], out[S_STORES], out[S_GEMMS], out[S_INSTRUCTIONS] = 2 * loads, tiles, loads, instructions
    out[S_TILES], out[S_STEPS] = tiles, steps
    out[S_RESET_UOPS], out[S_GEMM_UOPS], out[S_UOPS] = reset_uops, gemm_uops, threads * own
    out[S_INP_USE] = threads * tci * ih * iw / p[A.G_INP]
    out[S_WGT_USE] = threads * tci * tco * kh * kw / p[A.G_WGT]
    out[S_ACC_USE] = threads * acc / p[A.G_ACC]
    out[S_INP_ROWS], out[S_INP_COLUMNS] = ih, iw
    out[S_ROWS_LEFT] = (p[A.G_OH] // th) % value[A.H_NTHREAD]
    out[S_CHANNELS_LEFT] = (p[A.G_CO] // tco) % value[A.OC_NTHREAD]
    # Which loops are left to the micro-ops: a reduction among them comes back to each accumulator in turn (5.3).
    folded, reduces = 0, 0
    for k, extent in enumerate((tci, tw, kw, kh, tco, th)):
        if extent == 1:
            continue
        if folded < 2:
            folded += 1
        elif k == 2 or k == 3:
            reduces = 1
    out[S_IN_TURN], out[S_REDUCES] = tco * th, reduces


@njit(cache=True, nogil=True)
def summaries_into(p: NDArray[np.int64], values: NDArray[np.int64], out: NDArray[np.float64]) -> None:
    """`SUMMARY` of knob values (n, 7) into float64 (n, len(SUMMARY)); ``p``: `task_vector`."""
    for i in range(len(values)):
        _summary(p, values[i], out[i])


def summaries(workload: Workload, accelerator: Accelerator, values: NDArray[np.int64]) -> NDArray[np.float64]:
    """`SUMMARY` of knob values (n, 7), float64 (n, len(SUMMARY)).

    Raises:
        WorkloadError: a workload that the template cannot express.
    """
    p = task_vector(workload, accelerator)
    values = np.ascontiguousarray(values, dtype=np.int64)
    out = np.empty((len(values), len(SUMMARY)))
    in_parallel(lambda begin, end: summaries_into(p, values[begin:end], out[begin:end]), len(values))
    return out
