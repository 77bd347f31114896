"""A workload's loops in elements: what an accelerator's blocks are laid over."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Axis:
    """One axis of a window operator, counted in time and memory that grow with its sizes, not with their products.

    Output ``o`` meets tap ``k`` at input ``(o * stride + k * dilation - lead) / spread``, where that is a whole number
    from 0 to ``size - 1``; ``stride`` or ``spread`` is 1.
    """

    out: int
    kernel: int
    size: int
    stride: int
    spread: int
    dilation: int
    lead: int

    @property
    def met(self) -> NDArray[np.int64]:
        """How many outputs read a real input with each tap, int64 (kernel,)."""
        offset = np.arange(self.kernel, dtype=np.int64) * self.dilation - self.lead
        first = np.maximum(-(offset // self.stride), 0)
        first += -(offset + first) % self.spread if self.spread > 1 else 0
        last = np.minimum(((self.size - 1) * self.spread - offset) // self.stride, self.out - 1)
        return np.maximum((last - first) // self.spread + 1, 0)

    @property
    def used(self) -> int:
        """Inputs that some output reads."""
        # Where output o meets tap k, o * stride + k * dilation is this.
        place = np.arange(self.size, dtype=np.int64) * self.spread + self.lead
        # The least tap at which the place is within reach of the outputs, and leaves a multiple of the stride.
        least = np.maximum(-((self.stride * (self.out - 1) - place) // self.dilation), 0)
        common = math.gcd(self.dilation, self.stride)
        period = self.stride // common
        inverse = pow(self.dilation // common, -1, period)
        wanted = place // common % period * inverse % period
        tap = least + (wanted - least) % period
        most = np.minimum(place // self.dilation, self.kernel - 1)
        return int(np.count_nonzero((place % common == 0) & (tap <= most)))


@dataclass(frozen=True)
class LoopNest:
    """Output channels x rows x columns of images, reduced over input channels and the taps of a window.

    ``images``, ``groups``; ``inputs``, ``outputs``: channels of one group; ``height``, ``width``: of images and window;
    ``paired``: the groups are pairs of matrices, in tensors of their own and with one bias; ``pool``: the largest input
    of a window instead of a sum, channel by channel (one group a channel); ``flat``: an image has one pixel, and the
    images are the pixels of one row; ``zeros_around``: an output may read zeros outside of its image.
    """

    images: int
    groups: int
    inputs: int
    outputs: int
    height: Axis
    width: Axis
    paired: bool = False
    pool: bool = False
    flat: bool = False
    zeros_around: bool = False

    @property
    def pixels(self) -> int:
        """Input pixels of an image."""
        return self.height.size * self.width.size

    @property
    def out_pixels(self) -> int:
        """Output pixels of an image."""
        return self.height.out * self.width.out

    @property
    def taps(self) -> int:
        """Taps of the window."""
        return self.height.kernel * self.width.kernel

    @cached_property
    def _met(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """`Axis.met` of height and width."""
        return self.height.met, self.width.met

    @property
    def real_tap_pairs(self) -> int:
        """(output pixel, tap) pairs of one image that read a real input element."""
        rows, cols = self._met
        return int(rows.sum()) * int(cols.sum())

    @property
    def used_taps(self) -> int:
        """Taps that read a real input element for some output."""
        rows, cols = self._met
        return int(np.count_nonzero(rows)) * int(np.count_nonzero(cols))

    @property
    def used_pixels(self) -> int:
        """Input pixels that some output reads; the others need not be loaded."""
        return self.height.used * self.width.used


# The axes of what has no images: one pixel, one tap.
POINT = Axis(1, 1, 1, 1, 1, 1, 0)


def matrix_loops(rows: int, inputs: int, outputs: int, pairs: int | None = None) -> LoopNest:
    """The loops of a matrix product, or of ``pairs`` of them."""
    return LoopNest(rows, pairs or 1, inputs, outputs, POINT, POINT, paired=pairs is not None, flat=True)
