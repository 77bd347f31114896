"""What boards that are not as described do to schedules of the space `autotvm`; see `protocols.Boards`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.spaces.autotvm import plan
from oneshot_ml2.spaces.autotvm.template import make_task
from oneshot_ml2.spaces.base import Candidates, Effort, opened_pages
from oneshot_ml2.spaces.space import ScheduleSpace

# What threads hold together, requests, and sizes of instructions.
TRAFFIC = (
    "inp use",
    "wgt use",
    "acc use",
    "inp bursts",
    "wgt bursts",
    "out bursts",
    "steps",
    "tiles",
    "gemm uops",
    "uops",
    "longest run",
    "instructions",
    "accumulators in turn",
)
_COLUMNS = [plan.SUMMARY.index(name) for name in TRAFFIC]


def traffic(space: ScheduleSpace, given: Candidates) -> NDArray[np.float64]:
    """`TRAFFIC` of candidates of a space, float64 (n, len(TRAFFIC))."""
    return given.summary[:, _COLUMNS]


def effort(space: ScheduleSpace, given: Candidates, traffic: NDArray[np.float64]) -> Effort:
    """See `Boards.effort`."""
    task, chip = make_task(space.workload, space.accelerator)[0], space.accelerator
    figures = plan.figures_of(given.summary)
    strides = {
        "inp": task.w * chip.inp_bytes,
        "wgt": task.ci * task.kh * task.kw * chip.wgt_bytes,
        "out": task.ow * chip.inp_bytes,
    }
    moved, requests, pages = (np.zeros(len(given)) for _ in range(3))
    for kind, stride in strides.items():
        size, bursts = figures[f"{kind}_bytes"], figures[f"{kind}_bursts"]
        moved += size
        requests += bursts
        pages += opened_pages(bursts, size / np.maximum(bursts, 1.0), stride)
    return Effort(
        beats=moved / chip.bus_bytes + 2 * figures["instructions"],
        requests=requests,
        pages=pages,
        instructions=figures["instructions"],
        alu=figures["epilogue"],
        compute=figures["compute"],
    )


# One by one, as programs are.
measure_faulty = None
