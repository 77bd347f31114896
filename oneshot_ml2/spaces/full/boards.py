"""What boards that are not as described do to schedules of the space `full`; see `protocols.Boards`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.kernels import njit
from oneshot_ml2.spaces.base import BatchResult, Candidates, Effort, opened_pages
from oneshot_ml2.spaces.full import emit
from oneshot_ml2.spaces.full import traffic as closed_form
from oneshot_ml2.spaces.full.features import nest_of
from oneshot_ml2.spaces.full.knobs import schedules
from oneshot_ml2.spaces.full.space import validity
from oneshot_ml2.spaces.full.totals import column
from oneshot_ml2.spaces.full.traffic import TRAFFIC
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.bound import engine_bound
from oneshot_ml2.vta.faults import Faults, is_wrong, page_misses, slowed
from oneshot_ml2.vta.nest import buffers, make_nest
from oneshot_ml2.vta.program import element_bytes
from oneshot_ml2.vta.reasons import Reason
from oneshot_ml2.vta.timing import designs, records
from oneshot_ml2.workload.base import Workload

_WRONG = int(Reason.WRONG_RESULT)


def traffic(space: ScheduleSpace, given: Candidates) -> NDArray[np.float64]:
    """`TRAFFIC` of candidates of a space, float64 (n, len(TRAFFIC))."""
    return closed_form.traffic(nest_of(space), given.values, given.summary)


def effort(space: ScheduleSpace, given: Candidates, traffic: NDArray[np.float64]) -> Effort:
    """See `Boards.effort`."""
    nest, summary = nest_of(space), given.summary
    stored = np.full(len(given), nest.nb * nest.oh * nest.ow * nest.out_blocks * nest.inp_bytes / nest.bus)
    beats = {"input": column(summary, "inp_beats"), "weight": column(summary, "wgt_beats"), "output": stored}
    # From one row, or kernel of an output channel, to the next.
    strides = {
        "input": nest.iw * nest.inp_bytes,
        "weight": nest.ci * nest.kh * nest.kw * nest.wgt_bytes,
        "output": nest.ow * nest.inp_bytes,
    }
    requests = {kind: traffic[:, TRAFFIC.index(f"{kind} requests")] for kind in beats}
    opened = (
        opened_pages(requests[kind], beats[kind] * nest.bus / np.maximum(requests[kind], 1.0), strides[kind])
        for kind in beats
    )
    instructions = column(summary, "instructions")
    return Effort(
        beats=sum(beats.values()) + 2 * instructions,
        requests=sum(requests.values(), np.zeros(len(given))),
        pages=sum(opened, np.zeros(len(given))),
        instructions=instructions,
        alu=np.full(len(given), float(engine_bound(space.workload, space.accelerator).alu)),
        compute=column(summary, "compute"),
    )


@njit(cache=True, nogil=True)
def _measure(nest, batch, insns, tables, address, params, sizes, limits, costs, reason, cycles, busy):  # type: ignore[no-untyped-def]
    """Lower and time the rows whose ``reason`` is 0 so far; ``limits``, ``costs``: of `Faults`."""
    unrecorded = records.nothing()
    for i in range(len(batch)):
        if reason[i] != 0:
            continue
        why, n, _ = emit.lower_into(nest, batch[i], insns, tables)
        if why == 0 and is_wrong(insns[:n], limits):
            why = _WRONG
        reason[i] = why
        if why != 0:
            continue
        total, hang, counters = designs.simulate_any(insns[:n], address, params, unrecorded)
        if hang:
            reason[i] = emit.DEADLOCK
            continue
        port, misses = counters.read_beats + counters.write_beats, 0.0
        if costs.miss > 0.0:
            misses = page_misses(insns[:n], sizes, limits.page, limits.banks)
        cycles[i] = max(1, round(slowed(total, port, counters.compute, counters.alu, misses, n, costs)))
        busy[i, 0], busy[i, 1], busy[i, 2] = counters.load, counters.compute, counters.store


def measure_faulty(
    workload: Workload, accelerator: Accelerator, values: NDArray[np.int64], faults: Faults
) -> BatchResult:
    """Lower every row of knob values that is valid, and time it on a board with faults, without noise."""
    found = BatchResult.untimed(validity(workload, accelerator, values))
    insns, _, tables = emit.work_arrays()
    _, end = buffers(workload, accelerator)
    sizes = np.array(element_bytes(accelerator), dtype=np.int64)
    _measure(
        make_nest(workload, accelerator), schedules(values), insns, tables, end, records.params(faults.board), sizes,
        faults.limits, faults.costs, found.reason, found.cycles, found.busy,
    )  # fmt: skip
    return found
