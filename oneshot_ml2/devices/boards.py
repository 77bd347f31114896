"""How a perturbed board differs from the simulator, drawn by kind and seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from oneshot_ml2.common.errors import DeviceError
from oneshot_ml2.common.names import unknown
from oneshot_ml2.vta.faults import RULES, Costs, Faults, Limits

if TYPE_CHECKING:
    from oneshot_ml2.vta.accelerator import Accelerator


@dataclass(frozen=True)
class Differences:
    """How a board differs from the simulation.

    Attributes:
        latency: factor on the memory latency; on the HLS design, where each row waits, on that of rows.
        bandwidth: beats per cycle of a busy port, 0..1.
        page_bytes, page_miss: DRAM page, and the cycles that a request to one that is not open costs.
        banks: DRAM banks, of which each has a page open; a miss in another bank than the access before costs a quarter.
        clock_ratio: the memory's clock over the core's; latency and page misses take so many times fewer core cycles.
        noise: standard deviation of the logarithm of measured cycles.
        failures, timeouts: shares of the measurements that fail so.
        beat, alu, start: on the HLS design, factors on a beat of weights, on the ALU's micro-ops, and on the starts of
            instructions and on pads.
        lies, lie: share of the measurements whose cycles are so many times the true ones.
        liars: share of the programs whose cycles always are.
        uop_share: of the micro-op SRAM that the description promises, what there is.
        rule: of `RULES`, when results are wrong: a strided STORE of rows of ``limit`` elements or less; a GEMM of more
            than ``limit`` operations; a LOAD of more than ``limit`` elements; such a LOAD, and a GEMM of more than
            another limit in the same program. ``rule_share`` places ``limit``, ``second_share`` that other one.
        instruction: cycles that each instruction costs more, in which nothing else goes on.
        slow_alu: factor on the cycles of the ALU, on both designs.
    """

    latency: float = 1.0
    bandwidth: float = 1.0
    page_bytes: int = 2048
    page_miss: float = 0.0
    banks: int = 1
    clock_ratio: float = 1.0
    noise: float = 0.0
    failures: float = 0.0
    timeouts: float = 0.0
    lies: float = 0.0
    lie: float = 0.6
    liars: float = 0.0
    uop_share: float = 1.0
    rule: str = "none"
    rule_share: float = 0.5
    beat: float = 1.0
    alu: float = 1.0
    start: float = 1.0
    second_share: float = 0.0
    instruction: float = 0.0
    slow_alu: float = 1.0


@dataclass(frozen=True)
class BoardKind:
    """``number``: of its draws; ``help``: what such boards are; ``drawn``: lowest and highest of the figures that a
    seed draws; ``others``: the figures that all of them have."""

    number: int
    help: str
    drawn: Mapping[str, tuple[float, float]]
    others: Differences


# Last, so that a seed draws the same of all before as where there is none of them.
_RATES = {"beat": (0.8, 1.6), "alu": (0.7, 1.6), "start": (0.5, 3.0)}
KINDS: dict[str, BoardKind] = {
    "slow-memory": BoardKind(
        3,
        "a memory of higher latency and lower bandwidth",
        {"latency": (4.0, 10.0), "bandwidth": (0.45, 0.7), "noise": (0.003, 0.01)} | _RATES,
        Differences(),
    ),
    "paged": BoardKind(
        2,
        "DRAM pages whose misses cost",
        {"page_miss": (15.0, 40.0), "latency": (1.5, 3.0), "noise": (0.003, 0.01)} | _RATES,
        Differences(page_bytes=1024),
    ),
    "small-uop": BoardKind(
        4,
        "a smaller micro-op SRAM than described, and a fast core clock",
        {"uop_share": (0.03, 0.1), "clock_ratio": (0.4, 0.6), "noise": (0.003, 0.01)} | _RATES,
        Differences(page_miss=6.0),
    ),
    "faulty": BoardKind(
        0,
        "wrong results under a hidden rule",
        {"rule_share": (0.08, 0.2), "latency": (1.5, 3.0), "noise": (0.003, 0.01)} | _RATES,
        Differences(rule="wide_load", bandwidth=0.8),
    ),
    "noisy": BoardKind(
        1,
        "noise, failures and timeouts, and a slower memory",
        {"noise": (0.02, 0.04), "failures": (0.05, 0.1), "timeouts": (0.03, 0.08), "latency": (2.0, 5.0)} | _RATES,
        Differences(bandwidth=0.75, page_miss=8.0, rule="short_strided_store"),
    ),
    "slow-issue": BoardKind(
        5,
        "every instruction costs",
        {"instruction": (8.0, 30.0), "latency": (1.0, 2.0), "noise": (0.003, 0.01)} | _RATES,
        Differences(),
    ),
    "slow-alu": BoardKind(
        6,
        "an ALU of several cycles an operation",
        {"slow_alu": (3.0, 6.0), "latency": (1.0, 2.0), "noise": (0.003, 0.01)} | _RATES,
        Differences(),
    ),
    "banked": BoardKind(
        7,
        "DRAM banks, each with an open page, and conflicts within one",
        {"page_miss": (30.0, 60.0), "latency": (1.0, 2.0), "noise": (0.003, 0.01)} | _RATES,
        Differences(page_bytes=2048, banks=8),
    ),
    "liar": BoardKind(
        9,
        "a fifth of the programs are always told in 0.6 of their time",
        {"latency": (1.0, 2.0), "noise": (0.003, 0.01)} | _RATES,
        Differences(liars=0.2),
    ),
    "two-sizes": BoardKind(
        8,
        "wrong results where a large LOAD and a long GEMM come together",
        {"rule_share": (0.05, 0.12), "second_share": (0.01, 0.04), "noise": (0.003, 0.01)} | _RATES,
        Differences(rule="wide_load_and_long_gemm", latency=1.5),
    ),
}


def draw(kind: str, seed: int) -> Differences:
    """The figures of a kind for a seed.

    Raises:
        DeviceError: no such kind.
    """
    if kind not in KINDS:
        raise DeviceError(unknown("perturbed device", kind, KINDS))
    rng = np.random.default_rng([seed, KINDS[kind].number])
    figures = {name: float(rng.uniform(low, high)) for name, (low, high) in KINDS[kind].drawn.items()}
    return dataclasses.replace(KINDS[kind].others, **figures)  # type: ignore[arg-type]


def board_of(chip: Accelerator, d: Differences) -> Accelerator:
    """The description with the board's own memory latency, and rates of the HLS design."""
    board = chip.with_memory(d.latency / d.clock_ratio)
    if board.hls is None:
        return board
    starts = dict.fromkeys(("load_start", "compute_start", "store_start", "pad"), d.start)
    return dataclasses.replace(board, hls=board.hls.scaled({"wgt_beat": d.beat, "alu_op": d.alu} | starts))


def faults_of(chip: Accelerator, d: Differences) -> Faults:
    """What a board of such a description does to programs."""
    rule, wide = RULES.index(d.rule), round(chip.inp_depth * d.rule_share)
    limit = (0, 1 + round(4 * d.rule_share), round(16384 * d.rule_share), wide, wide)[rule]
    second = round(16384 * d.second_share)
    limits = Limits(round(chip.uop_depth * d.uop_share), rule, limit, second, d.page_bytes, d.banks)
    costs = Costs(1.0 / d.bandwidth - 1.0, d.page_miss / d.clock_ratio, d.slow_alu - 1.0, d.instruction)
    return Faults(board_of(chip, d), limits, costs)
