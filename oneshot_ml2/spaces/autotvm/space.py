"""The space ``autotvm``: TVM's ``conv2d_packed.vta`` template, its validity and its very programs.

Knobs, loop nest, token flow and run-time emission are those of the VTA reference, sections 5.1 to 5.4, 8.3 and 8.4:
the programs equal TVM's instruction for instruction, up to where its buffers lie in DRAM and to one flag: without
virtual threads TVM's run time leaves a token that its next submission takes. A program of ours stands alone, so its own
FINISH takes it, which costs no cycle.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import WorkloadError
from oneshot_ml2.common.kernels import njit
from oneshot_ml2.spaces.base import BatchResult, Knob, Schedule
from oneshot_ml2.spaces.space import ScheduleSpace, scan
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.program import (
    ALU,
    ALU_MAX,
    ALU_MIN,
    ALU_SHR,
    C_ALU_OP,
    C_BOTTOM,
    C_DRAM,
    C_DST_IN,
    C_DST_OUT,
    C_FLAGS,
    C_IMM,
    C_ITER_IN,
    C_ITER_OUT,
    C_LEFT,
    C_MEM,
    C_OP,
    C_RESET,
    C_RIGHT,
    C_SRAM,
    C_SRC_IN,
    C_SRC_OUT,
    C_STRIDE,
    C_TOP,
    C_UOP_BGN,
    C_UOP_END,
    C_USE_IMM,
    C_WGT_IN,
    C_WGT_OUT,
    C_X,
    C_Y,
    COLUMNS,
    FINISH,
    GEMM,
    INP,
    LOAD,
    OUT,
    PAGE,
    POP_NEXT,
    POP_PREV,
    PUSH_NEXT,
    PUSH_PREV,
    STORE,
    UOP,
    WGT,
    Buffer,
    Program,
)
from oneshot_ml2.vta.reasons import InvalidSchedule, Reason
from oneshot_ml2.vta.timing import chisel
from oneshot_ml2.workload.base import Workload
from oneshot_ml2.workload.conv2d import Conv2d

SPACE_VERSION = 1

# Columns of a schedule's values.
KNOBS = ("tile_b", "tile_h", "tile_w", "tile_ci", "tile_co", "oc_nthread", "h_nthread")
TILE_B, TILE_H, TILE_W, TILE_CI, TILE_CO, OC_NTHREAD, H_NTHREAD = range(7)

# Fields of the task vector that the compiled functions read: shapes in blocks, SRAM depths, DRAM bases in elements.
(
    G_NB, G_CI, G_H, G_W, G_CO, G_KH, G_KW, G_SH, G_SW, G_PH, G_PW, G_OH, G_OW,
    G_INP, G_WGT, G_ACC, G_UOP, G_INP_BASE, G_WGT_BASE, G_OUT_BASE, G_UOP_BASE, G_ALU, G_ALU_OP, G_ALU_IMM,
) = (*range(23), 25)  # fmt: skip
_TASK_FIELDS = 28
_ALU_STAGES = 3

_VALID = int(Reason.VALID)
_PAD_INNERMOST = int(Reason.PAD_INNERMOST)
_DMA_PATTERN = int(Reason.DMA_PATTERN)
_THREAD_SPLIT = int(Reason.THREAD_SPLIT)
_ACC_HAZARD = int(Reason.ACC_HAZARD)
_UOP_SIGNATURE = int(Reason.UOP_SIGNATURE)
_SRAM_OVERFLOW = int(Reason.SRAM_OVERFLOW)
_UOP_OVERFLOW = int(Reason.UOP_OVERFLOW)
_FIELD_OVERFLOW = int(Reason.FIELD_OVERFLOW)
_INSTRUCTION_OVERFLOW = int(Reason.INSTRUCTION_OVERFLOW)
_DEADLOCK = int(Reason.DEADLOCK)

# Field widths (VTA reference, 2.1 and 2.2) and the instruction buffer of one submission (5.4).
_MAX_SIZE, _MAX_PAD, _MAX_ITER = (1 << 16) - 1, 15, (1 << 14) - 1
_MAX_INSTRUCTIONS = (1 << 21) - 6

# Module stages as the run time numbers them; a NOP on load belongs to none, so that it never takes a later flag.
_NONE, _LOAD, _COMPUTE, _STORE = range(4)

# State of the emitter: instructions so far, stage of the last one, next free micro-op, uop SRAM allocation, and from
# S_PENDING on the pops that wait for the next instruction of each stage.
S_COUNT, S_LAST, S_IMAGE, S_SRAM_END, S_CACHED, S_CURSOR, S_PENDING = range(7)
_STATE_FIELDS = S_PENDING + 4

# Micro-op kernels: for each thread reset, GEMM and the ALU stages; columns of their table.
_KERNELS = 2 + _ALU_STAGES
K_SIZE, K_OFFSET, K_BEGIN, K_END = range(4)


# --- the space -------------------------------------------------------------------------------------------------------
def _divisors(extent: int) -> tuple[int, ...]:
    return tuple(d for d in range(1, extent + 1) if extent % d == 0)


def _check_task(workload: Workload, accelerator: Accelerator) -> Conv2d:
    """The workload, if TVM's template can express it.

    Raises:
        WorkloadError: it cannot (VTA reference, 8.1 and 8.3), and why.
    """
    problem = ""
    if not isinstance(workload, Conv2d):
        raise WorkloadError("the autotvm space holds conv2d only; use the space 'full' for other operators")
    epilogue = workload.epilogue
    if workload.dilations != (1, 1):
        problem = f"dilation 1, not {workload.dilations}"
    elif workload.pads[0] != workload.pads[1] or workload.pads[2] != workload.pads[3]:
        problem = f"symmetric padding, not {workload.pads}"
    elif workload.n % accelerator.batch:
        problem = f"a batch that {accelerator.batch} divides, not {workload.n}"
    elif workload.c % accelerator.block or workload.k % accelerator.block:
        problem = f"channels that {accelerator.block} divides, not {workload.c} to {workload.k}"
    elif epilogue.bias or epilogue.residual:
        problem = "an epilogue of shift and clip, not " + ("a bias" if epilogue.bias else "a residual")
    if problem:
        raise WorkloadError(f"the autotvm space takes {problem}; use the space 'full'")
    return workload


def knobs(workload: Workload, accelerator: Accelerator) -> tuple[Knob, ...]:
    """The template's seven knobs; a tile's candidates are the divisors of its extent, ascending.

    Raises:
        WorkloadError: a workload that the template cannot express.
    """
    conv = _check_task(workload, accelerator)
    extents = {
        "tile_b": conv.n // accelerator.batch,
        "tile_h": conv.out_h,
        "tile_w": conv.out_w,
        "tile_ci": conv.c // accelerator.block,
        "tile_co": conv.k // accelerator.block,
    }
    tiles = tuple(Knob(name, _divisors(extent)) for name, extent in extents.items())
    return (*tiles, Knob("oc_nthread", (1, 2)), Knob("h_nthread", (1, 2)))


def canonical(workload: Workload, accelerator: Accelerator, values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Values (n, 7) with ``tile_b``, which the template ignores, at its first candidate."""
    result = np.array(values, dtype=np.int64)
    result[:, TILE_B] = 1
    return result


