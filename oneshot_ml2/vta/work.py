"""How much the simulators have to do for a program, in closed form: programs from elsewhere may ask for years."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.vta.program import ITERATIONS, Insns, Memory, Opcode, element_bytes

if TYPE_CHECKING:
    from oneshot_ml2.vta.accelerator import Accelerator

# Bursts of a run of the timing model, and multiplications or other operations of a run of the functional one: some
# seconds each.
MOST_BURSTS = 1 << 25
MOST_OPERATIONS = 1 << 32


def bursts(insns: Insns, accelerator: Accelerator) -> float:
    """An upper bound of the bursts of all loads, stores and fetches of instructions (n,)."""
    sizes = np.array([*element_bytes(accelerator), 0, 0], dtype=np.float64)
    moves = insns[(insns["op"] == Opcode.LOAD) | (insns["op"] == Opcode.STORE)]
    memory = np.where(moves["op"] == Opcode.STORE, Memory.OUT, np.clip(moves["mem"], 0, 7))
    row = np.ceil(moves["x"] * sizes[memory] / accelerator.burst_bytes) + 1
    return float((moves["y"] * row).sum()) + len(insns)


def operations(insns: Insns, accelerator: Accelerator) -> float:
    """Multiplications, and the ALU's operations, of instructions (n,); loops of 0 go once around."""
    rows = insns[(insns["op"] == Opcode.GEMM) | (insns["op"] == Opcode.ALU)]
    mask = (2 << accelerator.isa_uop_bits) - 1
    uops = (rows["uop_end"] - rows["uop_bgn"]) & mask
    outer, inner = (np.where(rows[c] == 0, ITERATIONS, rows[c]) for c in ("iter_out", "iter_in"))
    times = outer.astype(np.float64) * inner * np.where(uops == 0, mask + 1, uops)
    each = np.where(rows["op"] == Opcode.GEMM, accelerator.block, 1) * accelerator.batch * accelerator.block
    return float((times * each).sum())


def reach(insns: Insns, accelerator: Accelerator) -> int:
    """The first byte of DRAM beyond all that loads and stores touch, 0 without any."""
    sizes = np.array([*element_bytes(accelerator), 0, 0], dtype=np.int64)
    moves = insns[((insns["op"] == Opcode.LOAD) | (insns["op"] == Opcode.STORE)) & (insns["x"] > 0) & (insns["y"] > 0)]
    last = moves["dram"] + (moves["y"] - 1) * moves["stride"] + moves["x"]
    return int((last * sizes[np.clip(moves["mem"], 0, 7)]).max(initial=0))


def check(insns: Insns, accelerator: Accelerator, what: str, executed: bool = False) -> None:
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
