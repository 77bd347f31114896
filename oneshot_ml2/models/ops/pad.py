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


def padded(reader: Reader, x: str, inner: Sequence[int], lowest: bool = False) -> tuple[str, tuple[int, ...]]:
    """What an image or a line is without its padding, and that together with ``inner``, (top, bottom, left, right).

    ``lowest``: who reads it pads with less than any number, not with zeros.
    """
    node = reader.producer(x) if x in reader.values and x not in reader.inputs else None
    if node is None or node.op not in ("pad", "pad_value") or any(n for pair in node.attrs["width"][:2] for n in pair):
        return x, tuple(inner)
    data = node.inputs[0]
    below = node.attrs["value"] <= _LOWEST if node.op == "pad_value" else _never_negative(reader, data)
    if not (below if lowest else node.op == "pad"):
        return x, tuple(inner)
    lines = ((0, 0), *node.attrs["width"][2:])[-2:]
    return data, tuple(a + b for a, b in zip(inner, (*lines[0], *lines[1]), strict=True))


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
