"""Two-dimensional transposed convolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import WorkloadError
from oneshot_ml2.workload.base import Convolution, four_pads
from oneshot_ml2.workload.checks import LARGEST, integers
from oneshot_ml2.workload.epilogue import Epilogue

if TYPE_CHECKING:
    from oneshot_ml2.workload.epilogue import Tensors


@dataclass(frozen=True)
class Conv2dTranspose(Convolution):
    """int8 transposed convolution (the gradient of a convolution), data NCHW, weight IOHW, one group.

    Every input adds its multiple of the kernel to the output, ``stride`` outputs apart. ``stride`` is an int or a pair,
    ``padding`` an int, a pair or (top, bottom, left, right): what is cut off the output, less than the kernel;
    ``output_padding`` an int or a pair less than the stride: rows and columns more at the end.

    Raises:
        WorkloadError: a value out of range, or an output without elements.
    """

    output_padding: int | Sequence[int] = 0
    epilogue: Epilogue = Epilogue()

    op = "conv2d_transpose"
    groups = 1

    def __post_init__(self) -> None:
        self._normalised(("n", "c", "h", "w", "k", "r", "s"))
        object.__setattr__(self, "stride", integers(f"{self.op} stride", self.stride, (2,), 1, LARGEST))
        object.__setattr__(self, "padding", four_pads(f"{self.op} padding", self.padding))
        more = integers(f"{self.op} output_padding", self.output_padding, (2,), 0, LARGEST)
        object.__setattr__(self, "output_padding", more)
        if any(extra >= step for extra, step in zip(more, self.out_steps, strict=True)):
            raise WorkloadError(f"{self.op} output_padding is {more}; allowed: less than the stride {self.out_steps}")
        for axis, kernel, pads in (("height", self.r, self.pads[:2]), ("width", self.s, self.pads[2:])):
            if max(pads) >= kernel:
                raise WorkloadError(f"{self.op} padding is {self.pads}; allowed in {axis}: 0 to {kernel - 1}")
        if min(self.out_h, self.out_w) < 1:
            raise WorkloadError(f"{self.op} output is {self.out_h} x {self.out_w}; allowed: at least one pixel")

    @property
    def out_steps(self) -> tuple[int, int]:
        return cast("tuple[int, int]", self.stride)

    @property
    def leads(self) -> tuple[int, int]:
        """With the kernel turned around, as :meth:`turned` gives it, taps count upwards as those of a convolution."""
        return (self.r - 1 - self.pads[0], self.s - 1 - self.pads[2])

    @property
    def out_h(self) -> int:
        more = cast("tuple[int, int]", self.output_padding)[0]
        return (self.h - 1) * self.out_steps[0] + self.r - self.pads[0] - self.pads[1] + more

    @property
    def out_w(self) -> int:
        more = cast("tuple[int, int]", self.output_padding)[1]
        return (self.w - 1) * self.out_steps[1] + self.s - self.pads[2] - self.pads[3] + more

    @property
    def tensor_specs(self) -> dict[str, tuple[tuple[int, ...], type]]:
        """data (N,C,H,W) int8, weight (C,K,R,S) int8, then bias (K,) int32, residual (output) int8 if any."""
        return {
            "data": ((self.n, self.c, self.h, self.w), np.int8),
            "weight": ((self.c, self.k, self.r, self.s), np.int8),
        } | self._epilogue_specs(self.k)

    @property
    def macs(self) -> int:
        """Multiplications that the operator is: of each input with the whole kernel."""
        return self.n * self.k * self.h * self.w * self.c * self.r * self.s

    @staticmethod
    def turned(weight: NDArray[np.int8]) -> NDArray[np.int8]:
        """The weight as that of a convolution over the spread inputs: (K, C, R, S), the kernel turned around."""
        return np.ascontiguousarray(weight.transpose(1, 0, 2, 3)[:, :, ::-1, ::-1])

    def loop_weight(self, tensors: Tensors) -> NDArray[np.int8]:
        return self.turned(tensors["weight"])[None]

    def reference(self, tensors: Tensors) -> NDArray[np.int8]:
        """The exact result, int8 (N, K, OH, OW).

        Raises:
            WorkloadError: a tensor is missing or has another shape or dtype.
        """
        self.check_inputs(tensors)
        data = tensors["data"].astype(np.float64).reshape(self.n, self.c, -1)
        weight = tensors["weight"].astype(np.float64)
        (sh, sw), (top, bottom, left, right) = self.out_steps, self.pads
        height, width = self.out_h + top + bottom, self.out_w + left + right
        full = np.zeros((self.n, self.k, height, width))
        for r in range(self.r):
            for s in range(self.s):
                part = (weight[:, :, r, s].T @ data).reshape(self.n, self.k, self.h, self.w)
                full[:, :, r : r + (self.h - 1) * sh + 1 : sh, s : s + (self.w - 1) * sw + 1 : sw] += part
        sums = full[:, :, top : height - bottom, left : width - right]
        return self.epilogue.apply(sums.astype(np.int64), tensors)
