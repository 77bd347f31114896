"""Two-dimensional convolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import WorkloadError
from oneshot_ml2.workload.base import Convolution, four_pads
from oneshot_ml2.workload.checks import LARGEST, integers
from oneshot_ml2.workload.epilogue import Epilogue

if TYPE_CHECKING:
    from oneshot_ml2.workload.epilogue import Tensors


@dataclass(frozen=True)
class Conv2d(Convolution):
    """int8 convolution, data NCHW, weight OIHW; cross-correlation as in every framework.

    ``stride`` and ``dilation`` are an int or a pair (height, width); ``padding`` is an int, a pair, or
    (top, bottom, left, right). All are normalised to tuples. A pad is smaller than the dilated kernel. ``groups``
    divides both channel counts; as many as channels: depthwise.

    Raises:
        WorkloadError: a value out of range, or an output without elements.
    """

    dilation: int | Sequence[int] = 1
    epilogue: Epilogue = Epilogue()
    groups: int = 1

    op = "conv2d"

    def __post_init__(self) -> None:
        self._normalised(("n", "c", "h", "w", "k", "r", "s", "groups"))
        object.__setattr__(self, "stride", integers("conv2d stride", self.stride, (2,), 1, LARGEST))
        object.__setattr__(self, "dilation", integers("conv2d dilation", self.dilation, (2,), 1, LARGEST))
        object.__setattr__(self, "padding", four_pads("conv2d padding", self.padding))
        if self.c % self.groups or self.k % self.groups:
            raise WorkloadError(f"conv2d groups is {self.groups}; allowed: a divisor of c={self.c} and of k={self.k}")
        reaches = ((self.r - 1) * self.dilations[0], (self.s - 1) * self.dilations[1])
        self._check_pads(reaches, self.pads)

    def to_dict(self) -> dict[str, Any]:
        """As of every operator; one group is left out, as lists and corpora from before there were groups have it."""
        data = super().to_dict()
        if self.groups == 1:
            del data["groups"]
        return data

    @property
    def strides(self) -> tuple[int, int]:
        """(height, width)."""
        return cast("tuple[int, int]", self.stride)

    @property
    def in_steps(self) -> tuple[int, int]:
        return self.strides

    @property
    def dilations(self) -> tuple[int, int]:
        return cast("tuple[int, int]", self.dilation)

    @property
    def out_h(self) -> int:
        return (self.h + self.pads[0] + self.pads[1] - (self.r - 1) * self.dilations[0] - 1) // self.strides[0] + 1

    @property
    def out_w(self) -> int:
        return (self.w + self.pads[2] + self.pads[3] - (self.s - 1) * self.dilations[1] - 1) // self.strides[1] + 1

    @property
    def tensor_specs(self) -> dict[str, tuple[tuple[int, ...], type]]:
        """data (N,C,H,W) int8, weight (K,C/groups,R,S) int8, then bias (K,) int32, residual (output) int8 if any."""
        return {
            "data": ((self.n, self.c, self.h, self.w), np.int8),
            "weight": ((self.k, self.c // self.groups, self.r, self.s), np.int8),
        } | self._epilogue_specs(self.k)

    @property
    def macs(self) -> int:
        """Multiplications of the textbook loop nest, those with zero padding included."""
        return self.n * self.k * self.out_h * self.out_w * (self.c // self.groups) * self.r * self.s

    @property
    def zeros_around(self) -> bool:
        return any(self.pads)

    @property
    def over_patches(self) -> Conv2d | None:
        """Of one group and more than one tap; its weight is this one's reshaped to (K, C*R*S, 1, 1)."""
        if self.groups != 1 or self.r * self.s == 1:
            return None
        return Conv2d(self.n, self.c * self.r * self.s, self.out_h, self.out_w, self.k, 1, 1, epilogue=self.epilogue)

    def loop_weight(self, tensors: Tensors) -> NDArray[np.int8]:
        weight = tensors["weight"]
        return weight.reshape(self.groups, self.k // self.groups, *weight.shape[1:])

    def reference(self, tensors: Tensors) -> NDArray[np.int8]:
        """The exact result, int8 (N, K, OH, OW).

        Raises:
            WorkloadError: a tensor is missing or has another shape or dtype.
        """
        self.check_inputs(tensors)
        top, bottom, left, right = self.pads
        # Sums of int8 products are exact in float64 up to 2^53, and BLAS is far faster than integer matmul.
        data = np.pad(tensors["data"].astype(np.float64), ((0, 0), (0, 0), (top, bottom), (left, right)))
        weight = tensors["weight"].astype(np.float64).reshape(self.groups, self.k // self.groups, -1, self.r, self.s)
        sums = np.zeros((self.n, self.groups, self.k // self.groups, self.out_h * self.out_w))
        for r in range(self.r):
            for s in range(self.s):
                y, x = r * self.dilations[0], s * self.dilations[1]
                window = data[
                    :,
                    :,
                    y : y + (self.out_h - 1) * self.strides[0] + 1 : self.strides[0],
                    x : x + (self.out_w - 1) * self.strides[1] + 1 : self.strides[1],
                ]
                sums += weight[..., r, s] @ window.reshape(self.n, self.groups, self.c // self.groups, -1)
        return self.epilogue.apply(sums.astype(np.int64).reshape(self.output_shape), tensors)
