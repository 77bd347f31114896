"""Windows of images laid out as channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from oneshot_ml2.models.ops.base import Array, Expr, Op, Shape, Shapes
from oneshot_ml2.models.ops.numeric import windows

if TYPE_CHECKING:
    from oneshot_ml2.models.ir import Node, Value
    from oneshot_ml2.models.ops.host import Host


def _int_patches(args: Sequence[Array], node: Node, out: Shape) -> Array:
    taps = np.stack(windows(args[0], node.attrs, node.attrs["size"], out[2:], 0), axis=2)
    return taps.reshape(tuple(out))


def _int_patches_host(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
    import tvm
    from tvm import te

    attrs, (_, _, height, width) = node.attrs, shapes[0]
    (r, s), (sh, sw), (dh, dw), (top, _, left, _) = (attrs[name] for name in ("size", "strides", "dilation", "pads"))

    def patches(x: Any) -> Any:
        def element(n: Any, k: Any, i: Any, j: Any) -> Any:
            y = i * sh + k // s % r * dh - top
            z = j * sw + k % s * dw - left
            inside = tvm.tirx.all(y >= 0, y < height, z >= 0, z < width)
            return tvm.tirx.if_then_else(inside, x[n, k // (r * s), y, z], tvm.tirx.const(0, "int8"))

        return te.compute(value.shape, element, name="patches")

    return host.builder.call_te(patches, args[0])


OPS = (Op("patches", integer=_int_patches, integer_host=_int_patches_host, reason="moves data only"),)
