"""Turns a plan into instructions and micro-ops, in numba, one schedule at a call.

Steps are (output tile, reduction chunk) pairs in program order; each is a group of LOADs, the GEMMs that
read them, and after a tile's last chunk its epilogue and STOREs. Every push stands before its pop in
program order, so that no queue length can make the program hang.
"""

from __future__ import annotations

import numpy as np
from numba import types
from numpy.typing import NDArray

from oneshot_ml2.common.kernels import njit
from oneshot_ml2.spaces.full import plan as P
from oneshot_ml2.spaces.full import steps as S
from oneshot_ml2.spaces.full.plan import INT, NEST, TABLE, VECTOR
from oneshot_ml2.spaces.full.steps import FIELD_OVERFLOW, INSTRUCTION_OVERFLOW, TOKEN_OVERFLOW, UOP_OVERFLOW, VALID
from oneshot_ml2.vta import program as G
from oneshot_ml2.vta.reasons import Reason
from oneshot_ml2.vta.tokens import runs_in_order

_MAX_KERNELS = 2048
_TABLE = 8192
_KEY = 9

DEADLOCK = int(Reason.DEADLOCK)
# A loop of an instruction: extent, and factors of destination, source and weight.
_LOOP = types.UniTuple(INT, 4)  # type: ignore[no-untyped-call]
_LEAST = -128

# Kinds of micro-op kernels, part of their key; of taps the first row is added.
_ONE, _GROUP = 0, 1
# Slots of the mutable state: instructions, micro-ops, kernels, and the first failure.
_N_INSN, _N_UOP, _N_KERNEL, _FAIL = range(4)

Tables = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int16]]


def tables() -> Tables:
    """Work arrays: step records, and of the micro-op kernels keys, (begin, end) and hash table."""
    return (
        S.step_table(),
        np.empty((_MAX_KERNELS, _KEY), dtype=np.int64),
        np.empty((_MAX_KERNELS, 2), dtype=np.int64),
        np.empty(_TABLE, dtype=np.int16),
    )


@njit(types.void(VECTOR, INT), cache=True, nogil=True)
def _fail(state, reason):  # type: ignore[no-untyped-def]
    """Note the failure that program order meets first."""
    if state[_FAIL] == VALID:
        state[_FAIL] = reason


@njit(cache=True, nogil=True)
def _row(insns, state):  # type: ignore[no-untyped-def]
    """Index of a fresh zeroed instruction; near the end a spare row is reused and the failure noted."""
    i = state[_N_INSN]
    if i >= len(insns) - S.SPARE:
        _fail(state, INSTRUCTION_OVERFLOW)
        return len(insns) - 1
    state[_N_INSN] = i + 1
    insns[i] = 0
    return i


@njit(INT(TABLE, VECTOR, INT, INT, INT, INT, INT, INT, INT, INT, INT, INT, INT), cache=True, nogil=True)
def _memory(insns, state, op, mem, sram, dram, y, x, stride, top, bottom, left, right):  # type: ignore[no-untyped-def]
    i = _row(insns, state)
    row = insns[i]
    row[G.C_OP] = op
    row[G.C_MEM] = mem
    row[G.C_SRAM] = sram
    row[G.C_DRAM] = dram
    row[G.C_Y] = y
    row[G.C_X] = x
    row[G.C_STRIDE] = x if y == 1 else stride
    row[G.C_TOP] = top
    row[G.C_BOTTOM] = bottom
    row[G.C_LEFT] = left
    row[G.C_RIGHT] = right
    if not S.field_fits(y, x, stride, sram):
        _fail(state, FIELD_OVERFLOW)
    return i


@njit(INT(TABLE, VECTOR, INT, INT, INT, _LOOP, _LOOP), cache=True, nogil=True)
def _gemm(insns, state, reset, begin, end, outer, inner):  # type: ignore[no-untyped-def]
    """``outer``, ``inner``: (extent, dst, src, wgt factors); loops of one iteration carry no factors."""
    i = _row(insns, state)
    row = insns[i]
    row[G.C_OP] = G.GEMM
    row[G.C_RESET] = reset
    row[G.C_UOP_BGN] = begin
    row[G.C_UOP_END] = end
    if outer[0] == 1:
        outer, inner = inner, outer
    row[G.C_ITER_OUT] = outer[0]
    row[G.C_ITER_IN] = inner[0]
    if outer[0] > 1:
        row[G.C_DST_OUT], row[G.C_SRC_OUT], row[G.C_WGT_OUT] = outer[1], outer[2], outer[3]
    if inner[0] > 1:
        row[G.C_DST_IN], row[G.C_SRC_IN], row[G.C_WGT_IN] = inner[1], inner[2], inner[3]
    return i