def _page(address: int) -> int:
    return -(-address // PAGE) * PAGE


def _task(workload: Workload, accelerator: Accelerator) -> tuple[NDArray[np.int64], tuple[Buffer, ...], int]:
    """The task vector, the DRAM buffers (page aligned, in TVM's order of arguments) and the micro-ops' address."""
    conv, a = _check_task(workload, accelerator), accelerator
    nb, ci, co = conv.n // a.batch, conv.c // a.block, conv.k // a.block
    buffers: list[Buffer] = []
    address = PAGE
    for name, memory, elements, size in (
        ("data", INP, nb * ci * conv.h * conv.w, a.inp_bytes),
        ("weight", WGT, co * ci * conv.r * conv.s, a.wgt_bytes),
        ("output", OUT, nb * co * conv.out_h * conv.out_w, a.inp_bytes),
    ):
        buffers.append(Buffer(name, memory, address, elements))
        address = _page(address + elements * size)
    if address >= 1 << 31:
        raise WorkloadError(f"{conv}: its tensors take {address} bytes; a 32-bit VTA program can address 2 GiB of them")
    stages = []
    if conv.epilogue.shift:
        stages.append((ALU_SHR, conv.epilogue.shift))
    if conv.epilogue.clip is not None:
        low, high = conv.epilogue.clip
        stages += [(ALU_MIN, high), (ALU_MAX, low)]
    task = np.zeros(_TASK_FIELDS, dtype=np.int64)
    task[: G_ALU + 1] = (
        nb, ci, conv.h, conv.w, co, conv.r, conv.s, *conv.strides, conv.pads[0], conv.pads[2], conv.out_h, conv.out_w,
        a.inp_depth, a.wgt_depth, a.acc_depth, a.uop_depth,
        buffers[0].address // a.inp_bytes, buffers[1].address // a.wgt_bytes, buffers[2].address // a.inp_bytes,
        address // 4, len(stages),
    )  # fmt: skip
    for j, (opcode, immediate) in enumerate(stages):
        task[G_ALU_OP + j], task[G_ALU_IMM + j] = opcode, immediate
    return task, tuple(buffers), address


# --- validity --------------------------------------------------------------------------------------------------------
@njit(cache=True, nogil=True)
def _pattern(planes: int, rows: int, cols: int, height: int, width: int) -> tuple[int, int, int]:
    """(y, x, stride) of an unpadded copy of ``planes`` x ``rows`` x ``cols`` out of planes of ``height`` x ``width``.

    Dimensions are merged from the inside (VTA reference, 5.2 rule 3); y is 0 if more than two are left.
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


@njit(cache=True, nogil=True)
def _uop_counts(task: NDArray[np.int64], value: NDArray[np.int64]) -> tuple[int, int, bool]:
    """Micro-ops of the reset and the GEMM kernel, and whether the GEMM's repeat an accumulator within two (5.3)."""
    th, tw, tci, tco = value[TILE_H], value[TILE_W], value[TILE_CI], value[TILE_CO]
    reset, gemm, reduced, folded = 1, 1, False, 0
    for extent in (tw, tco, th):
        if extent > 1 and folded < 2:
            folded += 1
        else:
            reset *= extent
    folded = 0
    for k, extent in enumerate((tci, tw, task[G_KW], task[G_KH], tco, th)):
        if extent > 1 and folded < 2:
            folded += 1
        else:
            gemm *= extent
            reduced = reduced or (extent > 1 and (k == 0 or k == 2 or k == 3))
    return reset, gemm, reduced and tco * th < 3


@njit(cache=True, nogil=True)
def _instruction_bound(task: NDArray[np.int64], value: NDArray[np.int64]) -> int:
    """No fewer instructions than the program has."""
    reset, gemm, _ = _uop_counts(task, value)
    threads = value[OC_NTHREAD] * value[H_NTHREAD]
    steps, stages = task[G_CI] // value[TILE_CI], task[G_ALU]
    tiles = task[G_NB] * (task[G_OH] // value[TILE_H]) * (task[G_OW] // value[TILE_W]) * (task[G_CO] // value[TILE_CO])
    loads = threads * (2 + stages)
    if threads * (reset + gemm + stages) > task[G_UOP]:
        loads = tiles * (1 + steps + stages)
    return int(tiles * (4 + 3 * steps + stages) + loads + 16)


@njit(cache=True, nogil=True)
def _reason(task: NDArray[np.int64], value: NDArray[np.int64]) -> int:
    """Why the schedule is invalid, in the order in which TVM and its run time find out."""
    th, tw, tci, tco = value[TILE_H], value[TILE_W], value[TILE_CI], value[TILE_CO]
    threads = value[OC_NTHREAD] * value[H_NTHREAD]
    kh, kw, height, width = task[G_KH], task[G_KW], task[G_H], task[G_W]
    ih, iw = (th - 1) * task[G_SH] + kh, (tw - 1) * task[G_SW] + kw
    inp, wgt, acc = tci * ih * iw, tci * tco * kh * kw, tco * th * tw
    if inp > task[G_INP] or wgt > task[G_WGT] or acc > task[G_ACC]:
        return _SRAM_OVERFLOW
    # The statements in program order: the load of the input, of the weights, the store.
    if (task[G_OH] // th) % value[H_NTHREAD]:
        return _THREAD_SPLIT
    ph, pw = task[G_PH], task[G_PW]
    padded = ph > 0 or pw > 0
    if padded:
        if tci > 1:
            return _PAD_INNERMOST if pw > 0 else _DMA_PATTERN
        if ih == 1 or iw == 1:
            return _DMA_PATTERN
        inp_stride = width
    else:
        y, x, inp_stride = _pattern(tci, ih, iw, height, width)
        if y == 0:
            return _DMA_PATTERN
        inp_stride = inp_stride if y > 1 else 0
        if y > _MAX_SIZE or x > _MAX_SIZE:
            return _FIELD_OVERFLOW
    if (task[G_CO] // tco) % value[OC_NTHREAD]:
        return _THREAD_SPLIT
    y, x, out_stride = _pattern(tco, th, tw, task[G_OH], task[G_OW])
    if y == 0:
        return _DMA_PATTERN
    out_stride = out_stride if y > 1 else 0
    if y > _MAX_SIZE or x > _MAX_SIZE:
        return _FIELD_OVERFLOW
    # With both thread knobs at 2 no ALU stage works in place, each takes an accumulator tile of its own (8.3).
    both = value[OC_NTHREAD] > 1 and value[H_NTHREAD] > 1
    copies = threads * (1 + task[G_ALU] if both else 1)
    if inp * threads > task[G_INP] or wgt * threads > task[G_WGT] or acc * copies > task[G_ACC]:
        return _SRAM_OVERFLOW
    if both:
        return _UOP_SIGNATURE
    reset, gemm, hazard = _uop_counts(task, value)
    if hazard:
        return _ACC_HAZARD
    if reset > task[G_UOP] or gemm > task[G_UOP]:
        return _UOP_OVERFLOW
    wgt_stride = task[G_CI] * kh * kw if tco > 1 else 0
    if max(inp_stride, out_stride, wgt_stride) > _MAX_SIZE or max(ph, pw) > _MAX_PAD:
        return _FIELD_OVERFLOW
    if max(tw, tci, tco, th, kw, kh) > _MAX_ITER or acc > _MAX_ITER or tci * kh * kw * tco > _MAX_SIZE:
        return _FIELD_OVERFLOW
    if _instruction_bound(task, value) > _MAX_INSTRUCTIONS:
        return _INSTRUCTION_OVERFLOW
    return _VALID


@njit(cache=True, nogil=True)
def _reasons(task: NDArray[np.int64], values: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
    for i in range(len(values)):
        out[i] = _reason(task, values[i])


def validity(workload: Workload, accelerator: Accelerator, values: NDArray[np.int64]) -> NDArray[np.uint8]:
    """`Reason` of each schedule, uint8 (n,): what TVM's lowering and run time say (VTA reference, 5.1 to 5.3).

    Raises:
        WorkloadError: a workload that the template cannot express.
    """
    task, _, _ = _task(workload, accelerator)
    values = np.ascontiguousarray(values, dtype=np.int64)
    out = np.zeros(len(values), dtype=np.uint8)
    _reasons(task, values, out)
    return out


def estimate(workload: Workload, accelerator: Accelerator, values: NDArray[np.int64]) -> NDArray[np.float64]:
    """Closed-form guess of the cycles of each schedule, float64 (n,): the larger of computing and reading.

    Every output tile loads its input rectangle (pads included) and its weights anew (VTA reference, 8.3).
    """
    conv = _check_task(workload, accelerator)
    a = accelerator
    rows, cols, co = (-(-total // values[:, column]) for total, column in (
        (conv.out_h, 1), (conv.out_w, 2), (conv.k // a.block, 4),
    ))  # fmt: skip
    tiles = conv.n // a.batch * rows * cols * co
    channels = conv.c // a.block
    window = ((values[:, 1] - 1) * conv.strides[0] + conv.r) * ((values[:, 2] - 1) * conv.strides[1] + conv.s)
    read = channels * (window * a.inp_bytes + values[:, 4] * conv.r * conv.s * a.wgt_bytes) / a.bus_bytes
    outputs = values[:, 1] * values[:, 2] * values[:, 4]
    work = outputs * (channels * conv.r * conv.s + 1 + conv.epilogue.immediate_stages)
    return tiles * np.maximum(read, work).astype(np.float64)


# --- the run time's instruction queue (VTA reference, 8.4) -----------------------------------------------------------
@njit(cache=True, nogil=True, inline="always")
def _append(rows: NDArray[np.int64], state: NDArray[np.int64], opcode: int, stage: int, last: int, flags: int) -> int:
    """A zeroed instruction; returns its row."""
    i = state[S_COUNT]
    for column in range(COLUMNS):
        rows[i, column] = 0
    rows[i, C_OP] = opcode
    rows[i, C_FLAGS] = flags | state[S_PENDING + stage]
    state[S_PENDING + stage] = 0
    state[S_LAST] = last
    state[S_COUNT] = i + 1
    return i


@njit(cache=True, nogil=True)
def _noop(rows: NDArray[np.int64], state: NDArray[np.int64], stage: int, flags: int) -> None:
    """An instruction that only moves tokens; it takes the stage's pending pops along."""
    i = _append(rows, state, STORE if stage == _STORE else LOAD, stage, _STORE if stage == _STORE else _NONE, flags)
    rows[i, C_MEM] = INP if stage == _LOAD else (OUT if stage == _STORE else UOP)


@njit(cache=True, nogil=True)
def _pop(rows: NDArray[np.int64], state: NDArray[np.int64], source: int, stage: int) -> None:
    """Remember a pop for the stage's next instruction; a second one of its kind makes the first a NOP."""
    flag = POP_PREV if source < stage else POP_NEXT
    if state[S_PENDING + stage] & flag:
        _noop(rows, state, stage, 0)
    state[S_PENDING + stage] |= flag


@njit(cache=True, nogil=True)
def _push(rows: NDArray[np.int64], state: NDArray[np.int64], stage: int, target: int) -> None:
    """Attach a push to the last instruction of the stream if it is the stage's and lacks it, else to a NOP."""
    if state[S_PENDING + stage]:
        _noop(rows, state, stage, 0)
    flag = PUSH_NEXT if stage < target else PUSH_PREV
    i = state[S_COUNT] - 1
    if state[S_LAST] == stage and rows[i, C_FLAGS] & flag == 0:
        rows[i, C_FLAGS] |= flag
    else:
        _noop(rows, state, stage, flag)


@njit(cache=True, nogil=True)
def _kernel(
    rows: NDArray[np.int64],
    state: NDArray[np.int64],
    kernels: NDArray[np.int64],
    cache: NDArray[np.int64],
    task: NDArray[np.int64],
    k: int,
) -> int:
    """Make kernel ``k`` resident as the run time does (5.4), with a LOAD UOP if it is not; returns its SRAM address.

    ``cache`` lists the residents; the cursor in it is where the next one goes.
    """
    if kernels[k, K_END] > 0:
        return int(kernels[k, K_BEGIN])
    size = kernels[k, K_SIZE]
    if kernels[k, K_OFFSET] < 0:
        kernels[k, K_OFFSET] = state[S_IMAGE]
        state[S_IMAGE] += size
    begin = state[S_SRAM_END]
    if begin + size > task[G_UOP]:
        state[S_CURSOR] = 0
        begin = 0
    end = begin + size
    state[S_SRAM_END] = end
    cursor, count = state[S_CURSOR], state[S_CACHED]
    evicted = cursor
    while evicted < count and kernels[cache[evicted], K_BEGIN] < end:
        kernels[cache[evicted], K_BEGIN] = 0
        kernels[cache[evicted], K_END] = 0
        evicted += 1
    if evicted == cursor:
        for j in range(count, cursor, -1):
            cache[j] = cache[j - 1]
    else:
        for j in range(evicted, count):
            cache[j - evicted + cursor + 1] = cache[j]
    cache[cursor] = k
    state[S_CACHED] = count + 1 - (evicted - cursor)
    state[S_CURSOR] = cursor + 1
    kernels[k, K_BEGIN], kernels[k, K_END] = begin, end
    i = _append(rows, state, LOAD, _COMPUTE, _COMPUTE, 0)
    rows[i, C_MEM] = UOP
    rows[i, C_SRAM] = begin
    rows[i, C_DRAM] = task[G_UOP_BASE] + kernels[k, K_OFFSET]
    rows[i, C_Y] = 1
    rows[i, C_X] = size
    rows[i, C_STRIDE] = size
    return int(begin)


# --- lowering (VTA reference, 8.3) -----------------------------------------------------------------------------------
@njit(cache=True, nogil=True)
def _nest(task: NDArray[np.int64], value: NDArray[np.int64]) -> NDArray[np.int64]:
    """The GEMM kernel's six loops, outermost first, as rows (extent, dst, src, wgt factor): ci, w, kw, kh, co, h."""
    th, tw, tci, tco = value[TILE_H], value[TILE_W], value[TILE_CI], value[TILE_CO]
    kh, kw, sh, sw = task[G_KH], task[G_KW], task[G_SH], task[G_SW]
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


@njit(cache=True, nogil=True)
def _fold(nest: NDArray[np.int64], reset: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
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


@njit(cache=True, nogil=True)
def _emit_gemm(
    rows: NDArray[np.int64], state: NDArray[np.int64], folded: NDArray[np.int64], reset: int, begin: int, size: int
) -> None:
    i = _append(rows, state, GEMM, _COMPUTE, _COMPUTE, 0)
    rows[i, C_RESET] = reset
    rows[i, C_UOP_BGN] = begin
    rows[i, C_UOP_END] = begin + size
    rows[i, C_ITER_OUT] = folded[0, 0]
    rows[i, C_ITER_IN] = folded[1, 0]
    rows[i, C_DST_OUT] = folded[0, 1]
    rows[i, C_DST_IN] = folded[1, 1]
    rows[i, C_SRC_OUT] = folded[0, 2]
    rows[i, C_SRC_IN] = folded[1, 2]
    rows[i, C_WGT_OUT] = folded[0, 3]
    rows[i, C_WGT_IN] = folded[1, 3]


@njit(cache=True, nogil=True)
def _emit_epilogue(
    rows: NDArray[np.int64],
    state: NDArray[np.int64],
    kernels: NDArray[np.int64],
    cache: NDArray[np.int64],
    task: NDArray[np.int64],
    t: int,
    acc: int,
) -> None:
    """The ALU stages of thread ``t``, one instruction each; a single loop is the inner one."""
    for j in range(task[G_ALU]):
        k = t * _KERNELS + 2 + j
        begin = _kernel(rows, state, kernels, cache, task, k)
        i = _append(rows, state, ALU, _COMPUTE, _COMPUTE, 0)
        rows[i, C_UOP_BGN] = begin
        rows[i, C_UOP_END] = begin + 1
        rows[i, C_ITER_OUT] = 1
        rows[i, C_ITER_IN] = acc
        step = 1 if acc > 1 else 0
        rows[i, C_DST_IN] = step
        rows[i, C_SRC_IN] = step
        rows[i, C_ALU_OP] = task[G_ALU_OP + j]
        rows[i, C_USE_IMM] = 1
        rows[i, C_IMM] = task[G_ALU_IMM + j]
    _push(rows, state, _COMPUTE, _STORE)


@njit(cache=True, nogil=True)
def _emit_loads(
    rows: NDArray[np.int64],
    state: NDArray[np.int64],
    task: NDArray[np.int64],
    value: NDArray[np.int64],
    t: int,
    b: int,
    h0: int,
    co0: int,
    w0: int,
    ci0: int,
    inp_pattern: tuple[int, int, int],
    wgt_pattern: tuple[int, int, int],
) -> None:
    """Input and weights of one step of thread ``t``; pads of the input become the LOAD's."""
    th, tw, tci, tco = value[TILE_H], value[TILE_W], value[TILE_CI], value[TILE_CO]
    kh, kw, height, width = task[G_KH], task[G_KW], task[G_H], task[G_W]
    ih, iw = (th - 1) * task[G_SH] + kh, (tw - 1) * task[G_SW] + kw
    top_y, left_x = h0 * th * task[G_SH] - task[G_PH], w0 * tw * task[G_SW] - task[G_PW]
    top, left = max(0, -top_y), max(0, -left_x)
    bottom, right = max(0, top_y + ih - height), max(0, left_x + iw - width)
    _pop(rows, state, _COMPUTE, _LOAD)
    i = _append(rows, state, LOAD, _LOAD, _LOAD, 0)
    y, x, stride = inp_pattern
    rows[i, C_MEM] = INP
    rows[i, C_SRAM] = t * tci * ih * iw
    rows[i, C_DRAM] = task[G_INP_BASE] + ((b * task[G_CI] + ci0 * tci) * height + top_y + top) * width + left_x + left
    rows[i, C_Y] = y - top - bottom
    rows[i, C_X] = x - left - right
    rows[i, C_STRIDE] = stride
    rows[i, C_TOP] = top
    rows[i, C_BOTTOM] = bottom
    rows[i, C_LEFT] = left
    rows[i, C_RIGHT] = right
    i = _append(rows, state, LOAD, _LOAD, _LOAD, 0)
    y, x, stride = wgt_pattern
    rows[i, C_MEM] = WGT
    rows[i, C_SRAM] = t * tco * tci * kh * kw
    rows[i, C_DRAM] = task[G_WGT_BASE] + (co0 * tco * task[G_CI] + ci0 * tci) * kh * kw
    rows[i, C_Y] = y
    rows[i, C_X] = x
    rows[i, C_STRIDE] = stride
    _push(rows, state, _LOAD, _COMPUTE)


@njit(cache=True, nogil=True)
def _emit_store(
    rows: NDArray[np.int64],
    state: NDArray[np.int64],
    task: NDArray[np.int64],
    value: NDArray[np.int64],
    t: int,
    b: int,
    h0: int,
    co0: int,
    w0: int,
    out_pattern: tuple[int, int, int],
) -> None:
    th, tw, tco = value[TILE_H], value[TILE_W], value[TILE_CO]
    out_h, out_w = task[G_OH], task[G_OW]
    y, x, stride = out_pattern
    _pop(rows, state, _COMPUTE, _STORE)
    i = _append(rows, state, STORE, _STORE, _STORE, 0)
    rows[i, C_MEM] = OUT
    rows[i, C_SRAM] = t * tco * th * tw
    rows[i, C_DRAM] = task[G_OUT_BASE] + ((b * task[G_CO] + co0 * tco) * out_h + h0 * th) * out_w + w0 * tw
    rows[i, C_Y] = y
    rows[i, C_X] = x
    rows[i, C_STRIDE] = stride


@njit(cache=True, nogil=True)
def _emit(
    task: NDArray[np.int64], value: NDArray[np.int64], rows: NDArray[np.int64], kernels: NDArray[np.int64]
) -> tuple[int, int]:
    """Write the program of a valid schedule into ``rows``, at least `_instruction_bound` of them.

    Fills ``kernels`` (2 * _KERNELS, 4); returns the numbers of instructions and of micro-ops.
    """
    threads = value[OC_NTHREAD] * value[H_NTHREAD]
    th, tw, tci, tco = value[TILE_H], value[TILE_W], value[TILE_CI], value[TILE_CO]
    acc = tco * th * tw
    steps = task[G_CI] // tci
    kh, kw, width = task[G_KH], task[G_KW], task[G_W]
    ih, iw = (th - 1) * task[G_SH] + kh, (tw - 1) * task[G_SW] + kw
    # A padded copy is never merged (5.2, rule 4); what a tile's pads cover comes off its rows and columns.
    inp_pattern = (ih, iw, width)
    if task[G_PH] == 0 and task[G_PW] == 0:
        inp_pattern = _pattern(tci, ih, iw, task[G_H], width)
    wgt_pattern = _pattern(1, tco, tci * kh * kw, task[G_CO], task[G_CI] * kh * kw)
    out_pattern = _pattern(tco, th, tw, task[G_OH], task[G_OW])
    nest = _nest(task, value)
    reset_loops, _ = _fold(nest, True)
    gemm_loops, _ = _fold(nest, False)
    reset_size, gemm_size, _ = _uop_counts(task, value)
    for t in range(2):
        for k in range(_KERNELS):
            kernels[t * _KERNELS + k, K_SIZE] = reset_size if k == 0 else (gemm_size if k == 1 else 1)
    kernels[:, K_OFFSET] = -1
    kernels[:, K_BEGIN:] = 0
    cache = np.zeros(2 * _KERNELS + 1, dtype=np.int64)
    state = np.zeros(_STATE_FIELDS, dtype=np.int64)

    h_step, co_step = value[H_NTHREAD], value[OC_NTHREAD]
    h_tiles, co_tiles, w_tiles = task[G_OH] // th // h_step, task[G_CO] // tco // co_step, task[G_OW] // tw
    # The loop of the thread goes to the outside, where the batch loop was, and that one takes its place.
    outer_h = h_tiles
    outer_co = co_tiles if co_step > 1 else 1
    outer_b = task[G_NB] if threads == 1 else 1
    inner_b, inner_co = task[G_NB] // outer_b, co_tiles // outer_co
    tiles = task[G_NB] * h_tiles * co_tiles * w_tiles
    carried = tiles > 1
    if carried:
        for _ in range(threads):
            _push(rows, state, _STORE, _COMPUTE)
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
                _pop(rows, state, _STORE, _COMPUTE)
            begin = _kernel(rows, state, kernels, cache, task, t * _KERNELS)
            _emit_gemm(rows, state, reset_loops, 1, begin, reset_size)
            _push(rows, state, _COMPUTE, _LOAD)
        for step in range(steps):
            for t in range(threads):
                h0 = h_tile * h_step + (t if h_step > 1 else 0)
                co0 = co_tile * co_step + (t if co_step > 1 else 0)
                _emit_loads(rows, state, task, value, t, b, h0, co0, w0, step, inp_pattern, wgt_pattern)
            for t in range(threads):
                _pop(rows, state, _LOAD, _COMPUTE)
                begin = _kernel(rows, state, kernels, cache, task, t * _KERNELS + 1)
                _emit_gemm(rows, state, gemm_loops, 0, begin, gemm_size)
                if steps > 1:
                    _push(rows, state, _COMPUTE, _LOAD)
                else:
                    # Without a reduction loop GEMM and epilogue are one scope.
                    _emit_epilogue(rows, state, kernels, cache, task, t, acc)
        if steps > 1:
            for _ in range(threads):
                _pop(rows, state, _COMPUTE, _LOAD)
            for t in range(threads):
                _emit_epilogue(rows, state, kernels, cache, task, t, acc)
        for t in range(threads):
            h0 = h_tile * h_step + (t if h_step > 1 else 0)
            co0 = co_tile * co_step + (t if co_step > 1 else 0)
            _emit_store(rows, state, task, value, t, b, h0, co0, w0, out_pattern)
            if carried:
                _push(rows, state, _STORE, _COMPUTE)
    if carried and threads > 1:
        for _ in range(threads):
            _pop(rows, state, _STORE, _COMPUTE)
    _push(rows, state, _STORE, _COMPUTE)
    _push(rows, state, _LOAD, _COMPUTE)
    _pop(rows, state, _STORE, _COMPUTE)
    _pop(rows, state, _LOAD, _COMPUTE)
    _noop(rows, state, _COMPUTE, 0)
    if carried and threads == 1:
        # TVM carries this pop into the next submission.
        _pop(rows, state, _STORE, _COMPUTE)
    _append(rows, state, FINISH, _COMPUTE, _COMPUTE, 0)
    return int(state[S_COUNT]), int(state[S_IMAGE])


def short(schedule: Schedule) -> str:
    """All of its knobs."""
    return str(schedule)


def table(space: ScheduleSpace) -> NDArray[np.int64]:
    """Indices of all canonical schedules of a space, int64 (m,), ascending."""
    return scan(space)


@njit(cache=True, nogil=True)
def _write_uops(
    task: NDArray[np.int64], value: NDArray[np.int64], kernels: NDArray[np.int64], uops: NDArray[np.int64]
) -> None:
    """Fill the micro-op image (m, 3) that `_emit` laid out."""
    threads = value[OC_NTHREAD] * value[H_NTHREAD]
    nest = _nest(task, value)
    acc = value[TILE_CO] * value[TILE_H] * value[TILE_W]
    inp = value[TILE_CI] * ((value[TILE_H] - 1) * task[G_SH] + task[G_KH])
    inp *= (value[TILE_W] - 1) * task[G_SW] + task[G_KW]
    wgt = value[TILE_CO] * value[TILE_CI] * task[G_KH] * task[G_KW]
    for t in range(threads):
        for k in range(2 + task[G_ALU]):
            offset, size = kernels[t * _KERNELS + k, K_OFFSET], kernels[t * _KERNELS + k, K_SIZE]
            uops[offset : offset + size, 0] = t * acc
            uops[offset : offset + size, 1] = t * acc if k > 1 else (t * inp if k == 1 else 0)
            uops[offset : offset + size, 2] = t * wgt if k == 1 else 0
            if k > 1:
                continue
            _, loops = _fold(nest, k == 0)
            for u in range(size):
                rest = u
                for loop in range(len(loops) - 1, -1, -1):
                    digit = rest % loops[loop, 0]
                    rest //= loops[loop, 0]
                    for j in range(3):
                        uops[offset + u, j] += digit * loops[loop, 1 + j]


def lower(workload: Workload, accelerator: Accelerator, values: NDArray[np.int64]) -> Program:
    """TVM's program of a schedule (7,), with no token left at its end.

    Its buffers ``data``, ``weight``, ``output`` are packed (VTA reference, 8.1).

    Raises:
        InvalidSchedule: TVM could not lower or run it.
        WorkloadError: a workload that the template cannot express.
    """
    task, buffers, uop_address = _task(workload, accelerator)
    value = np.ascontiguousarray(values, dtype=np.int64)
    reason = Reason(_reason(task, value))
    if reason:
        raise InvalidSchedule(reason)
    rows = np.empty((_instruction_bound(task, value), COLUMNS), dtype=np.int64)
    kernels = np.empty((2 * _KERNELS, 4), dtype=np.int64)
    count, n_uops = _emit(task, value, rows, kernels)
    uops = np.zeros((n_uops, 3), dtype=np.int64)
    _write_uops(task, value, kernels, uops)
    insn_address = _page(uop_address + 4 * n_uops)
    return Program(accelerator, rows[:count].copy(), uops, insn_address, uop_address, buffers)


def programs(workload: Workload, accelerator: Accelerator, values: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """The instructions (m, COLUMNS) of valid schedules (n, 7), each a view that the next one overwrites."""
    task, _, _ = _task(workload, accelerator)
    values = np.ascontiguousarray(values, dtype=np.int64)
    kernels = np.empty((2 * _KERNELS, 4), dtype=np.int64)
    rows = np.empty((_largest(task, values), COLUMNS), dtype=np.int64)
    for value in values:
        reason = Reason(_reason(task, value))
        if reason:
            raise InvalidSchedule(reason)
        count, _ = _emit(task, value, rows, kernels)
        yield rows[:count]


@njit(cache=True, nogil=True)
def _largest(task: NDArray[np.int64], values: NDArray[np.int64]) -> int:
    """Rows that hold any of the valid schedules' programs."""
    most = 1
    for i in range(len(values)):
        if _reason(task, values[i]) == _VALID:
            most = max(most, _instruction_bound(task, values[i]))
    return most


def measure_batch(workload: Workload, accelerator: Accelerator, values: NDArray[np.int64]) -> BatchResult:
    """Lower and time schedules (n, 7).

    Raises:
        WorkloadError: a workload that the template cannot express.
    """
    task, _, uop_address = _task(workload, accelerator)
    values = np.ascontiguousarray(values, dtype=np.int64)
    reasons = np.zeros(len(values), dtype=np.uint8)
    _reasons(task, values, reasons)
    cycles = np.full(len(values), -1, dtype=np.int64)
    busy = np.zeros((len(values), 3), dtype=np.int64)
    params = chisel.params(accelerator)
    rows = np.empty((_largest(task, values), COLUMNS), dtype=np.int64)
    kernels = np.empty((2 * _KERNELS, 4), dtype=np.int64)
    trace = np.empty((0, 2), dtype=np.int64)
    # Not one compiled loop: numba's disk cache would not notice a change of the timing model that it contains.
    for i in np.flatnonzero(reasons == _VALID):
        count, n_uops = _emit(task, values[i], rows, kernels)
        total, hang, counters = chisel.simulate(rows[:count], _page(uop_address + 4 * n_uops), params, trace)
        if hang:
            reasons[i] = _DEADLOCK
            continue
        cycles[i] = total
        busy[i] = counters[[chisel.B_LOAD, chisel.B_COMPUTE, chisel.B_STORE]]
    return BatchResult(reasons, cycles, busy)
