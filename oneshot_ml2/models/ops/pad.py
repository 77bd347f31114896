"""Padding: zeros go into the layer that reads them, what repeats elements is a gather."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from oneshot_ml2.models.ops.base import Array, Attrs, Expr, Op, Shapes
from oneshot_ml2.models.ops.moves import picked

if TYPE_CHECKING:
    from oneshot_ml2.models.ir import Node, Value
    from oneshot_ml2.models.ops.host import Host
    from oneshot_ml2.models.ops.importing import OnnxNode
    from oneshot_ml2.models.ops.reading import Reader

# Relax's names and numpy's.
_MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
# ONNX's and Relax's.
_ONNX_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}
# Below it a value stands for minus infinity.
_LOWEST = -1e30


def _read(reader: Reader, call: Any) -> str:
    shape, x, attrs = reader.static(call), reader.operand(call.args[0]), call.attrs
    flat = [int(n) for n in attrs.pad_width]
    width = tuple(zip(flat[::2], flat[1::2], strict=True))
    value, before = float(attrs.pad_value), reader.shape(x)
    if any(n < 0 for n in flat):
        x = reader.slice(x, [(max(-a, 0), n + min(b, 0), 1) for n, (a, b) in zip(before, width, strict=True)])
        width = tuple((max(a, 0), max(b, 0)) for a, b in width)
    if not any(n for pair in width for n in pair):
        return x
    if attrs.pad_mode != "constant":
        for axis, pair in enumerate(width):
            if any(pair):
                places = np.pad(np.arange(reader.shape(x)[axis]), pair, mode=_MODES[str(attrs.pad_mode)])  # type: ignore[call-overload]
                x = picked(reader, x, places, axis)
        return x
    if value == 0:
        return reader.add("pad", [x], shape, width=width)
    return reader.add("pad_value", [x], shape, width=width, value=value)


def _import(node: OnnxNode) -> Expr:
    rank = len(node.shape())
    pads = node.numbers(1, "pads") or []
    axes = node.numbers(3, "") if node.opset >= 18 else None
    width = [0] * 2 * rank
    for index, axis in enumerate(range(rank) if axes is None else axes):
        width[2 * (axis % rank)], width[2 * (axis % rank) + 1] = pads[index], pads[index + len(pads) // 2]
    value = node.array(2)
    fill = node.attribute("value", 0.0) if value is None else float(value.reshape(()))
    mode = _ONNX_MODES[node.text("mode", "constant")]
    return node.op.nn.pad(node.input(0), width, mode, max(fill, float(np.finfo(np.float32).min)))


def padded(
    reader: Reader, x: str, inner: Sequence[int], reach: Sequence[int], lowest: bool = False
) -> tuple[str, tuple[int, ...]]:
    """The image or line of which a window reads ``x``, and its padding (top, bottom, left, right) with ``inner``.

    ``reach``: of the window in both axes, one less than its size; padding is no more. ``lowest``: who reads pads with
    less than any number, not with zeros.
    """
    most = (reach[0], reach[0], reach[1], reach[1])
    node = reader.producer(x) if x in reader.values and x not in reader.inputs else None
    around = node is not None and node.op in ("pad", "pad_value") and node.attrs["width"][:2] == ((0, 0), (0, 0))
    if node is not None and around:
        data = node.inputs[0]
        below = node.attrs["value"] <= _LOWEST if node.op == "pad_value" else _never_negative(reader, data)
        lines = ((0, 0), *node.attrs["width"][2:])[-2:]
        both = tuple(a + b for a, b in zip(inner, (*lines[0], *lines[1]), strict=True))
        if (below if lowest else node.op == "pad") and all(n <= limit for n, limit in zip(both, most, strict=True)):
            return data, both
    kept = tuple(min(n, limit) for n, limit in zip(inner, most, strict=True))
    if kept == tuple(inner) or lowest:
        return x, tuple(inner)
    top, bottom, left, right = (n - m for n, m in zip(inner, kept, strict=True))
    shape = reader.shape(x)
    width = ((0, 0), (0, 0)) + ((top, bottom), (left, right))[4 - len(shape) :]
    made = tuple(n + sum(pair) for n, pair in zip(shape, width, strict=True))
    return reader.add("pad", [x], made, width=width), kept


def _never_negative(reader: Reader, name: str) -> bool:
    """Whether zeros are no larger than any element of a value."""
    if name in reader.constants or name in reader.inputs:
        return False
    node = reader.producer(name)
    return node.op in ("relu", "sigmoid") or (node.op == "clip" and node.attrs["low"] >= 0)


def _pad(args: Sequence[Array], attrs: Attrs, out: Sequence[int]) -> Array:
    return np.pad(args[0], attrs["width"], constant_values=attrs.get("value", 0))


def _pad_host(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
    width = [n for pair in node.attrs["width"] for n in pair]
    return host.op.nn.pad(args[0], width, pad_value=node.attrs.get("value", 0.0))


OPS = (
    Op(
        "pad",
        relax={"relax.nn.pad": _read},
        onnx=("Pad",),
        onnx_import={"Pad": _import},
        compute=_pad,
        host=_pad_host,
        moves_data=True,
        one_source=True,
        keeps_scale=True,
        reason="moves data only",
    ),
    Op("pad_value", compute=_pad, host=_pad_host),
)
