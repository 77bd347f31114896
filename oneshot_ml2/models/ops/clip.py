"""Clipping, between constants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from oneshot_ml2.models.ops.base import Array, Attrs, Expr, Op, Shape, Shapes

if TYPE_CHECKING:
    from oneshot_ml2.models.ir import Node, Value
    from oneshot_ml2.models.ops.host import Host
    from oneshot_ml2.models.ops.reading import Reader


def _read(reader: Reader, call: Any) -> str:
    shape = reader.static(call)
    low, high = (float(getattr(arg.value, "value", arg.value)) for arg in call.args[1:])
    return reader.add("clip", [reader.operand(call.args[0])], shape, low=low, high=high)


def _clip_host(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
    low, high = (host.relax.const(np.float32(node.attrs[bound])) for bound in ("low", "high"))
    return host.op.minimum(host.op.maximum(args[0], low), high)


def _clip(args: Sequence[Array], attrs: Attrs, out: Shape) -> Array:
    return np.clip(args[0], np.float32(attrs["low"]), np.float32(attrs["high"]))


OPS = (
    Op(
        "clip",
        relax={"relax.clip": _read},
        onnx=("Clip",),
        compute=_clip,
        host=_clip_host,
        elementwise=True,
        bounds=lambda attrs: (attrs["low"], attrs["high"]),
        scales=True,
    ),
)
