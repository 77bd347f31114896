"""Steps of a `full` schedule, and from them its validity without emitting anything.

A step is (output tile, reduction chunk, part of the opening) in program order: a group of LOADs and the GEMMs that
read them. `emit` turns the records of all steps into instructions; `reason_of` counts what `emit` would need and
stops at the first limit that program order meets, so both give the same `Reason`.
"""

from __future__ import annotations

import os

import numpy as np
from numba import types
from numpy.typing import NDArray

from oneshot_ml2.common.kernels import njit
from oneshot_ml2.common.parallel import in_parallel
from oneshot_ml2.spaces.full import plan as P
from oneshot_ml2.spaces.full.plan import INT, NEST, TABLE, VECTOR
from oneshot_ml2.vta.nest import MAX_INSNS, MAX_SIZE, Nest
from oneshot_ml2.vta.reasons import Reason

# Steps beyond which a schedule's records are not made: each takes an instruction, and memory.
MAX_STEPS = 32 * MAX_INSNS
# Rows that are never handed out, so that an index just past the program stays inside the work array.
SPARE = 2
_MAX_PAD = 15
_MAX_TOKENS = 255

VALID = int(Reason.VALID)
DMA_PATTERN = int(Reason.DMA_PATTERN)
ACC_HAZARD = int(Reason.ACC_HAZARD)
SRAM_OVERFLOW = int(Reason.SRAM_OVERFLOW)
UOP_OVERFLOW = int(Reason.UOP_OVERFLOW)
FIELD_OVERFLOW = int(Reason.FIELD_OVERFLOW)
INSTRUCTION_OVERFLOW = int(Reason.INSTRUCTION_OVERFLOW)
TOKEN_OVERFLOW = int(Reason.TOKEN_OVERFLOW)

# Columns of a step record: output tile, its channel and spatial tile; first input channel and how many; first output
# channel of the part within the tile and how many; SRAM bases of the input chunk and of the part's weights; ring or
# set slots of both; what the step loads (bits below); whether it is its tile's last; the last step whose reads its
# loads must wait for (running maximum, -1 none); whether a later step waits for this one.
(
    S_TILE,
    S_CO,
    S_SP,
    S_CI0,
    S_NCI,
    S_Q0,
    S_MCO,
    S_INP_BASE,
    S_WGT_BASE,
    S_INP_SLOT,
    S_WGT_SLOT,
    S_LOADS,
    S_LAST,
    S_NEEDS,
    S_PUSHES,
) = range(15)
STEP = 15
L_INP, L_WGT, L_RES, L_CONST = 1, 2, 4, 8

# Facts of one cut axis (`axis_facts`): largest extent in SRAM, why its pads cannot be loaded, whether a tile
# touches no real input.
_F_MAX, _F_PADS, _F_EMPTY = range(3)
# Columns of a cached tile: the ``A_*`` of `plan.tile_axis`, then taps that touch real inputs in one output.
_A_ONES = P.A_TOUCH + 1
_AXIS = _A_ONES + 1
# Columns of a cached axis: first row and number of its tiles, then of its tap items, then its facts.
_E_TILES, _E_COUNT, _E_ITEMS, _E_ITEM_COUNT, _E_FACTS = range(5)
# State of a count: instructions, micro-ops, first failure.
_INSNS, _UOPS, _FAIL = range(3)
_TABLE = 8192
# More than a schedule can have tiles (`too_many_tiles`), so that the hash table of tiles is never full.
_TILE_TABLE = MAX_INSNS
# Rows for which another thread is worth its start.
_PART = 2048

Tables = tuple[NDArray[np.int64], ...]


# --- sizes ----------------------------------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def axis_facts(axis, pad):  # type: ignore[no-untyped-def]
    """What static checks need of a `plan.tile_axis` beside its `plan.tap_items`: facts int64 (3,)."""
    facts = np.zeros(3, dtype=np.int64)
    for i in range(len(axis)):
        facts[_F_MAX] = max(facts[_F_MAX], axis[i, P.A_SIZE])
        if axis[i, P.A_GROUPS] == 0:
            facts[_F_EMPTY] = 1
        if pad == P.PAD_LOAD and facts[_F_PADS] == VALID:
            if axis[i, P.A_BEFORE] > _MAX_PAD or axis[i, P.A_AFTER] > _MAX_PAD:
                facts[_F_PADS] = FIELD_OVERFLOW
            elif axis[i, P.A_SIZE] - axis[i, P.A_BEFORE] - axis[i, P.A_AFTER] <= 0:
                facts[_F_PADS] = DMA_PATTERN
    return facts


@njit(cache=True, nogil=True)
def static_reason(nest, v, sp_tiles, row_facts, row_items, col_facts, col_items):  # type: ignore[no-untyped-def]
    """Why a schedule is invalid, as far as sizes decide: SRAM capacity, DMA patterns, instruction fields, hazards.

    ``row_facts`` ... ``col_items``: `axis_facts` and `plan.tap_items` of both axes.
    """
    max_rows, max_cols = row_facts[_F_MAX], col_facts[_F_MAX]
    _, need = P.sram_layout(nest, v, max_rows, max_cols, sp_tiles)
    P.sram_needed(nest, v, max_rows * max_cols, need)
    if not P.holds(nest, need):
        return SRAM_OVERFLOW
    if nest.bias and v[P.K_BIAS] == P.BIAS_GEMM and not nest.bias_gemm_fits:
        return FIELD_OVERFLOW
    if row_facts[_F_PADS] != VALID:
        return row_facts[_F_PADS]
    if col_facts[_F_PADS] != VALID:
        return col_facts[_F_PADS]
    channels = P.input_channels(nest, v)[0]
    if not nest.minor and not P.moves_apart(nest):
        if nest.ih * nest.iw > MAX_SIZE and channels > 1:
            return FIELD_OVERFLOW
        if nest.oh * nest.ow > MAX_SIZE and v[P.K_CO] > 1:
            return FIELD_OVERFLOW
    recurrence = P.recurrence(v[P.K_FOLD], P.narrowest(nest, v), v[P.K_CI], row_items, col_items)
    return ACC_HAZARD if recurrence < P.RECURRENCE else VALID