@njit(INT(TABLE, VECTOR, INT, INT, INT, INT), cache=True, nogil=True)
def _immediate(insns, state, opcode, value, uop, n):  # type: ignore[no-untyped-def]
    """An in-place ALU pass over ``n`` consecutive elements."""
    i = _row(insns, state)
    row = insns[i]
    row[G.C_OP] = G.ALU
    row[G.C_ALU_OP] = opcode
    row[G.C_USE_IMM] = 1
    row[G.C_IMM] = value
    row[G.C_UOP_BGN] = uop
    row[G.C_UOP_END] = uop + 1
    row[G.C_ITER_OUT] = 1
    row[G.C_ITER_IN] = n
    if n > 1:
        row[G.C_DST_IN] = 1
        row[G.C_SRC_IN] = 1
    return i


@njit(INT(TABLE, VECTOR, INT, INT, INT, _LOOP, _LOOP), cache=True, nogil=True)
def _tensor(insns, state, opcode, begin, end, outer, inner):  # type: ignore[no-untyped-def]
    """An ALU pass with two operands in ACC; ``outer``, ``inner`` as of `_gemm`, without their last factor."""
    i = _gemm(insns, state, 0, begin, end, outer, inner)
    row = insns[i]
    row[G.C_OP] = G.ALU
    # What are the weight's factors of a GEMM are other fields here.
    row[G.C_WGT_OUT : G.COLUMNS] = 0
    row[G.C_ALU_OP] = opcode
    return i


@njit(cache=True, nogil=True)
def _find_kernel(key, keys, begins, table, state):  # type: ignore[no-untyped-def]
    """Kernel number of ``key`` (int64 (9,)), and whether it is new: then it begins at the end of the micro-ops."""
    h = np.int64(0)
    for j in range(_KEY):
        h = (h ^ key[j]) * np.int64(1099511628211)
        h ^= h >> np.int64(29)
    slot = h & (_TABLE - 1)
    while table[slot] >= 0:
        k = table[slot]
        same = True
        for j in range(_KEY):
            if keys[k, j] != key[j]:
                same = False
                break
        if same:
            return k, False
        slot = (slot + 1) & (_TABLE - 1)
    k = state[_N_KERNEL]
    if k >= _MAX_KERNELS:
        _fail(state, UOP_OVERFLOW)
        return 0, False
    state[_N_KERNEL] = k + 1
    table[slot] = k
    keys[k] = key
    begins[k, 0] = state[_N_UOP]
    begins[k, 1] = state[_N_UOP]
    return k, True


@njit(types.void(TABLE, VECTOR, INT, INT, INT, INT), cache=True, nogil=True)
def _uop(uops, state, limit, dst, src, wgt):  # type: ignore[no-untyped-def]
    i = state[_N_UOP]
    if i >= limit:
        _fail(state, UOP_OVERFLOW)
        return
    uops[i, 0] = dst
    uops[i, 1] = src
    uops[i, 2] = wgt
    state[_N_UOP] = i + 1


@njit(INT(INT, INT, INT, NEST, TABLE, VECTOR, TABLE, TABLE, types.int16[::1], VECTOR), cache=True, nogil=True)
def _single(dst, src, wgt, nest, uops, key, keys, begins, table, state):  # type: ignore[no-untyped-def]
    """Address of a one-micro-op kernel."""
    key[:] = 0
    key[0], key[1], key[2], key[3] = _ONE, dst, src, wgt
    k, fresh = _find_kernel(key, keys, begins, table, state)
    if fresh:
        _uop(uops, state, nest.uop_limit, dst, src, wgt)
        begins[k, 1] = state[_N_UOP]
    return begins[k, 0]


