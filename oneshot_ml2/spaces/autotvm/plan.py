"""Closed forms of an ``autotvm`` schedule: what its program loads, computes and stores, and how long that takes.

Nothing is lowered. Counts follow from the template's loop nest, durations from the rules of the modules;
how they overlap is worked out for a few steps of a few tiles and drawn out over the others.
No legality is in here: a schedule that does not lower has figures, too, those of what it asks for.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.kernels import njit
from oneshot_ml2.common.parallel import in_parallel
from oneshot_ml2.common.parts import part
from oneshot_ml2.spaces.autotvm.template import Task, make_task, schedules
from oneshot_ml2.spaces.autotvm.validity import uop_counts
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.hls_keys import TICKS
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
    # Counts; of the HLS design bursts are rows.
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
# A row of figures: a record of `SUMMARY`, with underscores for spaces.
FIGURES = np.dtype([(name.replace(" ", "_"), np.float64) for name in SUMMARY])

# By thread: when its tokens for load, compute and store are there, and when its last store ended.
_TOKENS = np.dtype([(name, np.float64) for name in ("to_load", "to_compute", "to_store", "stored")])
# Tiles, and steps of each, that the overlap is worked out for.
_TILES, _STEPS = 4, 6
# Cycles from an instruction's start to the next one's beyond the work: of GEMM and ALU, and of a NOP.
_COMPUTE_EXTRA, _NOOP = 7, 2
# A LOAD of a narrow tensor: its latency beside the memory's; of a wide one it is one cycle less.
_LOAD_EXTRA = 6


@part()
def _gcd(a: int, b: int) -> int:
    while b:
        a, b = b, a % b
    return a


@part()
def _pieces(run: int, stride: int, piece: int) -> float:
    """Aligned pieces that a run of bytes touches, on average over the rows of a copy, whose starts lie anywhere."""
    grain = _gcd(_gcd(run, stride), piece)
    return 1.0 + (run - grain) / piece


@part()
def _merged(planes: int, rows: int, cols: int, height: int, width: int) -> tuple[int, int, int, int]:
    """(dimensions, y, x, stride) of an unpadded copy; what cannot be merged counts into y."""
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


@part()
def _rows_read(task, rows, beats, beat):  # type: ignore[no-untyped-def]
    """Cycles of a LOAD of the load module on the HLS design: ``rows`` of so many ``beats``, of ``beat`` cycles each."""
    return (task.hls_load_start + rows * task.hls_read_row) / TICKS + rows * beats * beat


@part()
def _input_loads(task, value, out):  # type: ignore[no-untyped-def]
    """Mean execution cycles of the LOADs of input tiles; writes what they move."""
    th, tw, tci = value.tile_h, value.tile_w, value.tile_ci
    sh, sw, ph, pw, height, width = task.sh, task.sw, task.ph, task.pw, task.h, task.w
    ih, iw = (th - 1) * sh + task.kh, (tw - 1) * sw + task.kw
    h_tiles, w_tiles = task.oh // th, task.ow // tw
    size, bus = task.inp_bytes, 1 << task.log_bus
    burst = bus * task.burst
    narrow = size > bus
    wait = task.latency + _LOAD_EXTRA - (0 if narrow else 1)
    if ph == 0 and pw == 0:
        dimensions, y, x, stride = _merged(tci, ih, iw, height, width)
        out.inp_dimensions = dimensions
        out.longest_run = max(y, x)
        out.widest_stride = stride if y > 1 else 0
        beats = y * (x * size / bus if narrow else _pieces(x * size, stride * size, bus))
        out.inp_bytes = y * x * size
        out.inp_bursts = y * _pieces(x * size, stride * size, burst)
        if task.hls:
            out.inp_bursts = y
            return _rows_read(task, y, math.ceil(x * size / bus), 1.0)
        return float(beats + wait)
    # Padded copies are never merged.
    out.inp_dimensions = 2 + (tci > 1)
    out.longest_run = max(ih, iw)
    out.widest_stride = width
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
            if task.hls:
                own = _rows_read(task, tci * rows, math.ceil(run / bus), 1.0) + zeros * task.hls_pad / TICKS
                cycles += own
                pads += zeros
                bursts += tci * rows
                out.inp_bytes += tci * rows * run
                continue
            zeros += rows if left + right == 0 and bottom > 0 else 0
            # Zeros are written while the first data are on their way; what is left of them adds to the time.
            exposed = max(0, zeros + 2 - (wait + top))
            cycles += own + wait + top + exposed
            beats += own
            bursts += tci * rows * _pieces(run, width * size, burst)
            pads += top + exposed
            out.inp_bytes += tci * rows * run
    count = h_tiles * w_tiles
    out.inp_bytes /= count
    out.inp_bursts = bursts / count
    out.pads = pads / count
    return cycles / count


@part()
def _weight_loads(task, value, out):  # type: ignore[no-untyped-def]
    """Execution cycles of the LOAD of weight tiles; writes what they move."""
    size, bus = task.wgt_bytes, 1 << task.log_bus
    stride = task.ci * task.kh * task.kw
    run, rows = value.tile_ci * task.kh * task.kw, value.tile_co
    if run == stride:
        run, rows = run * rows, 1
    narrow = size > bus
    beats = rows * (run * size / bus if narrow else _pieces(run * size, stride * size, bus))
    out.wgt_bytes = rows * run * size
    out.wgt_bursts = rows * _pieces(run * size, stride * size, bus * task.burst)
    if task.hls:
        out.wgt_bursts = rows
        return _rows_read(task, rows, math.ceil(run * size / bus), task.hls_wgt_beat / TICKS)
    return beats + task.latency + _LOAD_EXTRA - (0 if narrow else 1)


@part()
def _stores(task, value, out):  # type: ignore[no-untyped-def]
    """Cycles of the STORE of an output tile; writes what it moves."""
    size, bus = task.out_bytes, 1 << task.log_bus
    dimensions, y, x, stride = _merged(value.tile_co, value.tile_h, value.tile_w, task.oh, task.ow)
    bursts = y * _pieces(x * size, stride * size, bus * task.burst)
    if task.store_narrow:
        beats = y * x * size / bus
        store = beats + math.ceil(beats / task.store_row) + 3 * bursts + 1
    else:
        beats = y * _pieces(x * size, stride * size, bus)
        store = beats + 4 * bursts + 1
    if task.hls:
        bursts = y
        store = (task.hls_store_start + y * task.hls_store_row) / TICKS + y * math.ceil(x * size / bus)
    out.out_bytes = y * x * size
    out.out_bursts = bursts
    out.out_dimensions = dimensions
    out.longest_run = max(out.longest_run, max(y, x))
    widest = max(stride if y > 1 else 0, task.ci * task.kh * task.kw if value.tile_co > 1 else 0)
    out.widest_stride = max(out.widest_stride, widest)
    return store


@part()
def _tile(threads, steps, first, uops, load, gemm, ends, store, free, tokens):  # type: ignore[no-untyped-def]
    """Work out one output tile of each thread; see `_overlap`. Returns when load, compute and store are free then."""
    load_free, compute_free, store_free = free
    reset, epilogue = ends
    uop_reset, uop_gemm = uops
    for t in range(threads):
        compute_free = max(compute_free, tokens[t].stored) + reset
        if first:
            compute_free += uop_reset
        tokens[t].to_load = compute_free
    step_before = 0.0
    some_steps = min(steps, _STEPS)
    for s in range(some_steps):
        for t in range(threads):
            load_free = max(load_free, tokens[t].to_load) + load
            tokens[t].to_compute = load_free
        for t in range(threads):
            # The first time, micro-ops are loaded once the GEMM would begin.
            begin = tokens[t].to_compute + uop_gemm if first and s == 0 else tokens[t].to_compute
            compute_free = max(compute_free, begin) + gemm
            tokens[t].to_load = compute_free
            if steps == 1:
                compute_free += epilogue
                tokens[t].to_store = compute_free
        if s == some_steps - 1 and steps > some_steps:
            drawn = (steps - some_steps) * (compute_free - step_before)
            load_free += drawn
            compute_free += drawn
            for t in range(threads):
                tokens[t].to_load += drawn
        step_before = compute_free
    if steps > 1:
        for t in range(threads):
            load_free = max(load_free, tokens[t].to_load) + _NOOP
            compute_free += epilogue
            tokens[t].to_store = compute_free
    for t in range(threads):
        store_free = max(store_free, tokens[t].to_store) + store
        tokens[t].stored = store_free
    return load_free, compute_free, store_free


@part()
def _overlap(threads, rounds, steps, again, uops, load, gemm, ends, store):  # type: ignore[no-untyped-def]
    """When the last store ends: times at which modules are free, and at which tokens are there.

    ``again``: cycles of micro-op loads of every round but the first; ``uops``: those of reset and GEMM in the first;
    ``ends``: cycles of reset and epilogue.
    """
    tokens = np.zeros(4, dtype=_TOKENS)
    free = (0.0, 0.0, 0.0)
    some_tiles = min(rounds, _TILES)
    before, elapsed = 0.0, 0.0
    for i in range(some_tiles):
        if again > 0.0 and i > 0:
            free = (free[0], free[1] + again, free[2])
        free = _tile(threads, steps, i == 0, uops, load, gemm, ends, store, free, tokens)
        before, elapsed = elapsed, free[2]
    if rounds > some_tiles:
        elapsed += (rounds - some_tiles) * (elapsed - before)
    return elapsed


@part()
def _recurrence(task, value, out):  # type: ignore[no-untyped-def]
    """Which loops are left to the micro-ops: a reduction among them comes back to each accumulator in turn."""
    folded, reduces = 0, 0
    extents = (value.tile_ci, value.tile_w, task.kw, task.kh, value.tile_co, value.tile_h)
    for k, extent in enumerate(extents):
        if extent == 1:
            continue
        if folded < 2:
            folded += 1
        elif k == 2 or k == 3:
            reduces = 1
    out.accumulators_in_turn, out.reduces_in_turn = value.tile_co * value.tile_h, reduces


@part()
def _uses(task, value, threads, out):  # type: ignore[no-untyped-def]
    """Shares of the SRAMs, sizes of input tiles, and what threads leave over."""
    th, tw, tci, tco = value.tile_h, value.tile_w, value.tile_ci, value.tile_co
    ih, iw = (th - 1) * task.sh + task.kh, (tw - 1) * task.sw + task.kw
    out.inp_use = threads * tci * ih * iw / task.inp_depth
    out.wgt_use = threads * tci * tco * task.kh * task.kw / task.wgt_depth
    out.acc_use = threads * (tco * th * tw) / task.acc_depth
    out.inp_rows, out.inp_columns = ih, iw
    out.rows_left_over = (task.oh // th) % value.h_nthread
    out.channels_left_over = (task.co // tco) % value.oc_nthread


@part()
def _fetch(task, instructions):  # type: ignore[no-untyped-def]
    """Cycles of the fetch of an instruction, and bus words of a chunk: each is read and then given out."""
    bus = 1 << task.log_bus
    wide = bus > 8
    chunk = min(task.burst // (1 if wide else 2), instructions)
    words = chunk * 16 / bus
    fetch = (task.latency + (8 if wide else 5) + words + chunk) / chunk
    head = 4 + task.latency + min(chunk, 8) * (16 / bus) + 1
    return fetch, words, head


@part()
def _summary(task, value, out):  # type: ignore[no-untyped-def]
    """The figures of a schedule; ``out``: a record of zeros."""
    th, tw, tci, tco = value.tile_h, value.tile_w, value.tile_ci, value.tile_co
    threads, stages = value.oc_nthread * value.h_nthread, task.stages
    acc, steps = tco * th * tw, task.ci // tci
    # Tiles of all threads, and how often each thread has one.
    tiles = task.nb * (task.oh // th) * (task.ow // tw) * (task.co // tco)
    rounds = max(1, tiles // threads)
    latency = task.latency
    inp_cycles = _input_loads(task, value, out)
    load = inp_cycles + _weight_loads(task, value, out) + (0 if task.hls else 2)
    store = _stores(task, value, out)

    # Compute.
    reset_uops, gemm_uops, _ = uop_counts(task, value)
    extra, alu_op, wait = float(_COMPUTE_EXTRA), 1.0, float(latency + _LOAD_EXTRA)
    if task.hls:
        extra, alu_op = task.hls_compute_start / TICKS, task.hls_alu_op / TICKS
        wait = (task.hls_compute_start + task.hls_read_row) / TICKS
    gemm = acc * tci * task.kh * task.kw + extra
    reset = acc + extra
    epilogue = stages * (alu_op * acc + extra)
    uop_beats = 4.0 / (1 << task.log_bus)
    uop_reset = reset_uops * uop_beats + wait
    uop_gemm = gemm_uops * uop_beats + wait
    uop_stages = stages * (uop_beats + wait)
    # Kernels that do not fit together are loaded again in every round; a thread's GEMM, if two do not fit, every step.
    own = reset_uops + gemm_uops + stages
    again = threads * own > task.uop_depth
    thrash = threads > 1 and 2 * gemm_uops > task.uop_depth
    uop_first = threads * (uop_reset + uop_gemm + uop_stages)
    uop_rounds = 0.0
    if again:
        uop_rounds = uop_first + (threads * (steps - 1) * uop_gemm if thrash else 0.0)
    elapsed = _overlap(threads, rounds, steps, uop_rounds, (uop_reset, uop_gemm), load, gemm, (reset, epilogue), store)

    loads = tiles * steps
    noops = tiles * (1 if steps > 1 else 0) + 6
    uop_loads = threads * (2 + stages) * (rounds if again else 1)
    instructions = tiles * (2 + stages) + 3 * loads + noops + uop_loads
    fetch, words, head = _fetch(task, instructions)
    if task.hls:
        # Fetching is invisible there.
        fetch, head = 0.0, 0.0
    out.head = latency + 4 + words + uop_reset
    out.fetch = fetch * instructions
    out.load = loads * load
    out.uop_load = uop_rounds * rounds if again else uop_first
    out.gemm = loads * gemm
    out.epilogue = tiles * (reset + epilogue)
    out.compute = out.gemm + out.epilogue + out.uop_load
    out.store = tiles * store
    out.estimate = head + max(elapsed, out.fetch)
    out.pads *= loads
    out.step_load, out.step_gemm = load, gemm
    out.tile_epilogue, out.tile_store = epilogue, store
    out.inp_bytes *= loads
    out.wgt_bytes *= loads
    out.inp_bursts *= loads
    out.wgt_bursts *= loads
    out.out_bytes *= tiles
    out.out_bursts *= tiles
    out.loads, out.stores, out.gemms, out.instructions = 2 * loads, tiles, loads, instructions
    out.tiles, out.steps = tiles, steps
    out.reset_uops, out.gemm_uops, out.uops = reset_uops, gemm_uops, threads * own
    _uses(task, value, threads, out)
    _recurrence(task, value, out)


@njit(cache=True, nogil=True)
def summaries_into(task, batch, out):  # type: ignore[no-untyped-def]
    """Figures of schedules (n,) into `FIGURES` (n,) of zeros."""
    for i in range(len(batch)):
        _summary(task, batch[i], out[i])


def figures_of(summary: NDArray[np.float64]) -> NDArray[np.void]:
    """Rows of `SUMMARY`, float64 (n, len(SUMMARY)), as `FIGURES` (n,), a view."""
    return np.ascontiguousarray(summary).view(FIGURES)[:, 0]


def summaries_of(task: Task, values: NDArray[np.int64], parallel: bool = True) -> NDArray[np.float64]:
    """`SUMMARY` of knob values (n, 7) on a task, float64 (n, len(SUMMARY)); on this thread, or on all cores."""
    batch, out = schedules(values), np.zeros((len(values), len(SUMMARY)))
    figures = figures_of(out)
    if parallel:
        in_parallel(lambda begin, end: summaries_into(task, batch[begin:end], figures[begin:end]), len(values))
    else:
        summaries_into(task, batch, figures)
    return out


def summaries(workload: Workload, accelerator: Accelerator, values: NDArray[np.int64]) -> NDArray[np.float64]:
    """`SUMMARY` of knob values (n, 7), float64 (n, len(SUMMARY)).

    Raises:
        WorkloadError: a workload that the template cannot express.
    """
    return summaries_of(make_task(workload, accelerator)[0], values)
