"""Emits the programs of TVM's template: its loop nest, virtual threads and token flow."""

from __future__ import annotations

import numpy as np

from oneshot_ml2.common.kernels import njit
from oneshot_ml2.common.parts import part
from oneshot_ml2.spaces.autotvm import queue
from oneshot_ml2.spaces.autotvm.validity import pattern, uop_counts
from oneshot_ml2.vta.program import Memory, Opcode


@part()
def _nest(task, value):  # type: ignore[no-untyped-def]
    """The GEMM kernel's six loops, outermost first, as rows (extent, dst, src, wgt factor): ci, w, kw, kh, co, h."""
    th, tw, tci, tco = value.tile_h, value.tile_w, value.tile_ci, value.tile_co
    kh, kw, sh, sw = task.kh, task.kw, task.sh, task.sw
    ih, iw = (th - 1) * sh + kh, (tw - 1) * sw + kw
    return np.array(
        (
            (tci, 0, ih * iw, kh * kw),
            (tw, 1, sw, 0),
            (kw, 0, 1, 1),
            (kh, 0, iw, kw),
            (tco, th * tw, 0, tci * kh * kw),
            (th, tw, sh * iw, 0),
        )
    )


@part()
def _fold(nest, reset):  # type: ignore[no-untyped-def]
    """Split a nest: the two outermost loops with an extent (2, 4), and the others, which become micro-ops (m, 4)."""
    folded = np.zeros((2, 4), dtype=np.int64)
    folded[:, 0] = 1
    rest = np.zeros((6, 4), dtype=np.int64)
    n_folded = n_rest = 0
    for k in range(6):
        if nest[k, 0] == 1 or (reset and nest[k, 1] == 0):
            continue
        if n_folded < 2:
            folded[n_folded] = nest[k]
            n_folded += 1
        else:
            rest[n_rest] = nest[k]
            n_rest += 1
    if reset:
        folded[:, 2:] = 0
        rest[:, 2:] = 0
    return folded, rest[:n_rest]


@part()
def _emit_gemm(rows, state, folded, reset, begin, size):  # type: ignore[no-untyped-def]
    i = queue.append(rows, state, Opcode.GEMM, queue.ON_COMPUTE, queue.ON_COMPUTE, 0)
    rows[i].reset = reset
    rows[i].uop_bgn = begin
    rows[i].uop_end = begin + size
    rows[i].iter_out = folded[0, 0]
    rows[i].iter_in = folded[1, 0]
    rows[i].dst_out = folded[0, 1]
    rows[i].dst_in = folded[1, 1]
    rows[i].src_out = folded[0, 2]
    rows[i].src_in = folded[1, 2]
    rows[i].wgt_out = folded[0, 3]
    rows[i].wgt_in = folded[1, 3]


@part()
def _emit_epilogue(rows, state, kernels, cache, task, t, acc):  # type: ignore[no-untyped-def]
    """The ALU stages of thread ``t``, one instruction each; a single loop is the inner one."""
    for j in range(task.stages):
        k = t * queue.KERNELS + 2 + j
        begin = queue.kernel(rows, state, kernels, cache, task, k)
        i = queue.append(rows, state, Opcode.ALU, queue.ON_COMPUTE, queue.ON_COMPUTE, 0)
        rows[i].uop_bgn = begin
        rows[i].uop_end = begin + 1
        rows[i].iter_out = 1
        rows[i].iter_in = acc
        step = 1 if acc > 1 else 0
        rows[i].dst_in = step
        rows[i].src_in = step
        rows[i].alu_op = task.alu_op[j]
        rows[i].use_imm = 1
        rows[i].imm = task.alu_imm[j]
    queue.push(rows, state, queue.ON_COMPUTE, queue.ON_STORE)


