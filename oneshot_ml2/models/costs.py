"""What a layer's program takes by itself: cycles, where they go, and bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from oneshot_ml2.vta import simulator
from oneshot_ml2.vta.bound import engine_bound
from oneshot_ml2.vta.breakdown import PARTS, split_cycles
from oneshot_ml2.vta.timing import designs

if TYPE_CHECKING:
    from oneshot_ml2.network.picking import Pick


@dataclass(frozen=True)
class Cost:
    """What a layer's program takes.

    Attributes:
        cycles: by the timing model, from launch to FINISH.
        hang: the program never reached FINISH (``cycles`` is then when it stopped).
        parts: ``PARTS`` -> cycles; they add up to ``cycles``.
        bound: the engine bound of the layer, in cycles.
        limiting: the engine that the bound is of.
        dram_bytes: bytes that LOADs and STOREs moved, pads not counted.
        rows: of LOADs and of STOREs on the HLS design, each of which waits for itself; None on the RTL.
    """

    cycles: int
    hang: bool
    parts: Mapping[str, int]
    bound: int
    limiting: str
    dram_bytes: int
    rows: tuple[int, int] | None = None

    @property
    def bound_share(self) -> float:
        """Engine bound / cycles, 0..1."""
        return self.bound / self.cycles


def cost_of(pick: Pick) -> Cost:
    """Time a layer's program, and count what it moves."""
    program = pick.program
    timed = designs.measure(program, trace=True)
    assert timed.trace is not None
    parts = dict.fromkeys(PARTS, 0) | {"rest": timed.cycles}
    if not timed.hang:
        parts = split_cycles(program.insns, timed.trace, timed.cycles)
    moved = simulator.traffic(program.insns, program.accelerator)
    bound = engine_bound(pick.space.workload, program.accelerator)
    return Cost(
        cycles=int(timed.cycles),
        hang=timed.hang,
        parts=parts,
        bound=bound.bound,
        limiting=bound.limiting,
        dram_bytes=sum(value for name, value in moved.items() if name.endswith("_nbytes")),
        rows=(timed.read_bursts, timed.write_bursts) if program.accelerator.hls is not None else None,
    )
