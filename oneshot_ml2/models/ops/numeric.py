"""What operators share in numpy.

Float operators follow PyTorch and ONNX. Integer ones round half up: half a step is added before the arithmetic shift,
which floors, as VTA's does; with the attribute ``half_even``, exact ties go to the even neighbour.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.models.ops.base import Array, Attrs, Function, Integer

if TYPE_CHECKING:
    from oneshot_ml2.models.ir import Node

INT8 = (-128, 127)
# A 32-bit sum and all that is added to it stay below this.
SUM_LIMIT = 2**31 - 1
# Why sums are not integers on the VTA or the host.
TOO_FINE = "its scale is finer than that of its sums"
TOO_LARGE = "its sums may exceed 32 bits"


def windows(x: Array, attrs: Attrs, size: Sequence[int], out: Sequence[int], fill: float) -> list[Array]:
    """The (N, C, OH, OW) view of a padded image for every tap of a window of ``size`` (height, width), row by row."""
    top, bottom, left, right = attrs["pads"]
    (sh, sw), (dh, dw) = attrs["strides"], attrs.get("dilation", (1, 1))
    # With ceil_mode the last window may reach past the padding.
    bottom = max(bottom, (out[0] - 1) * sh + (size[0] - 1) * dh + 1 - x.shape[2] - top)
    right = max(right, (out[1] - 1) * sw + (size[1] - 1) * dw + 1 - x.shape[3] - left)
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)
    return [
        padded[:, :, r * dh : r * dh + (out[0] - 1) * sh + 1 : sh, s * dw : s * dw + (out[1] - 1) * sw + 1 : sw]
        for r in range(size[0])
        for s in range(size[1])
    ]


def along(scale: Array, axis: int, rank: int) -> Array:
    """A scale per channel (C,) or for the whole tensor (), so that it broadcasts along ``axis``."""
    return scale if scale.ndim == 0 else scale.reshape([-1 if i == axis % rank else 1 for i in range(rank)])


def rounded(total: NDArray[np.int64], shift: int, attrs: Attrs) -> NDArray[np.int8]:
    """Sums that hold half a step already, shifted right and clipped."""
    if attrs["half_even"] and shift:
        # A tie that was rounded up to an odd number lacks all lower bits.
        total = total - ((total >> shift) & 1)
    return np.clip(total >> shift, *attrs["clip"]).astype(np.int8)


def shifted(x: NDArray[np.int64], left: int, attrs: Attrs) -> NDArray[np.int8]:
    """``x * 2**left`` rounded and clipped: how a tensor changes its exponent by ``-left``."""
    right = max(-left, 0)
    return rounded((x << max(left, 0)) + (1 << right >> 1), right, attrs)


def layer_sums(compute: Function, column: tuple[int, ...]) -> Integer:
    """The integer form of a layer: sums of products by ``compute``, the bias along ``column``, residual and rounding.

    Its weight is the node's, or the second operand if the node has none.
    """

    def integer(args: Sequence[Array], node: Node, out: Sequence[int]) -> Array:
        # Sums of int8 products are exact in float64.
        data = args[0].astype(np.float64)
        weight = node.arrays["weight"] if "weight" in node.arrays else args[1]
        sums = compute([data, weight.astype(np.float64)], node.attrs, out)
        total = sums.astype(np.int64) + node.arrays["bias"].reshape(column)
        if node.attrs["residual_shift"] is not None:
            total += args[1].astype(np.int64) << node.attrs["residual_shift"]
        return rounded(total, node.attrs["shift"], node.attrs)

    return integer