@njit(cache=True, nogil=True)
def recurs_always(nest, values):  # type: ignore[no-untyped-def]
    """Whether `static_reason` refuses all of some canonical schedules (n, knobs), and some for their hazards."""
    recurs = False
    for i in range(len(values)):
        v = values[i]
        rows, row_taps, cols, col_taps, _ = P.axes(nest, v)
        row_facts, col_facts = axis_facts(rows, v[P.K_PAD]), axis_facts(cols, v[P.K_PAD])
        row_items, col_items = P.tap_items(rows, row_taps), P.tap_items(cols, col_taps)
        sp_tiles = nest.nb * len(rows) * len(cols)
        reason = static_reason(nest, v, sp_tiles, row_facts, row_items, col_facts, col_items)
        if reason == VALID:
            return False
        recurs = recurs or reason == ACC_HAZARD
    return recurs


# --- shapes of memory instructions -----------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def input_is_compact(nest, size_h, size_w, pads, step):  # type: ignore[no-untyped-def]
    """Whether one instruction moves all channels of an input chunk; else each channel takes one."""
    if nest.minor:
        return True
    return not P.moves_apart(nest) and pads == 0 and (size_h == 1 or (size_w == nest.iw and step == 1))


@njit(cache=True, nogil=True)
def input_shape(nest, nci, size_h, size_w, pads_h, pads_w, step):  # type: ignore[no-untyped-def]
    """(instructions, y, x, stride) that load a chunk of ``nci`` channels of a spatial tile, which is not empty."""
    if nest.minor:
        return (1, 1, nci * size_w, 0) if nci == nest.ci else (1, size_w, nci, nest.ci)
    plane = nest.ih * nest.iw
    if input_is_compact(nest, size_h, size_w, pads_h + pads_w, step):
        if size_w == nest.iw and size_h == nest.ih:
            return 1, 1, nci * plane, 0
        return 1, nci, size_h * size_w, plane
    if P.moves_apart(nest) and size_w == nest.iw:
        return nci, 1, size_h * size_w, 0
    return nci, size_h - pads_h, size_w - pads_w, nest.iw * step


@njit(cache=True, nogil=True)
def weight_shape(nest, nci, mco):  # type: ignore[no-untyped-def]
    """(y, x, stride) of the LOAD of ``nci`` input channels of the weights of ``mco`` output channels."""
    if nest.pool:
        # The identity serves all.
        return 1, 1, 0
    taps = nest.kh * nest.kw
    width = nci * taps
    if nci == nest.ci and mco * width <= MAX_SIZE:
        return 1, mco * width, 0
    return mco, width, nest.ci * taps


@njit(cache=True, nogil=True)
def output_shape(nest, nc, nh, nw):  # type: ignore[no-untyped-def]
    """(instructions, y, x, stride) that move a block of an output-shaped tensor; of several, each moves a channel."""
    if nest.minor:
        return (1, 1, nc * nw, 0) if nc == nest.co else (1, nw, nc, nest.co)
    plane = nest.oh * nest.ow
    if P.moves_apart(nest) and nw == nest.ow:
        return nc, 1, nh * nw, 0
    if not P.moves_apart(nest) and (nw == nest.ow or nh == 1):
        return (1, 1, nc * plane, 0) if nh * nw == plane else (1, nc, nh * nw, plane)
    return nc, nh, nw, nest.ow


@njit(cache=True, nogil=True)
def bias_shape(nest, nco, nh, nw):  # type: ignore[no-untyped-def]
    """(instructions, y, x) that repeat the biases of a tile over its accumulators."""
    return (1, nw, nco) if nest.minor else (nco, nh * nw, 1)


@njit(types.boolean(INT, INT, INT, INT), cache=True, nogil=True)
def field_fits(y, x, stride, sram):  # type: ignore[no-untyped-def]
    """Whether a memory instruction's sizes and SRAM index fit its fields (VTA reference, section 3)."""
    return y <= MAX_SIZE and x <= MAX_SIZE and (y == 1 or stride <= MAX_SIZE) and sram <= MAX_SIZE


# --- steps ----------------------------------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def channel_tile(nest, v, c):  # type: ignore[no-untyped-def]
    """Channel tile ``c`` of all groups: (first output channel block, how many, its group, its number in the group)."""
    of_group = P.ceil_div(nest.co, v[P.K_CO])
    group, within = c // of_group, c % of_group
    return group * nest.co + within * v[P.K_CO], min(v[P.K_CO], nest.co - within * v[P.K_CO]), group, within


@njit(cache=True, nogil=True)
def part_inputs(nest, inp_base, q0, plane):  # type: ignore[no-untyped-def]
    """SRAM base of the inputs that the output channels from ``q0`` of a tile on are reduced over."""
    return inp_base + q0 * plane if nest.depthwise else inp_base


