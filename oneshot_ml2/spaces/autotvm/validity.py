"""Which schedules of TVM's template lower and run: the conditions of its passes and of its run time."""

from __future__ import annotations

from oneshot_ml2.common.kernels import njit
from oneshot_ml2.common.parts import part
from oneshot_ml2.vta.reasons import Reason

VALID = int(Reason.VALID)
_PAD_INNERMOST = int(Reason.PAD_INNERMOST)
_DMA_PATTERN = int(Reason.DMA_PATTERN)
_THREAD_SPLIT = int(Reason.THREAD_SPLIT)
_ACC_HAZARD = int(Reason.ACC_HAZARD)
_UOP_SIGNATURE = int(Reason.UOP_SIGNATURE)
_SRAM_OVERFLOW = int(Reason.SRAM_OVERFLOW)
_UOP_OVERFLOW = int(Reason.UOP_OVERFLOW)
_FIELD_OVERFLOW = int(Reason.FIELD_OVERFLOW)
_INSTRUCTION_OVERFLOW = int(Reason.INSTRUCTION_OVERFLOW)
DEADLOCK = int(Reason.DEADLOCK)

# Field widths and the instruction buffer of one submission.
MAX_SIZE, _MAX_PAD, _MAX_ITER = (1 << 16) - 1, 15, (1 << 14) - 1
MAX_INSTRUCTIONS = (1 << 21) - 6


@part()
def pattern(planes, rows, cols, height, width):  # type: ignore[no-untyped-def]
    """(y, x, stride) of an unpadded copy of ``planes`` x ``rows`` x ``cols`` out of planes of ``height`` x ``width``.

    Dimensions are merged from the inside; y is 0 if more than two are left.
    """
    extents, strides = (cols, rows, planes), (1, width, height * width)
    x, y, stride = 1, 1, 0
    level = 0
    for k in range(3):
        extent = extents[k]
        if extent == 1:
            continue
        if level == 0 and strides[k] == x:
            x *= extent
        elif level == 0:
            level, y, stride = 1, extent, strides[k]
        elif strides[k] == y * stride:
            y *= extent
        else:
            return 0, 0, 0
    if level == 0:
        stride = x
    return y, x, stride


@part()
def uop_counts(task, value):  # type: ignore[no-untyped-def]
    """Micro-ops of the reset and the GEMM kernel, and whether the GEMM's repeat an accumulator within two."""
    th, tw, tci, tco = value.tile_h, value.tile_w, value.tile_ci, value.tile_co
    reset, gemm, reduced, folded = 1, 1, False, 0
    for extent in (tw, tco, th):
        if extent > 1 and folded < 2:
            folded += 1
        else:
            reset *= extent
    folded = 0
    for k, extent in enumerate((tci, tw, task.kw, task.kh, tco, th)):
        if extent > 1 and folded < 2:
            folded += 1
        else:
            gemm *= extent
            reduced = reduced or (extent > 1 and (k == 0 or k == 2 or k == 3))
    return reset, gemm, reduced and tco * th < 3


@part()
def recurrence(task, value):  # type: ignore[no-untyped-def]
    """After how many operations a GEMM updates an accumulator again at least; `MAX_SIZE` if it never does.

    Its loops are, from the outside, input channels, columns, taps, output channels, rows, whichever of them the
    instruction iterates over and its micro-ops repeat.
    """
    if task.kh > 1 or task.kw > 1:
        return value.tile_co * value.tile_h
    return value.tile_co * value.tile_h * value.tile_w if value.tile_ci > 1 else MAX_SIZE


