"""Random accelerators of both designs: any that the instruction set allows, around those that are built and far off."""

from __future__ import annotations

from typing import Any

import numpy as np

from oneshot_ml2.common.errors import AcceleratorError
from oneshot_ml2.vta.accelerator import DESIGNS, Accelerator
from oneshot_ml2.vta.hls_keys import TICKS, HlsTiming

# log2 of each size, and how often it is drawn.
_BLOCKS = {2: 0.08, 3: 0.22, 4: 0.35, 5: 0.25, 6: 0.1}
_BATCHES = {0: 0.5, 1: 0.2, 2: 0.18, 3: 0.12}
_BUSES = {6: 0.45, 7: 0.35, 8: 0.2}
# log2 of the elements of each SRAM, lowest and highest.
_DEPTHS = {"uop": (9, 13), "inp": (6, 13), "wgt": (4, 12), "acc": (5, 11)}
_LATENCY = (4.0, 120.0)
# Cycles, lowest and highest: near the rates of the boards that were measured (docs/hls.md), and far from them.
NEAR = {
    "read_row": (30.0, 90.0),
    "store_row": (25.0, 75.0),
    "wgt_beat": (1.4, 3.0),
    "alu_op": (1.4, 3.0),
    "load_start": (1.0, 20.0),
    "compute_start": (8.0, 45.0),
    "store_start": (0.25, 30.0),
    "pad": (0.7, 10.0),
}
_FAR = {
    "read_row": (8.0, 200.0),
    "store_row": (8.0, 200.0),
    "wgt_beat": (0.5, 8.0),
    "alu_op": (0.5, 8.0),
    "load_start": (0.25, 100.0),
    "compute_start": (1.0, 200.0),
    "store_start": (0.25, 100.0),
    "pad": (0.25, 30.0),
}
_SHARE_NEAR = 0.9
# Accelerators of the HLS design with as many inputs as accumulators, which its own build asks for.
_SHARE_EQUAL = 0.5


def _one_of(rng: np.random.Generator, shares: dict[int, float]) -> int:
    return int(rng.choice(list(shares), p=list(shares.values())))


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    """Log-uniform."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def random_timing(rng: np.random.Generator) -> HlsTiming:
    """Rates of the HLS design, log-uniform: nine of ten times like the boards'."""
    ranges = NEAR if rng.random() < _SHARE_NEAR else _FAR
    rates = {name: round(TICKS * _between(rng, *ends)) for name, ends in ranges.items()}
    return HlsTiming(**rates, acc_distance=int(rng.choice((1, 2, 2, 2, 3, 4))))


def random_accelerator(rng: np.random.Generator, design: str = DESIGNS[0]) -> Accelerator:
    """An accelerator of a design; batch rows of its elements are whole bus words, or elements fit in one."""
    while True:
        block, batch, bus = _one_of(rng, _BLOCKS), _one_of(rng, _BATCHES), _one_of(rng, _BUSES)
        if block + 3 < bus < batch + block + 3:
            continue
        memory = {
            "burst_len_bits": int(rng.integers(4, 9)),
            "memory_latency": round(_between(rng, *_LATENCY)),
        }
        # What plays no part on the HLS design is at its default there.
        timing: dict[str, Any] = {"hls": random_timing(rng)} if design == "hls" else memory
        smallest = (10, max(4, batch + block + 1), 2 * block + 1, batch + block + 3)
        return with_random_srams(rng, Accelerator(batch, block, *smallest, bus_bits=1 << bus, **timing))


def with_random_srams(rng: np.random.Generator, accelerator: Accelerator) -> Accelerator:
    """An accelerator with other SRAMs, of any sizes that the instruction set allows together."""
    a = accelerator
    elements = {
        "uop": 2,
        "inp": a.log_batch + a.log_block,
        "wgt": 2 * a.log_block,
        "acc": a.log_batch + a.log_block + 2,
    }
    while True:
        drawn = {name: int(rng.integers(low, high + 1)) for name, (low, high) in _DEPTHS.items()}
        if a.hls is not None and rng.random() < _SHARE_EQUAL:
            drawn["inp"] = drawn["acc"]
        try:
            return a.with_srams(**{name: depth + elements[name] for name, depth in drawn.items()})
        except AcceleratorError:
            continue