@njit(cache=True, nogil=True)
def tile_steps(nest, v, at, records, k, t, c, s, plane, starts, inp_ring, wgt_ring):  # type: ignore[no-untyped-def]
    """Records of the steps of output tile ``t`` from row ``k`` on, but for needs and pushes.

    ``at``: SRAM regions of `plan.sram_layout`; ``plane``: inputs of a channel of the spatial tile; ``starts``: its
    chunks; the rings count the chunks streamed before. Returns (row after the last, rings after the tile).
    """
    flow = v[P.K_FLOW]
    inp_mode, wgt_mode = P.INP_MODE[flow], P.WGT_MODE[flow]
    inp_buf, wgt_buf = v[P.K_INP_BUF], v[P.K_WGT_BUF]
    taps = nest.kh * nest.kw
    _, nco, group, within = channel_tile(nest, v, c)
    part, parts = nco, 1
    chunks = len(starts) - 1
    inputs = s * nest.groups + group
    inp_slot = (inputs % inp_buf) if inp_mode == P.SET else inputs
    wgt_slot = (c % wgt_buf) if wgt_mode == P.SET else c
    loads_inp = plane > 0 and (inp_mode == P.STREAM or within == 0)
    loads_wgt = t == 0 if nest.pool else (wgt_mode == P.STREAM or s == 0)
    for j in range(chunks):
        ci0 = starts[j]
        nci = starts[j + 1] - ci0
        parts = 1
        if t == 0 and j == 0:
            part, parts = P.head_parts(nco, v[P.K_HEAD])
        if inp_mode == P.STREAM:
            inp_slot = inp_ring % inp_buf
            inp_base = inp_slot * at[0]
            inp_ring += plane > 0
        else:
            inp_base = inp_slot * at[0] + ci0 * plane
        if nest.pool:
            wgt_base = np.int64(0)
        elif wgt_mode == P.STREAM:
            wgt_slot = wgt_ring % wgt_buf
            wgt_base = wgt_slot * at[5]
            wgt_ring += 1
        else:
            wgt_base = wgt_slot * at[5] + ci0 * nco * taps
        for index in range(parts):
            q0 = index * part if parts > 1 else 0
            last = j == chunks - 1 and index == parts - 1
            loads = 0
            if loads_inp and index == 0:
                loads |= L_INP
            if loads_wgt:
                loads |= L_WGT
            if last and nest.residual:
                loads |= L_RES
            if last and t == 0 and nest.bias and v[P.K_BIAS] == P.BIAS_GEMM:
                loads |= L_CONST
            records[k, S_TILE] = t
            records[k, S_CO] = c
            records[k, S_SP] = s
            records[k, S_CI0] = ci0
            records[k, S_NCI] = nci
            records[k, S_Q0] = q0
            records[k, S_MCO] = nco - q0 if index == parts - 1 else part
            records[k, S_INP_BASE] = inp_base
            records[k, S_WGT_BASE] = 0 if nest.pool else wgt_base + q0 * nci * taps
            records[k, S_INP_SLOT] = inp_slot
            records[k, S_WGT_SLOT] = wgt_slot
            records[k, S_LOADS] = loads
            records[k, S_LAST] = last
            records[k, S_NEEDS] = -1
            records[k, S_PUSHES] = 0
            k += 1
    return k, inp_ring, wgt_ring


@njit(cache=True, nogil=True)
def step_count(nest, v, sp_tiles, co_tiles, whole, tapered):  # type: ignore[no-untyped-def]
    """How many step records a schedule has; ``whole``, ``tapered``: its `plan.chunk_starts`."""
    flow, tiles = v[P.K_FLOW], sp_tiles * co_tiles
    # As `plan.is_tapered` says of each tile.
    tapers = np.int64(0)
    if v[P.K_HEAD] != P.HEAD_WHOLE:
        tapers = np.int64(1)
        if nest.minor and P.INP_MODE[flow] != P.STREAM:
            tapers = tiles
        elif P.WGT_MODE[flow] != P.STREAM:
            tapers = sp_tiles
    parts = P.head_parts(min(v[P.K_CO], nest.co), v[P.K_HEAD])[1]
    return tapers * (len(tapered) - 1) + (tiles - tapers) * (len(whole) - 1) + parts - 1