@njit(cache=True, nogil=True)
def instruction_bound(task, value):  # type: ignore[no-untyped-def]
    """No fewer instructions than the program has."""
    reset, gemm, _ = uop_counts(task, value)
    threads = value.oc_nthread * value.h_nthread
    steps, stages = task.ci // value.tile_ci, task.stages
    tiles = task.nb * (task.oh // value.tile_h) * (task.ow // value.tile_w) * (task.co // value.tile_co)
    loads = threads * (2 + stages)
    if threads * (reset + gemm + stages) > task.uop_depth:
        loads = tiles * (1 + steps + stages)
    return int(tiles * (4 + 3 * steps + stages) + loads + 16)


@part()
def _run_time_reason(task, value, stride):  # type: ignore[no-untyped-def]
    """Why the run time cannot emit a schedule that lowers; ``stride``: the widest of its copies."""
    th, tw, tci, tco = value.tile_h, value.tile_w, value.tile_ci, value.tile_co
    kh, kw, acc = task.kh, task.kw, tco * th * tw
    reset, gemm, hazard = uop_counts(task, value)
    if hazard:
        return _ACC_HAZARD
    if reset > task.uop_depth or gemm > task.uop_depth:
        return _UOP_OVERFLOW
    if stride > MAX_SIZE or max(task.ph, task.pw) > _MAX_PAD:
        return _FIELD_OVERFLOW
    if max(tw, tci, tco, th, kw, kh) > _MAX_ITER or acc > _MAX_ITER or tci * kh * kw * tco > MAX_SIZE:
        return _FIELD_OVERFLOW
    if instruction_bound(task, value) > MAX_INSTRUCTIONS:
        return _INSTRUCTION_OVERFLOW
    # TVM's run time looks at micro-ops only; the HLS design's pipeline goes on from one iteration to the next.
    return _ACC_HAZARD if recurrence(task, value) < task.acc_distance else VALID


@njit(cache=True, nogil=True)
def reason(task, value):  # type: ignore[no-untyped-def]
    """Why the schedule is invalid, in the order in which TVM and its run time find out."""
    th, tw, tci, tco = value.tile_h, value.tile_w, value.tile_ci, value.tile_co
    threads = value.oc_nthread * value.h_nthread
    kh, kw, height, width = task.kh, task.kw, task.h, task.w
    ih, iw = (th - 1) * task.sh + kh, (tw - 1) * task.sw + kw
    inp, wgt, acc = tci * ih * iw, tci * tco * kh * kw, tco * th * tw
    if inp > task.inp_depth or wgt > task.wgt_depth or acc > task.acc_depth:
        return _SRAM_OVERFLOW
    # The statements in program order: the load of the input, of the weights, the store.
    if (task.oh // th) % value.h_nthread:
        return _THREAD_SPLIT
    ph, pw = task.ph, task.pw
    padded = ph > 0 or pw > 0
    if padded:
        if tci > 1:
            return _PAD_INNERMOST if pw > 0 else _DMA_PATTERN
        if ih == 1 or iw == 1:
            return _DMA_PATTERN
        inp_stride = width
    else:
        y, x, inp_stride = pattern(tci, ih, iw, height, width)
        if y == 0:
            return _DMA_PATTERN
        inp_stride = inp_stride if y > 1 else 0
        if y > MAX_SIZE or x > MAX_SIZE:
            return _FIELD_OVERFLOW
    if (task.co // tco) % value.oc_nthread:
        return _THREAD_SPLIT
    y, x, out_stride = pattern(tco, th, tw, task.oh, task.ow)
    if y == 0:
        return _DMA_PATTERN
    out_stride = out_stride if y > 1 else 0
    if y > MAX_SIZE or x > MAX_SIZE:
        return _FIELD_OVERFLOW
    # With both thread knobs at 2 no ALU stage works in place, each takes an accumulator tile of its own.
    both = value.oc_nthread > 1 and value.h_nthread > 1
    copies = threads * (1 + task.stages if both else 1)
    if inp * threads > task.inp_depth or wgt * threads > task.wgt_depth or acc * copies > task.acc_depth:
        return _SRAM_OVERFLOW
    if both:
        return _UOP_SIGNATURE
    wgt_stride = task.ci * kh * kw if tco > 1 else 0
    return _run_time_reason(task, value, max(inp_stride, out_stride, wgt_stride))


@njit(cache=True, nogil=True)
def reasons_into(task, batch, out):  # type: ignore[no-untyped-def]
    for i in range(len(batch)):
        out[i] = reason(task, batch[i])
