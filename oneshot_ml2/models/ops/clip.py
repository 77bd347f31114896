"""Clipping, between constants."""

from __future__ import annotations

import math
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


def _read_half(reader: Reader, call: Any) -> str:
    """Half of ONNX's Clip, which TVM makes a function of: the larger or smaller of a tensor and a constant."""
    name = call.args[0].name_hint.rstrip("0123456789_")
    operands = [reader.operand(field) for field in call.args[1].fields]
    constant = reader.constants.get(operands[-1])
    if name not in ("maximum", "minimum"):
        raise reader.not_supported()
    if len(operands) != 2 or constant is None or constant.size != 1:
        raise reader.refused("is not supported on these operands; only with a constant bound")
    bound = float(constant.reshape(()))
    low, high = (bound, math.inf) if name == "maximum" else (-math.inf, bound)
    x = operands[0]
    source = reader.producer(x) if any(node.output == x and node.op == "clip" for node in reader.nodes) else None
    if source is not None and reader.nodes[-1] is source:
        # The other half came just before: one clip, with the upper bound over the lower one as ONNX has it.
        reader.nodes.pop()
        x = source.inputs[0]
        low, high = min(max(low, source.attrs["low"]), high), min(source.attrs["high"], high)
    return reader.add("clip", [x], reader.values[x].shape, low=low, high=high)


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
    # Halves of a clip, as TVM writes ONNX's.
    Op("half_clip", relax={"relax.call_tir": _read_half}, proposed=False),
)