@part()
def _emit_loads(rows, state, task, value, t, b, h0, co0, w0, ci0, inp_pattern, wgt_pattern):  # type: ignore[no-untyped-def]
    """Input and weights of one step of thread ``t``; pads of the input become the LOAD's."""
    th, tw, tci, tco = value.tile_h, value.tile_w, value.tile_ci, value.tile_co
    kh, kw, height, width = task.kh, task.kw, task.h, task.w
    ih, iw = (th - 1) * task.sh + kh, (tw - 1) * task.sw + kw
    top_y, left_x = h0 * th * task.sh - task.ph, w0 * tw * task.sw - task.pw
    top, left = max(0, -top_y), max(0, -left_x)
    bottom, right = max(0, top_y + ih - height), max(0, left_x + iw - width)
    queue.pop(rows, state, queue.ON_COMPUTE, queue.ON_LOAD)
    i = queue.append(rows, state, Opcode.LOAD, queue.ON_LOAD, queue.ON_LOAD, 0)
    y, x, stride = inp_pattern
    rows[i].mem = Memory.INP
    rows[i].sram = t * tci * ih * iw
    rows[i].dram = task.inp_base + ((b * task.ci + ci0 * tci) * height + top_y + top) * width + left_x + left
    rows[i].y = y - top - bottom
    rows[i].x = x - left - right
    rows[i].stride = stride
    rows[i].top = top
    rows[i].bottom = bottom
    rows[i].left = left
    rows[i].right = right
    i = queue.append(rows, state, Opcode.LOAD, queue.ON_LOAD, queue.ON_LOAD, 0)
    y, x, stride = wgt_pattern
    rows[i].mem = Memory.WGT
    rows[i].sram = t * tco * tci * kh * kw
    rows[i].dram = task.wgt_base + (co0 * tco * task.ci + ci0 * tci) * kh * kw
    rows[i].y = y
    rows[i].x = x
    rows[i].stride = stride
    queue.push(rows, state, queue.ON_LOAD, queue.ON_COMPUTE)


@part()
def _emit_store(rows, state, task, value, t, b, h0, co0, w0, out_pattern):  # type: ignore[no-untyped-def]
    th, tw, tco = value.tile_h, value.tile_w, value.tile_co
    out_h, out_w = task.oh, task.ow
    y, x, stride = out_pattern
    queue.pop(rows, state, queue.ON_COMPUTE, queue.ON_STORE)
    i = queue.append(rows, state, Opcode.STORE, queue.ON_STORE, queue.ON_STORE, 0)
    rows[i].mem = Memory.OUT
    rows[i].sram = t * tco * th * tw
    rows[i].dram = task.out_base + ((b * task.co + co0 * tco) * out_h + h0 * th) * out_w + w0 * tw
    rows[i].y = y
    rows[i].x = x
    rows[i].stride = stride


@part()
def _start_kernels(kernels, reset_size, gemm_size):  # type: ignore[no-untyped-def]
    """Kernels of two threads, none of which has a place yet."""
    for k in range(2 * queue.KERNELS):
        kind, kernel = k % queue.KERNELS, kernels[k]
        kernel.size = reset_size if kind == 0 else (gemm_size if kind == 1 else 1)
        kernel.offset, kernel.begin, kernel.end = -1, 0, 0


@part()
def _close(rows, state, carried, threads):  # type: ignore[no-untyped-def]
    """Take the tokens that are left, wait for the last store, and end."""
    if carried and threads > 1:
        for _ in range(threads):
            queue.pop(rows, state, queue.ON_STORE, queue.ON_COMPUTE)
    queue.push(rows, state, queue.ON_STORE, queue.ON_COMPUTE)
    queue.push(rows, state, queue.ON_LOAD, queue.ON_COMPUTE)
    queue.pop(rows, state, queue.ON_STORE, queue.ON_COMPUTE)
    queue.pop(rows, state, queue.ON_LOAD, queue.ON_COMPUTE)
    queue.noop(rows, state, queue.ON_COMPUTE, 0)
    if carried and threads == 1:
        # TVM carries this pop into the next submission.
        queue.pop(rows, state, queue.ON_STORE, queue.ON_COMPUTE)
    queue.append(rows, state, Opcode.FINISH, queue.ON_COMPUTE, queue.ON_COMPUTE, 0)


