"""Convolutions of few channels as products with patches, so that their reduction fills blocks of channels.

A convolution of 3 channels pads each of its taps to a whole block. Where the host makes its input anyway, the host lays
every window out as the channels of one pixel, and the VTA computes a 1x1 convolution of ``c * r * s`` channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from oneshot_ml2.vta.bound import engine_bound
from oneshot_ml2.workload.base import Workload

if TYPE_CHECKING:
    from oneshot_ml2.vta.accelerator import Accelerator
    from oneshot_ml2.workload.lists import Layer


def unfolded(workload: Workload, accelerator: Accelerator) -> Workload | None:
    """The operator over patches that computes the same as one of fewer channels than a block.

    See `Workload.over_patches`. None where there is none, or where the engine bound gets no smaller.
    """
    other = workload.over_patches
    if other is None or workload.loops.inputs >= accelerator.block:
        return None
    faster = engine_bound(other, accelerator).bound < engine_bound(workload, accelerator).bound
    return other if faster else None


def over_patches(layers: Sequence[Layer], chip: Accelerator) -> list[Layer]:
    """A named model's layers as they are compiled: convolutions of few channels over patches, where that is faster."""
    return [replace(layer, workload=unfolded(layer.workload, chip) or layer.workload) for layer in layers]
