"""The timing of an accelerator's programs by the design of its hardware: what all others ask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.parts import part
from oneshot_ml2.vta import tokens
from oneshot_ml2.vta.timing import chisel, hls
from oneshot_ml2.vta.timing.records import BURST, Counters, Parameters, Recording, params

if TYPE_CHECKING:
    from oneshot_ml2.vta.program import Insns, Program


def simulate(insns: Insns, insn_address: int, p: Parameters, recording: Recording) -> tuple[int, int, Counters]:
    """(cycles, hang, `Counters`) of a program on an idle accelerator; see `chisel.simulate` and `hls.simulate`.

    Only the model of its design is compiled.
    """
    timed: tuple[int, int, Counters] = (
        hls.simulate(insns, p, recording) if p.hls else chisel.simulate(insns, insn_address, p, recording)
    )
    return timed


@part()
def simulate_any(insns, insn_address, p, recording):  # type: ignore[no-untyped-def]
    """`simulate` in compiled code, for all designs."""
    if p.hls:
        return hls.simulate(insns, p, recording)
    return chisel.simulate(insns, insn_address, p, recording)


@dataclass(frozen=True)
class Timing:
    """Cycles of one run; ``trace`` is int64 (n, 2), the execution cycles [start, done) of every instruction.

    ``queued``, ``bursts``: when instructions entered their queues, and all read bursts; see `records.Recording`. The
    HLS design has rows in place of bursts: they are counted, and ``bursts`` has none.

    ``*_busy``: execution cycles of the three modules; ``gemm``, ``alu``: of compute's, those of such instructions.
    ``hang``: the program never reaches FINISH (``cycles`` is then the cycle of the last event).
    ``tokens_left``: in the order of `tokens.QUEUES`, what the program leaves for the next one once all modules have
    come to rest; all 0 in a sound submission.
    """

    cycles: int
    hang: bool
    load_busy: int
    compute_busy: int
    store_busy: int
    gemm: int
    alu: int
    read_beats: int
    write_beats: int
    read_bursts: int
    write_bursts: int
    tokens_left: tuple[int, int, int, int]
    trace: NDArray[np.int64] | None = None
    queued: NDArray[np.int64] | None = None
    bursts: NDArray[np.void] | None = None

    @property
    def ends_cleanly(self) -> bool:
        """Whether the program reaches FINISH and leaves every token queue empty, as a submission must."""
        return not self.hang and not any(self.tokens_left)


def measure(program: Program, trace: bool = False, memory: bool = False) -> Timing:
    """Time a program from launch to FINISH on its own accelerator.

    ``trace``: with the execution cycles of every instruction; ``memory``: with ``queued`` and ``bursts``, too.
    """
    insns = np.ascontiguousarray(program.insns)
    n, p = len(insns), params(program.accelerator)
    made = Recording(
        np.empty((n if trace else 0, 2), np.int64), np.empty(n if memory else 0, np.int64), np.empty(0, BURST)
    )
    cycles, hang, counters = simulate(insns, program.insn_address, p, made)
    if memory and not p.hls:
        # Once more, now that the number of bursts is known.
        made = made._replace(bursts=np.empty(counters.read_bursts, BURST))
        simulate(insns, program.insn_address, p, made)
    return Timing(
        cycles=int(cycles),
        hang=bool(hang),
        load_busy=counters.load,
        compute_busy=counters.compute,
        store_busy=counters.store,
        gemm=counters.gemm,
        alu=counters.alu,
        read_beats=counters.read_beats,
        write_beats=counters.write_beats,
        read_bursts=counters.read_bursts,
        write_bursts=counters.write_bursts,
        tokens_left=tokens.left(insns),
        trace=made.trace if trace else None,
        queued=made.queued if memory else None,
        bursts=made.bursts if memory else None,
    )