@njit(cache=True, nogil=True)
def emit(task, value, rows, kernels):  # type: ignore[no-untyped-def]
    """Write the program of a valid schedule into ``rows``, at least `validity.instruction_bound` of them.

    Fills ``kernels`` (2 * queue.KERNELS, 4); returns the numbers of instructions and of micro-ops.
    """
    threads = value.oc_nthread * value.h_nthread
    th, tw, tci, tco = value.tile_h, value.tile_w, value.tile_ci, value.tile_co
    acc = tco * th * tw
    steps = task.ci // tci
    kh, kw, width = task.kh, task.kw, task.w
    ih, iw = (th - 1) * task.sh + kh, (tw - 1) * task.sw + kw
    # A padded copy is never merged (5.2, rule 4); what a tile's pads cover comes off its rows and columns.
    inp_pattern = (ih, iw, width)
    if task.ph == 0 and task.pw == 0:
        inp_pattern = pattern(tci, ih, iw, task.h, width)
    wgt_pattern = pattern(1, tco, tci * kh * kw, task.co, task.ci * kh * kw)
    out_pattern = pattern(tco, th, tw, task.oh, task.ow)
    nest = _nest(task, value)
    reset_loops, _ = _fold(nest, True)
    gemm_loops, _ = _fold(nest, False)
    reset_size, gemm_size, _ = uop_counts(task, value)
    _start_kernels(kernels, reset_size, gemm_size)
    cache = np.zeros(2 * queue.KERNELS + 1, dtype=np.int64)
    states = np.zeros(1, dtype=queue.STATE)
    state = states[0]

    h_step, co_step = value.h_nthread, value.oc_nthread
    h_tiles, co_tiles, w_tiles = task.oh // th // h_step, task.co // tco // co_step, task.ow // tw
    # The loop of the thread goes to the outside, where the batch loop was, and that one takes its place.
    outer_h = h_tiles
    outer_co = co_tiles if co_step > 1 else 1
    outer_b = task.nb if threads == 1 else 1
    inner_b, inner_co = task.nb // outer_b, co_tiles // outer_co
    tiles = task.nb * h_tiles * co_tiles * w_tiles
    carried = tiles > 1
    if carried:
        for _ in range(threads):
            queue.push(rows, state, queue.ON_STORE, queue.ON_COMPUTE)
    for tile in range(tiles):
        rest = tile
        w0 = rest % w_tiles
        rest //= w_tiles
        co_low = rest % inner_co
        rest //= inner_co
        b_low = rest % inner_b
        rest //= inner_b
        co_high = rest % outer_co
        rest //= outer_co
        h_tile = rest % outer_h
        b = rest // outer_h * inner_b + b_low
        co_tile = co_high * inner_co + co_low
        for t in range(threads):
            if carried:
                queue.pop(rows, state, queue.ON_STORE, queue.ON_COMPUTE)
            begin = queue.kernel(rows, state, kernels, cache, task, t * queue.KERNELS)
            _emit_gemm(rows, state, reset_loops, 1, begin, reset_size)
            queue.push(rows, state, queue.ON_COMPUTE, queue.ON_LOAD)
        for step in range(steps):
            for t in range(threads):
                h0 = h_tile * h_step + (t if h_step > 1 else 0)
                co0 = co_tile * co_step + (t if co_step > 1 else 0)
                _emit_loads(rows, state, task, value, t, b, h0, co0, w0, step, inp_pattern, wgt_pattern)
            for t in range(threads):
                queue.pop(rows, state, queue.ON_LOAD, queue.ON_COMPUTE)
                begin = queue.kernel(rows, state, kernels, cache, task, t * queue.KERNELS + 1)
                _emit_gemm(rows, state, gemm_loops, 0, begin, gemm_size)
                if steps > 1:
                    queue.push(rows, state, queue.ON_COMPUTE, queue.ON_LOAD)
                else:
                    # Without a reduction loop GEMM and epilogue are one scope.
                    _emit_epilogue(rows, state, kernels, cache, task, t, acc)
        if steps > 1:
            for _ in range(threads):
                queue.pop(rows, state, queue.ON_COMPUTE, queue.ON_LOAD)
            for t in range(threads):
                _emit_epilogue(rows, state, kernels, cache, task, t, acc)
        for t in range(threads):
            h0 = h_tile * h_step + (t if h_step > 1 else 0)
            co0 = co_tile * co_step + (t if co_step > 1 else 0)
            _emit_store(rows, state, task, value, t, b, h0, co0, w0, out_pattern)
            if carried:
                queue.push(rows, state, queue.ON_STORE, queue.ON_COMPUTE)
    _close(rows, state, carried, threads)
    return states[0].count, states[0].image


@njit(cache=True, nogil=True)
def write_uops(task, value, kernels, uops):  # type: ignore[no-untyped-def]
    """Fill the micro-op image (m,) that `emit` laid out."""
    threads = value.oc_nthread * value.h_nthread
    nest = _nest(task, value)
    acc = value.tile_co * value.tile_h * value.tile_w
    inp = value.tile_ci * ((value.tile_h - 1) * task.sh + task.kh)
    inp *= (value.tile_w - 1) * task.sw + task.kw
    wgt = value.tile_co * value.tile_ci * task.kh * task.kw
    for t in range(threads):
        for k in range(2 + task.stages):
            offset, size = kernels[t * queue.KERNELS + k].offset, kernels[t * queue.KERNELS + k].size
            uops["dst"][offset : offset + size] = t * acc
            uops["src"][offset : offset + size] = t * acc if k > 1 else (t * inp if k == 1 else 0)
            uops["wgt"][offset : offset + size] = t * wgt if k == 1 else 0
            if k > 1:
                continue
            _, loops = _fold(nest, k == 0)
            for u in range(size):
                rest = u
                for loop in range(len(loops) - 1, -1, -1):
                    digit = rest % loops[loop, 0]
                    rest //= loops[loop, 0]
                    uops[offset + u].dst += digit * loops[loop, 1]
                    uops[offset + u].src += digit * loops[loop, 2]
                    uops[offset + u].wgt += digit * loops[loop, 3]
