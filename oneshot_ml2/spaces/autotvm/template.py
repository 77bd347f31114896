"""TVM's ``conv2d_packed.vta`` template: its knobs, the workloads that it takes, and what compiled code knows of one."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import WorkloadError
from oneshot_ml2.spaces.base import Knob
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.program import PAGE, AluOp, Buffer, Memory
from oneshot_ml2.vta.timing.records import PARAMETERS, params
from oneshot_ml2.workload.base import Workload
from oneshot_ml2.workload.conv2d import Conv2d

KNOBS = ("tile_b", "tile_h", "tile_w", "tile_ci", "tile_co", "oc_nthread", "h_nthread")
# A schedule: a record of its knobs' values.
SCHEDULE = np.dtype((np.record, [(name, np.int64) for name in KNOBS]))
ALU_STAGES = 3

_FIELDS = (
    # Shapes in blocks.
    "nb", "ci", "h", "w", "co", "kh", "kw", "sh", "sw", "ph", "pw", "oh", "ow",
    # SRAM depths, DRAM bases in elements, stages of the epilogue.
    "inp_depth", "wgt_depth", "acc_depth", "uop_depth", "inp_base", "wgt_base", "out_base", "uop_base", "stages",
    # Operations from one update of an accumulator to the next one that the HLS design asks for, 0 of the other.
    "acc_distance",
    # What the accelerator's timing depends on.
    *(PARAMETERS.names or ()),
)  # fmt: skip
# A workload on an accelerator: a record that compiled code gets a pointer to.
TASK = np.dtype(
    (
        np.record,
        [
            *((name, np.int64) for name in _FIELDS),
            ("alu_op", np.int64, (ALU_STAGES,)),
            ("alu_imm", np.int64, (ALU_STAGES,)),
        ],
    )
)
Task: TypeAlias = np.record


def schedules(values: NDArray[np.int64]) -> NDArray[np.void]:
    """Knob values (n, 7) as `SCHEDULE` records (n,), a view of them if they are contiguous."""
    return np.ascontiguousarray(values, dtype=np.int64).view(SCHEDULE)[:, 0]


def _divisors(extent: int) -> tuple[int, ...]:
    return tuple(d for d in range(1, extent + 1) if extent % d == 0)


def check_task(workload: Workload, accelerator: Accelerator) -> Conv2d:
    """The workload, if TVM's template can express it.

    Raises:
        WorkloadError: it cannot, and why.
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
    conv = check_task(workload, accelerator)
    extents = {
        "tile_b": conv.n // accelerator.batch,
        "tile_h": conv.out_h,
        "tile_w": conv.out_w,
        "tile_ci": conv.c // accelerator.block,
        "tile_co": conv.k // accelerator.block,
    }
    tiles = tuple(Knob(name, _divisors(extent)) for name, extent in extents.items())
    return (*tiles, Knob("oc_nthread", (1, 2)), Knob("h_nthread", (1, 2)))


def page(address: int) -> int:
    return -(-address // PAGE) * PAGE


def make_task(workload: Workload, accelerator: Accelerator) -> tuple[Task, tuple[Buffer, ...], int]:
    """The task, the DRAM buffers (page aligned, in TVM's order of arguments) and the micro-ops' address."""
    conv, a = check_task(workload, accelerator), accelerator
    nb, ci, co = conv.n // a.batch, conv.c // a.block, conv.k // a.block
    buffers: list[Buffer] = []
    address = PAGE
    for name, memory, elements, size in (
        ("data", Memory.INP, nb * ci * conv.h * conv.w, a.inp_bytes),
        ("weight", Memory.WGT, co * ci * conv.r * conv.s, a.wgt_bytes),
        ("output", Memory.OUT, nb * co * conv.out_h * conv.out_w, a.inp_bytes),
    ):
        buffers.append(Buffer(name, memory, address, elements))
        address = page(address + elements * size)
    if address >= 1 << 31:
        raise WorkloadError(f"{conv}: its tensors take {address} bytes; a 32-bit VTA program can address 2 GiB of them")
    stages = []
    if conv.epilogue.shift:
        stages.append((AluOp.SHR, conv.epilogue.shift))
    if conv.epilogue.clip is not None:
        low, high = conv.epilogue.clip
        stages += [(AluOp.MIN, high), (AluOp.MAX, low)]
    task: np.record = np.zeros(1, dtype=TASK)[0]
    task.nb, task.ci, task.co, task.kh, task.kw = nb, ci, co, conv.r, conv.s
    task.h, task.w, task.oh, task.ow = conv.h, conv.w, conv.out_h, conv.out_w
    (task.sh, task.sw), (task.ph, _, task.pw, _) = conv.strides, conv.pads
    task.inp_depth, task.wgt_depth, task.acc_depth, task.uop_depth = a.inp_depth, a.wgt_depth, a.acc_depth, a.uop_depth
    task.inp_base, task.wgt_base = buffers[0].address // a.inp_bytes, buffers[1].address // a.wgt_bytes
    task.out_base, task.uop_base = buffers[2].address // a.inp_bytes, address // 4
    task.stages = len(stages)
    task.acc_distance = a.acc_distance
    for j, stage in enumerate(stages):
        task.alu_op[j], task.alu_imm[j] = stage
    timing = params(accelerator)
    for name in PARAMETERS.names or ():
        task[name] = timing[name]
    return task, tuple(buffers), address