@njit(cache=True, nogil=True)
def walk(nest, v, at, rows, cols, whole, tapered, records):  # type: ignore[no-untyped-def]
    """Records of all steps; ``rows``, ``cols``: int64 (tiles, at least 10), columns ``A_*``. Returns how many."""
    n_h, n_w = len(rows), len(cols)
    sp_tiles = nest.nb * n_h * n_w
    co_tiles = P.channel_tiles(nest, v)
    flow = v[P.K_FLOW]
    co_outer = P.outer_is_co(flow)
    inp_ring = wgt_ring = np.int64(0)
    k = 0
    for t in range(sp_tiles * co_tiles):
        if co_outer:
            c, s = t // sp_tiles, t % sp_tiles
        else:
            s, c = t // co_tiles, t % co_tiles
        starts = tapered if P.is_tapered(nest, flow, v[P.K_HEAD], c, s) else whole
        plane = rows[(s // n_w) % n_h, P.A_SIZE] * cols[s % n_w, P.A_SIZE]
        k, inp_ring, wgt_ring = tile_steps(nest, v, at, records, k, t, c, s, plane, starts, inp_ring, wgt_ring)
    _waits(nest, v, rows, cols, records[:k])
    return k


@njit(cache=True, nogil=True)
def _waits(nest, v, rows, cols, records):  # type: ignore[no-untyped-def]
    """Fill needs and pushes: the loads of a step overwrite what earlier steps read, and must wait for those."""
    n_h, n_w = len(rows), len(cols)
    flow = v[P.K_FLOW]
    inp_mode, wgt_mode = P.INP_MODE[flow], P.WGT_MODE[flow]
    inp_sets, wgt_sets = max(v[P.K_INP_BUF], 1), max(v[P.K_WGT_BUF], 1)
    inp_read = np.full((inp_sets, nest.ci), -1, dtype=np.int64)
    wgt_read = np.full((wgt_sets, nest.ci), -1, dtype=np.int64)
    res_read = np.full(inp_sets, -1, dtype=np.int64)
    # Extent a channel of each set last had, and what a set of another extent must wait for.
    inp_extent = np.zeros(inp_sets, dtype=np.int64)
    wgt_extent = np.zeros(wgt_sets, dtype=np.int64)
    inp_wait = wgt_wait = running = np.int64(-1)
    tile = np.int64(-1)
    plane = np.int64(0)
    # The parts of the opening read the same inputs; the last of them stands for all.
    opening = P.head_parts(min(v[P.K_CO], nest.co), v[P.K_HEAD])[1] - 1
    for k in range(opening, len(records)):
        c, s, loads = records[k, S_CO], records[k, S_SP], records[k, S_LOADS]
        inp_slot, wgt_slot = records[k, S_INP_SLOT], records[k, S_WGT_SLOT]
        if records[k, S_TILE] != tile:
            tile = records[k, S_TILE]
            plane = rows[(s // n_w) % n_h, P.A_SIZE] * cols[s % n_w, P.A_SIZE]
            _, width, _, within = channel_tile(nest, v, c)
            if inp_mode == P.SET and within == 0 and plane > 0:
                inp_wait = np.int64(-1)
                if inp_extent[inp_slot] != plane:
                    inp_wait = inp_read[inp_slot].max()
                    inp_extent[inp_slot] = plane
            if wgt_mode == P.SET and s == 0:
                wgt_wait = np.int64(-1)
                if wgt_extent[wgt_slot] != width:
                    wgt_wait = wgt_read[wgt_slot].max()
                    wgt_extent[wgt_slot] = width
        wait = np.int64(-1)
        ci0, after = records[k, S_CI0], records[k, S_CI0] + records[k, S_NCI]
        if inp_mode == P.STREAM:
            if plane > 0:
                wait = max(wait, inp_read[inp_slot, 0])
                inp_read[inp_slot, 0] = k
        elif inp_mode == P.SET:
            for i in range(ci0, after):
                if loads & L_INP:
                    wait = max(wait, inp_wait, inp_read[inp_slot, i])
                inp_read[inp_slot, i] = k
        if wgt_mode == P.STREAM:
            if not nest.pool:
                wait = max(wait, wgt_read[wgt_slot, 0])
                wgt_read[wgt_slot, 0] = k
        elif wgt_mode == P.SET:
            for i in range(ci0, after):
                if loads & L_WGT:
                    wait = max(wait, wgt_wait, wgt_read[wgt_slot, i])
                wgt_read[wgt_slot, i] = k
        if loads & L_RES:
            slot = tile % v[P.K_INP_BUF]
            wait = max(wait, res_read[slot])
            res_read[slot] = k
        if wait > running:
            running = wait
            records[wait, S_PUSHES] = 1
        records[k, S_NEEDS] = running


@njit(cache=True, nogil=True)
def tokens_fit(records):  # type: ignore[no-untyped-def]
    """Whether a counter holds the tokens outstanding, whatever the timing (VTA reference, 4: it holds 255)."""
    steps = len(records)
    loaded = np.zeros(steps + 1, dtype=np.int64)
    marked = np.zeros(steps + 1, dtype=np.int64)
    for i in range(steps):
        loaded[i + 1] = loaded[i] + (records[i, S_LOADS] != 0)
        marked[i + 1] = marked[i] + records[i, S_PUSHES]
    granted = np.int64(-1)
    for i in range(steps):
        if records[i, S_LOADS]:
            granted = records[i, S_NEEDS]
            if loaded[i + 1] - loaded[granted + 1] > _MAX_TOKENS:
                return False
        if marked[i + 1] - marked[granted + 1] > _MAX_TOKENS:
            return False
    return True


@njit(cache=True, nogil=True)
def _tokens_surely_fit(nest, v, sp_tiles, co_tiles, chunks, empty):  # type: ignore[no-untyped-def]
    """A cheap proof that `tokens_fit`: every step waits for one a few before it, or few steps load at all.

    ``chunks``: of a tile, at most; ``empty``: whether some tile reads no input.
    """
    flow = v[P.K_FLOW]
    parts = P.head_parts(min(v[P.K_CO], nest.co), v[P.K_HEAD])[1]
    if P.WGT_MODE[flow] == P.STREAM and not nest.pool:
        return v[P.K_WGT_BUF] + parts <= _MAX_TOKENS
    if P.INP_MODE[flow] == P.STREAM and not empty:
        return v[P.K_INP_BUF] + parts <= _MAX_TOKENS
    fresh = sp_tiles * co_tiles
    if P.INP_MODE[flow] != P.STREAM:
        fresh = sp_tiles * nest.groups + co_tiles
    return fresh * chunks + parts + (sp_tiles * co_tiles if nest.residual else 0) <= _MAX_TOKENS


# --- counting -------------------------------------------------------------------------------------------------------


@njit(types.void(VECTOR, INT), cache=True, nogil=True)
def _count(state, n):  # type: ignore[no-untyped-def]
    """``n`` instructions without fields to check."""
    state[_INSNS] += n
    if state[_INSNS] > MAX_INSNS - SPARE and state[_FAIL] == VALID:
        state[_FAIL] = INSTRUCTION_OVERFLOW


@njit(types.void(VECTOR, INT, INT, INT, INT, INT, INT), cache=True, nogil=True)
def _count_moves(state, n, y, x, stride, sram, apart):  # type: ignore[no-untyped-def]
    """``n`` memory instructions whose SRAM indices lie ``apart``."""
    if state[_FAIL] != VALID:
        return
    fitting = n
    if not field_fits(y, x, stride, sram):
        fitting = 0
    elif sram + (n - 1) * apart > MAX_SIZE:
        fitting = (MAX_SIZE - sram) // apart + 1
    if fitting < min(n, MAX_INSNS - SPARE - state[_INSNS]):
        state[_FAIL] = FIELD_OVERFLOW
    _count(state, n)


@njit(cache=True, nogil=True)
def _mix(h):  # type: ignore[no-untyped-def]
    h *= np.int64(-7046029254386353131)
    return h ^ (h >> np.int64(31))


@njit(types.void(NEST, VECTOR, TABLE, VECTOR, INT, INT, INT, INT, INT), cache=True, nogil=True)
def _count_kernel(nest, state, kernels, stamps, stamp, first, second, third, uops):  # type: ignore[no-untyped-def]
    """A kernel of ``uops`` micro-ops, known by three words; counted once a schedule (``stamp``)."""
    if state[_FAIL] != VALID:
        return
    slot = _mix(_mix(_mix(first) + second) + third) & (_TABLE - 1)
    while stamps[slot] == stamp:
        if kernels[slot, 0] == first and kernels[slot, 1] == second and kernels[slot, 2] == third:
            return
        slot = (slot + 1) & (_TABLE - 1)
    if state[_UOPS] + uops > nest.uop_limit:
        state[_FAIL] = UOP_OVERFLOW
        return
    state[_UOPS] += uops
    stamps[slot] = stamp
    kernels[slot, 0], kernels[slot, 1], kernels[slot, 2] = first, second, third


@njit(types.void(NEST, VECTOR, TABLE, VECTOR, INT, INT, INT, INT), cache=True, nogil=True)
def _count_single(nest, state, kernels, stamps, stamp, dst, src, wgt):  # type: ignore[no-untyped-def]
    """A one-micro-op kernel."""
    _count_kernel(nest, state, kernels, stamps, stamp, (dst << 32) | src, wgt << 32, np.int64(-1), 1)


@njit(cache=True, nogil=True)
def _tap_uops(v, rows, hi, cols, wi, nci, mco):  # type: ignore[no-untyped-def]
    """Micro-ops of the kernels of all tap groups of a step."""
    if v[P.K_FOLD] == P.FOLD_SPACE:
        return rows[hi, P.A_TOUCH] * cols[wi, P.A_TOUCH] * nci * mco
    if v[P.K_FOLD] == P.FOLD_CI_CO:
        return rows[hi, P.A_TAPS] * cols[wi, P.A_TAPS]
    # Taps that touch one row iterate over its columns; the others have a micro-op a column.
    ones = rows[hi, _A_ONES]
    return mco * (ones * cols[wi, P.A_TOUCH] + (rows[hi, P.A_TOUCH] - ones) * cols[wi, P.A_TAPS])


@njit(cache=True, nogil=True)
def _count_tile(nest, v, at, rows, cols, step, tiles, records, k, end, state, kernels, stamps, stamp):  # type: ignore[no-untyped-def]
    """Count output tile of the step records ``k`` to ``end``, in the order of `emit.lower_into`; stop at a failure."""
    t, c, s = records[k, S_TILE], records[k, S_CO], records[k, S_SP]
    n_h, n_w = len(rows), len(cols)
    hi, wi = (s // n_w) % n_h, s % n_w
    minor, bias = nest.minor, v[P.K_BIAS] if nest.bias else -1
    c0, nco, _, _ = channel_tile(nest, v, c)
    nh, nw = rows[hi, P.A_COUNT], cols[wi, P.A_COUNT]
    area = nh * nw
    size_h, size_w = rows[hi, P.A_SIZE], cols[wi, P.A_SIZE]
    pads_h = pads_w = 0
    if v[P.K_PAD] == P.PAD_LOAD:
        pads_h = rows[hi, P.A_BEFORE] + rows[hi, P.A_AFTER]
        pads_w = cols[wi, P.A_BEFORE] + cols[wi, P.A_AFTER]
    groups = P.gemms_of(v[P.K_FOLD], rows[hi], cols[wi])
    signature = rows[hi, P.A_CLASS] * n_w + cols[wi, P.A_CLASS]
    acc = (t % v[P.K_ACC_BUF]) * at[8]
    acc_co = 1 if minor else area

    if bias == P.BIAS_LOAD:
        n, y, x = bias_shape(nest, nco, nh, nw)
        _count_moves(state, n, y, x, 0, acc, area)
    else:
        if bias == P.BIAS_ADD and t == 0:
            _count_moves(state, 1, 1, nest.out_blocks, 0, at[9], 0)
        _count_single(nest, state, kernels, stamps, stamp, acc, 0, 0)
        _count(state, 1)
    pool, scratch = nest.pool, at[10]
    if pool:
        _count_single(nest, state, kernels, stamps, stamp, acc, acc, 0)
        _count(state, 1)
    res_at = at[3] + (t % v[P.K_INP_BUF]) * at[2]
    for i in range(k, end):
        nci, mco, loads = records[i, S_NCI], records[i, S_MCO], records[i, S_LOADS]
        inp_base, wgt_base = records[i, S_INP_BASE], records[i, S_WGT_BASE]
        if loads & L_INP:
            channels = nco if nest.depthwise else nci
            n, y, x, stride = input_shape(nest, channels, size_h, size_w, pads_h, pads_w, step)
            _count_moves(state, n, y, x, stride, inp_base, size_h * size_w)
        if loads & L_WGT:
            y, x, stride = weight_shape(nest, nci, mco)
            _count_moves(state, 1, y, x, stride, wgt_base, 0)
        if loads & L_RES:
            n, y, x, stride = output_shape(nest, nco, nh, nw)
            _count_moves(state, n, y, x, stride, res_at, area)
            if t == 0:
                _count_moves(state, 1, 1, 1, 0, at[6], 0)
        if loads & L_CONST:
            _count_moves(state, 1, 1, nest.out_blocks, 0, at[7], 0)
            _count_moves(state, 1, 1, 1, 0, at[4], 0)
        if pool and size_h * size_w > 0:
            _count_single(nest, state, kernels, stamps, stamp, scratch, 0, 0)
            _count_single(nest, state, kernels, stamps, stamp, scratch, inp_base, 0)
            _count(state, 2)
        _count(state, groups)
        if groups:
            acc_q = acc + records[i, S_Q0] * acc_co
            uops = _tap_uops(v, rows, hi, cols, wi, nci, mco)
            source = scratch if pool else part_inputs(nest, inp_base, records[i, S_Q0], size_h * size_w)
            first, second = (acc_q << 32) | source, (wgt_base << 32) | nci
            _count_kernel(nest, state, kernels, stamps, stamp, first, second, (mco << 32) | signature, uops)
        extra = 0
        if records[i, S_LAST]:
            if bias == P.BIAS_ADD and nest.pre_shift >= 0:
                _count_single(nest, state, kernels, stamps, stamp, acc, at[9] + c0, 0)
                _count(state, 1)
                extra += 1
            if bias == P.BIAS_GEMM:
                _count_single(nest, state, kernels, stamps, stamp, acc, at[4], at[7] + c0)
                _count(state, 1)
                extra += 1
            if nest.pre_shift >= 0:
                _count_single(nest, state, kernels, stamps, stamp, acc, acc, 0)
                _count(state, 1)
                extra += 1
            if nest.residual:
                _count_single(nest, state, kernels, stamps, stamp, acc, res_at, at[6])
                _count(state, 1)
                extra += 1
        if groups + extra == 0 and (loads or records[i, S_PUSHES]):
            _count(state, 1)
        if state[_FAIL] != VALID:
            return
    if bias == P.BIAS_ADD and nest.pre_shift < 0:
        _count_single(nest, state, kernels, stamps, stamp, acc, at[9] + c0, 0)
        _count(state, 1)
    stages = P.stage_passes(nest)[0]
    piece_c, piece_h, piece_w = P.pieces(nest, nco, nh, nw, P.drains(v, t, tiles))
    for b in range(0, nco, piece_c):
        for h in range(0, nh, piece_h):
            for w in range(0, nw, piece_w):
                mc, mh, mw = min(piece_c, nco - b), min(piece_h, nh - h), min(piece_w, nw - w)
                piece = acc + ((w * nco + b) if minor else b * area + h * nw + w)
                if nest.even:
                    _count_single(nest, state, kernels, stamps, stamp, scratch, 0, 0)
                    _count_single(nest, state, kernels, stamps, stamp, scratch, piece, 0)
                    _count_single(nest, state, kernels, stamps, stamp, scratch, scratch, 0)
                    _count_single(nest, state, kernels, stamps, stamp, piece, scratch, 0)
                _count_single(nest, state, kernels, stamps, stamp, piece, piece, 0)
                _count(state, stages)
                n, y, x, stride = output_shape(nest, mc, mh, mw)
                _count_moves(state, n, y, x, stride, piece, mh * mw)
                if state[_FAIL] != VALID:
                    return


@njit(cache=True, nogil=True)
def _fields_surely_fit(nest):  # type: ignore[no-untyped-def]
    """Whether no memory instruction of any schedule that fits the SRAMs can overflow a field."""
    most = max(nest.inp_depth, nest.wgt_depth, nest.acc_depth, nest.ih * nest.iw * nest.sh, nest.oh * nest.ow)
    return max(most, nest.ci * nest.kh * nest.kw, nest.out_blocks) <= MAX_SIZE


@njit(cache=True, nogil=True)
def _counted_reason(nest, v, rows, cols, row_facts, col_facts, work, stamp):  # type: ignore[no-untyped-def]
    """Tokens, instructions, micro-ops and fields of a schedule that has no static reason against it."""
    records, state, kernels, kernel_stamps, tile_keys, tile_insns, tile_stamps = work
    n_h, n_w = len(rows), len(cols)
    sp_tiles = nest.nb * n_h * n_w
    co_tiles, groups = P.channel_tiles(nest, v), nest.groups
    tiles = sp_tiles * co_tiles
    flow = v[P.K_FLOW]
    inp_mode, wgt_mode = P.INP_MODE[flow], P.WGT_MODE[flow]
    if too_many_tiles(tiles, P.ceil_div(nest.ci, v[P.K_CI])):
        return INSTRUCTION_OVERFLOW
    whole = P.chunk_starts(nest.ci, v[P.K_CI], P.HEAD_WHOLE)
    tapered = whole
    if v[P.K_HEAD] != P.HEAD_WHOLE:
        tapered = P.chunk_starts(nest.ci, v[P.K_CI], v[P.K_HEAD])
    at, _ = P.sram_layout(nest, v, row_facts[_F_MAX], col_facts[_F_MAX], sp_tiles)
    step = P.load_step(nest.kh, nest.sh, v[P.K_PAD], True)
    empty = row_facts[_F_EMPTY] + col_facts[_F_EMPTY] > 0
    state[:] = 0
    state[_INSNS] = 1  # the LOAD of the micro-ops

    count = step_count(nest, v, sp_tiles, co_tiles, whole, tapered)
    if count > MAX_STEPS:
        return INSTRUCTION_OVERFLOW
    known = _tokens_surely_fit(nest, v, sp_tiles, co_tiles, max(len(whole), len(tapered)) - 1, empty)
    if len(records) < count:
        records = np.empty((count, STEP), dtype=np.int64)
    # NOPs of steps without GEMMs depend on what waits for them.
    walked = empty or not known
    if walked:
        k = walk(nest, v, at, rows, cols, whole, tapered, records)
        if not known and not tokens_fit(records[:k]):
            return TOKEN_OVERFLOW

    # Radices of a word that tells apart all tiles but those that repeat another's kernels and instructions.
    inp_buf, wgt_buf, acc_buf = v[P.K_INP_BUF], v[P.K_WGT_BUF], v[P.K_ACC_BUF]
    inp_radix = sp_tiles * groups if inp_mode == P.ALL else inp_buf
    wgt_radix = co_tiles if wgt_mode == P.ALL else wgt_buf
    res_radix = inp_buf if nest.residual else 1
    co_radix = max(co_tiles, 2) if nest.bias and v[P.K_BIAS] != P.BIAS_LOAD else 2
    words = 16.0 * acc_buf * inp_radix * wgt_radix * res_radix * co_radix * (n_h * n_w)
    repeats = not empty and words < 2.0**62 and _fields_surely_fit(nest)
    co_outer = P.outer_is_co(flow)
    inp_ring = wgt_ring = np.int64(0)
    c = s = hi = wi = np.int64(0)
    acc_i = res_i = np.int64(0)
    row = word = np.int64(0)
    opening = P.head_parts(min(v[P.K_CO], nest.co), v[P.K_HEAD])[1] - 1
    for t in range(tiles):
        slot = np.int64(-1)
        taper = P.is_tapered(nest, flow, v[P.K_HEAD], c, s)
        starts = tapered if taper else whole
        chunks = len(starts) - 1
        if repeats and 0 < t < tiles - 1:
            _, width, group, within = channel_tile(nest, v, c)
            inputs = s * groups + group
            loads_inp = inp_mode == P.STREAM or within == 0
            loads_wgt = wgt_mode == P.STREAM or s == 0
            pads = 0
            if v[P.K_PAD] == P.PAD_LOAD:
                pads = rows[hi, P.A_BEFORE] + rows[hi, P.A_AFTER] + cols[wi, P.A_BEFORE] + cols[wi, P.A_AFTER]
            compact = input_is_compact(nest, rows[hi, P.A_SIZE], cols[wi, P.A_SIZE], pads, step)
            word = np.int64(taper) * 8 + loads_inp * 4 + loads_wgt * 2 + compact
            word = word * acc_buf + acc_i
            word = word * inp_radix + (inp_ring if inp_mode == P.STREAM else (inputs % inp_radix))
            word = word * wgt_radix + (wgt_ring if wgt_mode == P.STREAM else (c if wgt_mode == P.ALL else c % wgt_buf))
            word = word * res_radix + (res_i if nest.residual else 0)
            word = word * co_radix + (c if co_radix > 2 else np.int64(width < v[P.K_CO]))
            word = word * (n_h * n_w) + rows[hi, P.A_CLASS] * n_w + cols[wi, P.A_CLASS]
            slot = _mix(word) & (_TILE_TABLE - 1)
            while tile_stamps[slot] == stamp and tile_keys[slot] != word:
                slot = (slot + 1) & (_TILE_TABLE - 1)
        steps = chunks + (opening if t == 0 else 0)
        if slot >= 0 and tile_stamps[slot] == stamp:
            _count(state, tile_insns[slot])
        else:
            first = np.int64(0)
            if walked:
                first = row
            else:
                plane = rows[hi, P.A_SIZE] * cols[wi, P.A_SIZE]
                tile_steps(nest, v, at, records, np.int64(0), t, c, s, plane, starts, inp_ring, wgt_ring)
            before = state[_INSNS]
            _count_tile(
                nest,
                v,
                at,
                rows,
                cols,
                step,
                tiles,
                records,
                first,
                first + steps,
                state,
                kernels,
                kernel_stamps,
                stamp,
            )
            if slot >= 0:
                tile_stamps[slot] = stamp
                tile_keys[slot] = word
                tile_insns[slot] = state[_INSNS] - before
        if state[_FAIL] != VALID:
            return state[_FAIL]
        row += steps
        inp_ring = (inp_ring + chunks) % inp_buf
        wgt_ring = (wgt_ring + chunks) % wgt_buf
        acc_i = acc_i + 1 if acc_i + 1 < acc_buf else 0
        res_i = res_i + 1 if res_i + 1 < inp_buf else 0
        if not co_outer:
            c += 1
            if c < co_tiles:
                continue
            c = 0
        s += 1
        wi += 1
        if wi == n_w:
            wi = 0
            hi = hi + 1 if hi + 1 < n_h else 0
        if s == sp_tiles:
            s = 0
            c += co_outer
    _count(state, 2)  # the last wait for a store, and FINISH
    return state[_FAIL]


@njit(cache=True, nogil=True)
def too_many_tiles(tiles, chunks):  # type: ignore[no-untyped-def]
    """Whether a GEMM or NOP a step and a reset and a store a tile are too many, at so many whole chunks a tile."""
    return tiles * (chunks + 2) > MAX_INSNS


# --- batches --------------------------------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def _cut_axis(nest, values, is_rows):  # type: ignore[no-untyped-def]
    """All ways in which the schedules ``values`` cut one axis, each once.

    Returns which cut each schedule has, int64 (n,); the cuts int64 (cuts, 7), columns ``_E_*``; all their tiles int64
    (tiles, 11), and all their tap items int64 (items, 3).
    """
    if is_rows:
        out, size, kernel, stride, spread = nest.oh, nest.ih, nest.kh, nest.sh, nest.th
        dilation, lead = nest.dh, nest.pt
    else:
        out, size, kernel, stride, spread = nest.ow, nest.iw, nest.kw, nest.sw, nest.tw
        dilation, lead = nest.dw, nest.pl
    tile_column = P.K_H if is_rows else P.K_W
    which = np.empty(len(values), dtype=np.int64)
    known = np.full(2 * (out + 1), -1, dtype=np.int64)
    count = tiles = np.int64(0)
    for i in range(len(values)):
        tile = min(values[i, tile_column], out)
        key = 2 * tile + (values[i, P.K_PAD] == P.PAD_LOAD)
        if known[key] < 0:
            known[key] = count
            count += 1
            tiles += min(P.ceil_div(out, tile), P.most_tiles(kernel) + 1)
        which[i] = known[key]
    cuts = np.zeros((count, 7), dtype=np.int64)
    axes = np.zeros((tiles, _AXIS), dtype=np.int64)
    all_items = np.empty((tiles * kernel, 3), dtype=np.int64)
    tiles = items_end = np.int64(0)
    for key in range(len(known)):
        if known[key] < 0:
            continue
        tile, pad = key // 2, P.PAD_LOAD if key & 1 else P.PAD_SKIP
        step = P.load_step(kernel, stride, pad, is_rows)
        axis, taps = P.tile_axis(out, size, kernel, stride, spread, dilation, lead, step, tile, pad)
        facts, items = axis_facts(axis, pad), P.tap_items(axis, taps)
        n, m = len(axis), len(items)
        cut = cuts[known[key]]
        cut[_E_TILES], cut[_E_COUNT], cut[_E_ITEMS], cut[_E_ITEM_COUNT] = tiles, n, items_end, m
        cut[_E_FACTS:] = facts
        all_items[items_end : items_end + m] = items
        for i in range(n):
            axes[tiles + i, :_A_ONES] = axis[i]
            for k in range(kernel):
                axes[tiles + i, _A_ONES] += taps[i, k, 1] == 1
        tiles += n
        items_end += m
    return which, cuts, axes, all_items


@njit(cache=True, nogil=True)
def reason_of(nest, v, row_cut, rows, row_items, col_cut, cols, col_items, work, stamp):  # type: ignore[no-untyped-def]
    """`Reason` of canonical knob values ``v``: what `emit.lower_into` returns.

    ``row_cut`` ... ``col_items``: its cuts of both axes and the arrays they point into (`_cut_axis`); ``work``:
    `count_tables`; ``stamp``: a positive number that no earlier schedule on the same tables had.
    """
    i, n, j, m = row_cut[_E_TILES], row_cut[_E_COUNT], row_cut[_E_ITEMS], row_cut[_E_ITEM_COUNT]
    rows, row_items, row_facts = rows[i : i + n], row_items[j : j + m], row_cut[_E_FACTS:]
    i, n, j, m = col_cut[_E_TILES], col_cut[_E_COUNT], col_cut[_E_ITEMS], col_cut[_E_ITEM_COUNT]
    cols, col_items, col_facts = cols[i : i + n], col_items[j : j + m], col_cut[_E_FACTS:]
    reason = static_reason(nest, v, nest.nb * len(rows) * len(cols), row_facts, row_items, col_facts, col_items)
    if reason != VALID:
        return reason
    return _counted_reason(nest, v, rows, cols, row_facts, col_facts, work, stamp)


@njit(cache=True, nogil=True)
def _reasons(nest, values, work, out):  # type: ignore[no-untyped-def]
    """`reason_of` of every row of ``values``, which are made canonical in place, into ``out`` uint8 (n,)."""
    P.canonical_rows(nest, values)
    row_cut, row_cuts, rows, row_items = _cut_axis(nest, values, np.int64(1))
    col_cut, col_cuts, cols, col_items = _cut_axis(nest, values, np.int64(0))
    for i in range(len(values)):
        out[i] = reason_of(
            nest, values[i], row_cuts[row_cut[i]], rows, row_items, col_cuts[col_cut[i]], cols, col_items, work, i + 1
        )


def step_table() -> NDArray[np.int64]:
    """Work array of step records, int64 (n, STEP)."""
    return np.empty((MAX_INSNS, STEP), dtype=np.int64)


def count_tables() -> Tables:
    """Work arrays of counting: step records, state, and hash tables of kernels and of tiles, with their stamps."""
    return (
        step_table(),
        np.zeros(3, dtype=np.int64),
        np.empty((_TABLE, 3), dtype=np.int64),
        np.zeros(_TABLE, dtype=np.int64),
        np.empty(_TILE_TABLE, dtype=np.int64),
        np.empty(_TILE_TABLE, dtype=np.int64),
        np.zeros(_TILE_TABLE, dtype=np.int64),
    )


def _part(nest: Nest, values: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
    _reasons(nest, values, count_tables(), out)


def reasons(nest: Nest, values: NDArray[np.int64]) -> NDArray[np.uint8]:
    """`Reason` of each row of knob values (n, knobs), uint8 (n,), on all cores; the input is left alone."""
    values = np.array(values, dtype=np.int64, order="C")
    out = np.zeros(len(values), dtype=np.uint8)
    parts = min(os.cpu_count() or 1, -(-len(values) // _PART))
    if parts <= 1:
        _part(nest, values, out)
        return out
    # Interleaved rows would make the parts' work equal, but not contiguous; many small parts do nearly as well.
    in_parallel(lambda begin, end: _part(nest, values[begin:end], out[begin:end]), len(values), 4 * parts)
    return out
