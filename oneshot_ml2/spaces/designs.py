"""What the network sees of an accelerator's design, the same in every space: its rates beside a beat, a cycle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from oneshot_ml2.spaces.base import FeatureSet
from oneshot_ml2.vta.hls_keys import RATES, TICKS

if TYPE_CHECKING:
    from oneshot_ml2.vta.accelerator import Accelerator

# Whether the design is HLS; then logarithms, all 0 of the RTL.
FLAG = "HLS design"
DESIGN_FEATURES = (FLAG, "accumulator distance", *(f"{name.replace('_', ' ')} cycles" for name in RATES))
# Features of an accelerator that play no part on the HLS design, and are 0 there.
UNUSED = ("burst beats", "memory latency")


def feature_sets(
    rtl: int, hls: int, task: tuple[str, ...], schedule: tuple[str, ...], hls_schedule: tuple[str, ...]
) -> dict[int, FeatureSet]:
    """By version the features of weights that know the RTL alone, and of those that know the HLS design, which see
    `DESIGN_FEATURES` of a task and ``hls_schedule`` of a schedule after them.
    """
    sets = (FeatureSet(rtl, task, schedule), FeatureSet(hls, task + DESIGN_FEATURES, schedule + hls_schedule))
    return {known.version: known for known in sets}


def with_design(accelerator: Accelerator, names: Sequence[str], row: Sequence[float]) -> list[float]:
    """Features ``names`` of a task, and `DESIGN_FEATURES` of its accelerator after them."""
    hls = accelerator.hls
    if hls is None:
        return [*row, *(0.0 for _ in DESIGN_FEATURES)]
    rates = [getattr(hls, name) / TICKS for name in RATES]
    used = [0.0 if name in UNUSED else value for name, value in zip(names, row, strict=True)]
    return [*used, 1.0, *(math.log2(1 + size) for size in (hls.acc_distance, *rates))]
