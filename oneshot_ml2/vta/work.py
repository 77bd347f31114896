"""How much the simulators have to do for a program, in closed form: programs from elsewhere may ask for years."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.vta.program import (
    ALU,
    C_DRAM,
    C_ITER_IN,
    C_ITER_OUT,
    C_MEM,
    C_OP,
    C_STRIDE,
    C_UOP_BGN,
    C_UOP_END,
    C_X,
    C_Y,
    GEMM,
    LOAD,
    OUT,
    STORE,
    element_bytes,
)
from oneshot_ml2.vta.timing import chisel

if TYPE_CHECKING:
    from oneshot_ml2.vta.accelerator import Accelerator

# Bursts of a run of the timing model, and multiplications or other operations of a run of the functional one: some
# seconds each.
MOST_BURSTS = 1 << 25
MOST_OPERATIONS = 1 << 32


def bursts(insns: NDArray[np.int64], accelerator: Accelerator) -> float:
    """An upper bound of the bursts of all loads, stores and fetches of instructions, int64 (n, COLUMNS)."""
    sizes = np.array([*element_bytes(accelerator), 0, 0], dtype=np.float64)
    moves = insns[(insns[:, C_OP] == LOAD) | (insns[:, C_OP] == STORE)]
    memory = np.where(moves[:, C_OP] == STORE, OUT, np.clip(moves[:, C_MEM], 0, 7))
    row = np.ceil(moves[:, C_X] * sizes[memory] / accelerator.burst_bytes) + 1
    return float((moves[:, C_Y] * row).sum()) + len(insns)


def operations(insns: NDArray[np.int64], accelerator: Accelerator) -> float:
    """Multiplications, and the ALU's operations, of instructions, int64 (n, COLUMNS); loops of 0 go once around."""
    rows = insns[(insns[:, C_OP] == GEMM) | (insns[:, C_OP] == ALU)]
    mask = (2 << accelerator.isa_uop_bits) - 1
    uops = (rows[:, C_UOP_END] - rows[:, C_UOP_BGN]) & mask
    outer, inner = (np.where(rows[:, c] == 0, chisel.ITERATIONS, rows[:, c]) for c in (C_ITER_OUT, C_ITER_IN))
    times = outer.astype(np.float64) * inner * np.where(uops == 0, mask + 1, uops)
    each = np.where(rows[:, C_OP] == GEMM, accelerator.block, 1) * accelerator.batch * accelerator.block
    return float((times * each).sum())


def reach(insns: NDArray[np.int64], accelerator: Accelerator) -> int:
    """The first byte of DRAM beyond all that loads and stores touch, 0 without any."""
    sizes = np.array([*element_bytes(accelerator), 0, 0], dtype=np.int64)
    moves = insns[((insns[:, C_OP] == LOAD) | (insns[:, C_OP] == STORE)) & (insns[:, C_X] > 0) & (insns[:, C_Y] > 0)]
    last = moves[:, C_DRAM] + (moves[:, C_Y] - 1) * moves[:, C_STRIDE] + moves[:, C_X]
    return int((last * sizes[np.clip(moves[:, C_MEM], 0, 7)]).max(initial=0))


def check(insns: NDArray[np.int64], accelerator: Accelerator, what: str, executed: bool = False) -> None:
    """Refuse a program that would take the timing model, or also (``executed``) the functional one, minutes or more.

    Raises:
        OneShotError: too much work; ``what`` names the program.
    """
    advice = "it is no program, or one of another accelerator"
    asked = bursts(insns, accelerator)
    if asked > MOST_BURSTS:
        raise OneShotError(f"{what} moves memory in {asked:.3g} bursts; timed are at most {MOST_BURSTS:,}: {advice}")
    asked = operations(insns, accelerator) if executed else 0.0
    if asked > MOST_OPERATIONS:
        raise OneShotError(f"{what} computes {asked:.3g} operations; run are at most {MOST_OPERATIONS:,}: {advice}")