@njit(cache=True, nogil=True)
def _add_bias(nest, insns, state, acc, bias, nco, area, uops, key, keys, begins, table):  # type: ignore[no-untyped-def]
    """Adds the biases of ``nco`` channel blocks to their ``area`` accumulators each."""
    u = _single(acc, bias, 0, nest, uops, key, keys, begins, table, state)
    if nest.minor:
        _tensor(insns, state, G.ALU_ADD, u, u + 1, (area, nco, 0, 0), (nco, 1, 1, 0))
    else:
        _tensor(insns, state, G.ALU_ADD, u, u + 1, (nco, area, 1, 0), (area, 1, 0, 0))


@njit(cache=True, nogil=True)
def _round_even(nest, insns, state, acc, scratch, n, uops, key, keys, begins, table):  # type: ignore[no-untyped-def]
    """Takes one from accumulators that the shift leaves odd: ties, which half a step has rounded up, become even.

    A copy whose sign is the lowest bit that the shift leaves is -1 or 0 between these two bounds.
    """
    copies = (np.int64(n), 1, 1, 0)
    once = (np.int64(1), 0, 0, 0)
    u = _single(scratch, 0, 0, nest, uops, key, keys, begins, table, state)
    _gemm(insns, state, 1, u, u + 1, (np.int64(n), 1, 0, 0), once)
    u = _single(scratch, acc, 0, nest, uops, key, keys, begins, table, state)
    _tensor(insns, state, G.ALU_ADD, u, u + 1, copies, once)
    u = _single(scratch, scratch, 0, nest, uops, key, keys, begins, table, state)
    first, second = P.left_shifts(nest)
    _immediate(insns, state, G.ALU_SHR, -first, u, n)
    if second > 0:
        _immediate(insns, state, G.ALU_SHR, -second, u, n)
    _immediate(insns, state, G.ALU_MAX, -1, u, n)
    _immediate(insns, state, G.ALU_MIN, 0, u, n)
    u = _single(acc, scratch, 0, nest, uops, key, keys, begins, table, state)
    _tensor(insns, state, G.ALU_ADD, u, u + 1, copies, once)


@njit(cache=True, nogil=True)
def _output_block(nest, insns, state, op, mem, sram, dram, n, c0, nc, h0, nh, w0, nw):  # type: ignore[no-untyped-def]
    """Moves a block of an output-shaped tensor that is compact in SRAM; ``c0`` counts the blocks of all groups."""
    count, y, x, stride = S.output_shape(nest, nc, nh, nw)
    plane = nest.oh * nest.ow
    if nest.minor:
        # Groups lie one after the other.
        base = dram + (c0 // nest.co * nest.ow + w0) * nest.co + c0 % nest.co
    else:
        base = dram + (n * nest.out_blocks + c0) * plane + h0 * nest.ow + w0
    for c in range(count):
        _memory(insns, state, op, mem, sram + c * nh * nw, base + c * plane, y, x, stride, 0, 0, 0, 0)


@njit(cache=True, nogil=True)
def _input_chunk(nest, v, insns, state, sram, n, group, ci0, nci, row, col, step):  # type: ignore[no-untyped-def]
    """Loads input channels ``ci0..ci0+nci`` of a group and spatial tile, compact in SRAM."""
    size_h, size_w = row[P.A_SIZE], col[P.A_SIZE]
    top = bottom = left = right = 0
    if v[P.K_PAD] == P.PAD_LOAD:
        top, bottom, left, right = row[P.A_BEFORE], row[P.A_AFTER], col[P.A_BEFORE], col[P.A_AFTER]
    plane = nest.ih * nest.iw
    if nest.minor:
        base = nest.dram_inp + (group * nest.iw + col[P.A_LOAD]) * nest.ci + ci0
    else:
        channel = n * nest.inp_blocks + group * nest.ci + ci0
        base = nest.dram_inp + channel * plane + row[P.A_LOAD] * nest.iw + col[P.A_LOAD]
    count, y, x, stride = S.input_shape(nest, nci, size_h, size_w, top + bottom, left + right, step)
    for c in range(count):
        at = sram + c * size_h * size_w
        _memory(insns, state, G.LOAD, G.INP, at, base + c * plane, y, x, stride, top, bottom, left, right)


@njit(cache=True, nogil=True)
def lower_into(nest, v, insns, uops, tables):  # type: ignore[no-untyped-def]
    """Lower schedule ``v`` (int64 knob values) of a nest into work arrays, all overwritten.

    ``insns``: int64 (at least 16, COLUMNS), ``uops``: int64 (at least UOP_LIMIT, 3), ``tables``: `tables`.
    Returns (`Reason`, instructions, micro-ops); the arrays hold the program where the reason is 0.
    """
    v = v.copy()
    P.canonical_row(nest, v)
    rows, row_taps, cols, col_taps, step = P.axes(nest, v)
    n_h, n_w = len(rows), len(cols)
    sp_tiles = nest.nb * n_h * n_w
    co_tiles = P.channel_tiles(nest, v)
    tiles = sp_tiles * co_tiles
    row_facts, row_items = S.axis_facts(rows, v[P.K_PAD]), P.tap_items(rows, row_taps)
    col_facts, col_items = S.axis_facts(cols, v[P.K_PAD]), P.tap_items(cols, col_taps)
    reason = S.static_reason(nest, v, sp_tiles, row_facts, row_items, col_facts, col_items)
    if reason != VALID:
        return reason, 0, 0
    if S.too_many_tiles(tiles, P.ceil_div(nest.ci, v[P.K_CI])):
        return INSTRUCTION_OVERFLOW, 0, 0
    whole = P.chunk_starts(nest.ci, v[P.K_CI], P.HEAD_WHOLE)
    tapered = P.chunk_starts(nest.ci, v[P.K_CI], v[P.K_HEAD])
    count = S.step_count(nest, v, sp_tiles, co_tiles, whole, tapered)
    if count > S.MAX_STEPS:
        return INSTRUCTION_OVERFLOW, 0, 0
    at, _ = P.sram_layout(nest, v, rows[:, P.A_SIZE].max(), cols[:, P.A_SIZE].max(), sp_tiles)
    res_slot, res_base, const_base = at[2], at[3], at[4]
    ident_base, bias_wgt_base, acc_slot, bias_base, scratch = at[6], at[7], at[8], at[9], at[10]
    pool = nest.pool == 1
    adds_bias = nest.bias == 1 and v[P.K_BIAS] == P.BIAS_ADD
    taps_all = nest.kh * nest.kw
    inp_buf, acc_buf, fold = v[P.K_INP_BUF], v[P.K_ACC_BUF], v[P.K_FOLD]
    ci = nest.ci
    records, keys, begins, table = tables
    if len(records) < count:
        records = np.empty((count, S.STEP), dtype=np.int64)
    steps = S.walk(nest, v, at, rows, cols, whole, tapered, records)
    if not S.tokens_fit(records[:steps]):
        return TOKEN_OVERFLOW, 0, 0

    state = np.zeros(4, dtype=np.int64)
    key = np.zeros(_KEY, dtype=np.int64)
    table[:] = -1
    uop_load = _memory(insns, state, G.LOAD, G.UOP, 0, nest.dram_uop, 1, 1, 1, 0, 0, 0, 0)
    granted = np.int64(-1)
    k = 0
    for t in range(tiles):
        c, s = records[k, S.S_CO], records[k, S.S_SP]
        hi, wi, n = (s // n_w) % n_h, s % n_w, s // (n_w * n_h)
        row, col = rows[hi], cols[wi]
        c0, nco, group, _ = S.channel_tile(nest, v, c)
        nh, nw = row[P.A_COUNT], col[P.A_COUNT]
        area = nh * nw
        acc = (t % acc_buf) * acc_slot
        # Element strides in ACC and INP of the spatial and channel loops.
        acc_co, acc_col = (1, nco) if nest.minor else (area, 1)
        plane = row[P.A_SIZE] * col[P.A_SIZE]
        waits_store = t >= acc_buf

        # Initialise the accumulators.
        first = state[_N_INSN]
        if nest.bias and v[P.K_BIAS] == P.BIAS_LOAD:
            count, y, x = S.bias_shape(nest, nco, nh, nw)
            for b in range(count):
                _memory(insns, state, G.LOAD, G.ACC, acc + b * area, nest.dram_bias + c0 + b, y, x, 0, 0, 0, 0, 0)
        else:
            if nest.bias and v[P.K_BIAS] == P.BIAS_ADD and t == 0:
                _memory(insns, state, G.LOAD, G.ACC, bias_base, nest.dram_bias, 1, nest.out_blocks, 0, 0, 0, 0, 0)
            at_reset = _single(acc, 0, 0, nest, uops, key, keys, begins, table, state)
            total = nco * area
            first = _gemm(insns, state, 1, at_reset, at_reset + 1, (total, 1, 0, 0), (1, 0, 0, 0))
        if waits_store:
            insns[first, G.C_FLAGS] |= G.POP_NEXT
        if pool:
            # The least number, for the first maximum.
            u = _single(acc, acc, 0, nest, uops, key, keys, begins, table, state)
            _immediate(insns, state, G.ALU_MIN, _LEAST, u, nco * area)

        last_chunk = False
        while not last_chunk:
            ci0, nci = records[k, S.S_CI0], records[k, S.S_NCI]
            q0, mco = records[k, S.S_Q0], records[k, S.S_MCO]
            inp_base, wgt_base = records[k, S.S_INP_BASE], records[k, S.S_WGT_BASE]
            loads = records[k, S.S_LOADS]
            last_chunk = records[k, S.S_LAST] == 1
            acc_q = acc + q0 * acc_co
            source = scratch if pool else S.part_inputs(nest, inp_base, q0, plane)
            # Loads of the step.
            begin = state[_N_INSN]
            if loads & S.L_INP:
                if nest.depthwise:
                    _input_chunk(nest, v, insns, state, inp_base, n, group, c0, nco, row, col, step)
                else:
                    _input_chunk(nest, v, insns, state, inp_base, n, group, ci0, nci, row, col, step)
            if loads & S.L_WGT:
                dram = nest.dram_wgt + ((c0 + q0) * ci + ci0) * taps_all
                y, x, stride = S.weight_shape(nest, nci, mco)
                _memory(insns, state, G.LOAD, G.WGT, wgt_base, dram, y, x, stride, 0, 0, 0, 0)
            res_at = res_base + (t % inp_buf) * res_slot
            if loads & S.L_RES:
                _output_block(
                    nest, insns, state, G.LOAD, G.INP, res_at, nest.dram_res, n, c0, nco,
                    row[P.A_FIRST], nh, col[P.A_FIRST], nw,
                )  # fmt: skip
                if t == 0:
                    _memory(insns, state, G.LOAD, G.WGT, ident_base, nest.dram_ident, 1, 1, 0, 0, 0, 0, 0)
            if loads & S.L_CONST:
                _memory(
                    insns, state, G.LOAD, G.WGT, bias_wgt_base, nest.dram_bias_wgt, 1, nest.out_blocks, 0, 0, 0, 0, 0
                )
                _memory(insns, state, G.LOAD, G.INP, const_base, nest.dram_const, 1, 1, 0, 0, 0, 0, 0)
            # The kernels of a step whose GEMMs do not fit any more are not looked at.
            if state[_N_INSN] + P.gemms_of(fold, row, col) > len(insns) - S.SPARE:
                _fail(state, INSTRUCTION_OVERFLOW)
            if state[_FAIL] != VALID:
                return state[_FAIL], 0, 0
            if loads:
                if records[k, S.S_NEEDS] > granted:
                    granted = records[k, S.S_NEEDS]
                    insns[begin, G.C_FLAGS] |= G.POP_NEXT
                insns[state[_N_INSN] - 1, G.C_FLAGS] |= G.PUSH_NEXT

            # GEMMs: one for every pair of (taps with as many valid rows, taps with as many valid columns), or of taps.
            begin = state[_N_INSN]
            if pool and plane > 0:
                # The inputs come into ACC as products with one.
                u = _single(scratch, 0, 0, nest, uops, key, keys, begins, table, state)
                _gemm(insns, state, 1, u, u + 1, (nco * plane, 1, 0, 0), (1, 0, 0, 0))
                u = _single(scratch, inp_base, 0, nest, uops, key, keys, begins, table, state)
                _gemm(insns, state, 0, u, u + 1, (nco * plane, 1, 1, 0), (1, 0, 0, 0))
            for gh in range(nest.kh):
                if not P.starts_gemm(fold, row_taps[hi], gh):
                    continue
                count_h = row_taps[hi, gh, 1]
                for gw in range(nest.kw):
                    if not P.starts_gemm(fold, col_taps[wi], gw):
                        continue
                    count_w = col_taps[wi, gw, 1]
                    # Loops: a and b spatial (a is the outer one), channels; strides of each.
                    src_row = col[P.A_SIZE] * (nest.sh // step)
                    src_col = nest.sw * (nci if nest.minor else 1)
                    src_ci = 1 if nest.minor else plane
                    src_co = plane if nest.depthwise else np.int64(0)
                    dst_row, dst_col = nw * acc_col * nest.th, acc_col * nest.tw
                    if count_h == 1:
                        na, nb_, da, sa, db, sb = count_w, 1, dst_col, src_col, 0, 0
                    else:
                        na, nb_, da, sa, db, sb = count_h, count_w, dst_row, src_row, dst_col, src_col
                    key[0] = _GROUP + gh
                    key[1], key[2], key[3] = acc_q, source, wgt_base
                    key[4], key[5], key[6], key[7] = nci, mco, row[P.A_CLASS], col[P.A_CLASS]
                    key[8] = gw
                    kernel, fresh_kernel = _find_kernel(key, keys, begins, table, state)
                    if fresh_kernel:
                        n_kh, n_kw = 0, 0
                        for kh in range(nest.kh):
                            n_kh += P.shares_gemm(fold, row_taps[hi], kh, gh)
                        for kw in range(nest.kw):
                            n_kw += P.shares_gemm(fold, col_taps[wi], kw, gw)
                        n_taps = n_kh * n_kw
                        n_ci = n_co = n_a = n_b = np.int64(1)
                        if fold == P.FOLD_SPACE:
                            n_ci, n_co = nci, mco
                        elif fold == P.FOLD_CI_CO:
                            n_a, n_b = na, nb_
                        else:
                            n_co, n_b = mco, nb_
                        if state[_N_UOP] + n_taps * n_ci * n_co * n_a * n_b > nest.uop_limit:
                            return UOP_OVERFLOW, 0, 0
                        for kh in range(nest.kh):
                            if not P.shares_gemm(fold, row_taps[hi], kh, gh):
                                continue
                            out_h = row_taps[hi, kh, 0]
                            in_h = P.tap_source(row, out_h, kh, nest.sh, nest.th, nest.dh, nest.pt, step)
                            for kw in range(nest.kw):
                                if not P.shares_gemm(fold, col_taps[wi], kw, gw):
                                    continue
                                out_w = col_taps[wi, kw, 0]
                                in_w = P.tap_source(col, out_w, kw, nest.sw, nest.tw, nest.dw, nest.pl, 1)
                                d = acc_q + ((out_h - row[P.A_FIRST]) * nw + out_w - col[P.A_FIRST]) * acc_col
                                i = source + (in_h * col[P.A_SIZE] + in_w) * (nci if nest.minor else 1)
                                w = np.int64(0) if pool else wgt_base + kh * nest.kw + kw
                                for x_ci in range(n_ci):
                                    for x_co in range(n_co):
                                        for x_a in range(n_a):
                                            for x_b in range(n_b):
                                                _uop(
                                                    uops, state, nest.uop_limit,
                                                    d + x_co * acc_co + x_a * da + x_b * db,
                                                    i + x_ci * src_ci + x_co * src_co + x_a * sa + x_b * sb,
                                                    w if pool else w + x_ci * taps_all + x_co * nci * taps_all,
                                                )  # fmt: skip
                        begins[kernel, 1] = state[_N_UOP]
                    loop_a = (na, da, sa, np.int64(0))
                    loop_b = (nb_, db, sb, np.int64(0))
                    loop_ci = (nci, np.int64(0), src_ci, taps_all)
                    loop_co = (mco, acc_co, src_co, nci * taps_all)
                    if fold == P.FOLD_SPACE:
                        outer, inner_loop = loop_a, loop_b
                    elif fold == P.FOLD_CI_CO:
                        outer, inner_loop = loop_ci, loop_co
                    else:
                        outer, inner_loop = loop_ci, loop_a
                    if pool:
                        _tensor(insns, state, G.ALU_MAX, begins[kernel, 0], begins[kernel, 1], outer, inner_loop)
                    else:
                        _gemm(insns, state, 0, begins[kernel, 0], begins[kernel, 1], outer, inner_loop)
            if last_chunk:
                if adds_bias and nest.pre_shift >= 0:
                    _add_bias(nest, insns, state, acc, bias_base + c0, nco, area, uops, key, keys, begins, table)
                if nest.bias and v[P.K_BIAS] == P.BIAS_GEMM:
                    u = _single(acc, const_base, bias_wgt_base + c0, nest, uops, key, keys, begins, table, state)
                    if nest.minor:
                        _gemm(insns, state, 0, u, u + 1, (area, nco, 0, 0), (nco, 1, 0, 1))
                    else:
                        _gemm(insns, state, 0, u, u + 1, (nco, area, 0, 1), (area, 1, 0, 0))
                if nest.pre_shift >= 0:
                    u = _single(acc, acc, 0, nest, uops, key, keys, begins, table, state)
                    _immediate(insns, state, G.ALU_SHR, nest.pre_shift, u, nco * area)
                if nest.residual:
                    u = _single(acc, res_at, ident_base, nest, uops, key, keys, begins, table, state)
                    _gemm(insns, state, 0, u, u + 1, (nco * area, 1, 1, 0), (1, 0, 0, 0))
            if state[_N_INSN] == begin and (loads or records[k, S.S_PUSHES]):
                _memory(insns, state, G.LOAD, G.UOP, 0, 0, 0, 0, 0, 0, 0, 0, 0)
            if state[_FAIL] != VALID:
                return state[_FAIL], 0, 0
            if loads:
                insns[begin, G.C_FLAGS] |= G.POP_PREV
            if records[k, S.S_PUSHES]:
                insns[state[_N_INSN] - 1, G.C_FLAGS] |= G.PUSH_PREV
            k += 1

        # Epilogue and stores.
        if adds_bias and nest.pre_shift < 0:
            _add_bias(nest, insns, state, acc, bias_base + c0, nco, area, uops, key, keys, begins, table)
        drain = P.drains(v, t, tiles)
        piece_c, piece_h, piece_w = P.pieces(nest, nco, nh, nw, drain)
        signals = t + acc_buf < tiles or t == tiles - 1
        for b in range(0, nco, piece_c):
            for h in range(0, nh, piece_h):
                for w in range(0, nw, piece_w):
                    mc, mh, mw = min(piece_c, nco - b), min(piece_h, nh - h), min(piece_w, nw - w)
                    offset = (w * nco + b) if nest.minor else b * area + h * nw + w
                    count = mc * mh * mw
                    if nest.even:
                        _round_even(nest, insns, state, acc + offset, scratch, count, uops, key, keys, begins, table)
                    u = _single(acc + offset, acc + offset, 0, nest, uops, key, keys, begins, table, state)
                    if nest.shift >= 0:
                        _immediate(insns, state, G.ALU_SHR, nest.shift, u, count)
                    if nest.clip:
                        _immediate(insns, state, G.ALU_MIN, nest.high, u, count)
                        _immediate(insns, state, G.ALU_MAX, nest.low, u, count)
                    insns[state[_N_INSN] - 1, G.C_FLAGS] |= G.PUSH_NEXT
                    begin = state[_N_INSN]
                    _output_block(
                        nest, insns, state, G.STORE, G.OUT, acc + offset, nest.dram_out, n, c0 + b, mc,
                        row[P.A_FIRST] + h, mh, col[P.A_FIRST] + w, mw,
                    )  # fmt: skip
                    if state[_FAIL] != VALID:
                        return state[_FAIL], 0, 0
                    insns[begin, G.C_FLAGS] |= G.POP_PREV
                    if signals and b + mc == nco and h + mh == nh and w + mw == nw:
                        insns[state[_N_INSN] - 1, G.C_FLAGS] |= G.PUSH_PREV
    nop = _memory(insns, state, G.LOAD, G.UOP, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    insns[nop, G.C_FLAGS] = G.POP_NEXT
    i = _row(insns, state)
    insns[i, G.C_OP] = G.FINISH
    insns[uop_load, G.C_X] = state[_N_UOP]
    insns[uop_load, G.C_STRIDE] = state[_N_UOP]
    if state[_FAIL] != VALID:
        return state[_FAIL], 0, 0
    if not runs_in_order(insns[: state[_N_INSN]]):
        return DEADLOCK, 0, 0
    return VALID, state[_N_INSN], state[_N_UOP]
