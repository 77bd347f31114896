"""Images sampled at the places that a grid of coordinates names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models.ops.base import Array, Attrs, Expr, Op, Shapes
from oneshot_ml2.models.ops.importing import left_to_onnx

if TYPE_CHECKING:
    from oneshot_ml2.models.ir import Node, Value
    from oneshot_ml2.models.ops.host import Host
    from oneshot_ml2.models.ops.importing import OnnxNode
    from oneshot_ml2.models.ops.reading import Reader

# ONNX's names before opset 20, and Relax's.
_MODES = {"linear": "bilinear", "cubic": "bicubic"}


def _import(node: OnnxNode) -> Expr:
    mode = node.text("mode", "bilinear")
    mode = _MODES.get(mode, mode)
    if len(node.shape()) != 4:
        raise ModelError(f"has {len(node.shape()) - 2} dimensions; only two are supported")
    if mode == "bicubic":
        raise ModelError("with the mode cubic is not supported; use linear or nearest")
    corners = bool(node.attribute("align_corners", 0))
    # Relax has the coordinates in front of rows and columns.
    grid = node.emit(node.op.permute_dims(node.input(1), [0, 3, 1, 2]))
    return node.op.image.grid_sample(node.input(0), grid, mode, "NCHW", node.text("padding_mode", "zeros"), corners)


def _read(reader: Reader, call: Any) -> str:
    shape, operands, attrs = reader.static(call), reader.tensors(call), call.attrs
    if str(attrs.method) not in ("bilinear", "nearest") or str(attrs.layout) != "NCHW":
        raise reader.refused("is supported with the modes bilinear and nearest only, of images")
    return reader.add(
        "grid_sample", operands, shape, mode=str(attrs.method), padding=str(attrs.padding_mode),
        corners=bool(attrs.align_corners),
    )  # fmt: skip


def _place(grid: Any, size: int, attrs: Attrs, of: Any) -> Any:
    """Where in an axis of ``size`` elements a coordinate of -1 to 1 lies; ``of``: numpy, or the same of TVM's."""
    corners = attrs["corners"]
    place = (grid + 1) * (0.5 * (size - 1)) if corners else ((grid + 1) * float(size) - 1) * 0.5
    if attrs["padding"] == "reflection":
        low, high = (0.0, size - 1.0) if corners else (-0.5, size - 0.5)
        if high == low:
            return place * 0
        # There and back again is twice the way.
        span = high - low
        along = of.abs(place - low)
        along = along - of.floor(along * (0.5 / span)) * (2 * span)
        place = low + of.minimum(along, 2 * span - along)
    if attrs["padding"] != "zeros":
        place = of.minimum(of.maximum(place, 0.0), size - 1.0)
    return place


def _taps(place: Any, attrs: Attrs, of: Any) -> list[tuple[Any, Any]]:
    """The elements of an axis that a place reads, which may lie outside, and their weights."""
    if attrs["mode"] == "nearest":
        return [(of.rint(place), 1.0)]
    first = of.floor(place)
    return [(first, 1.0 - (place - first)), (first + 1, place - first)]


def _grid_sample(args: Sequence[Array], attrs: Attrs, out: Sequence[int]) -> Array:
    x, grid = args[0], args[1].astype(np.float32)
    height, width = x.shape[2:]
    rows, columns = (
        _taps(_place(grid[:, part], size, attrs, np), attrs, np) for part, size in ((1, height), (0, width))
    )
    images = np.arange(len(x))[:, None, None]
    total = np.zeros(tuple(out), dtype=np.float32)
    for row, down in rows:
        for column, across in columns:
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            at, beside = (np.clip(n, 0, size - 1).astype(np.int64) for n, size in ((row, height), (column, width)))
            found = x[images, :, at, beside].transpose(0, 3, 1, 2)
            total += found * np.asarray(down * across * inside, dtype=np.float32)[:, None]
    return total


class _Tir:
    """The functions of numpy that the code above takes, as TVM has them."""

    def __init__(self) -> None:
        from tvm import te, tirx

        def numbers(of: Any) -> Any:
            return lambda a, b: of(a, tirx.const(b, "float32") if isinstance(b, float) else b)

        self.abs, self.floor, self.rint = te.abs, te.floor, tirx.nearbyint
        self.minimum, self.maximum = numbers(tirx.min), numbers(tirx.max)


def _host(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
    from tvm import te, tirx

    attrs, of, (height, width) = node.attrs, _Tir(), shapes[0][2:]

    def sampled(x: Any, grid: Any) -> Any:
        def element(n: Any, c: Any, i: Any, j: Any) -> Any:
            rows, columns = (
                _taps(_place(grid(n, part, i, j), size, attrs, of), attrs, of)
                for part, size in ((1, height), (0, width))
            )
            total = tirx.const(0, "float32")
            for row, down in rows:
                for column, across in columns:
                    at, beside = (
                        tirx.max(tirx.min(tirx.Cast("int32", n_), size - 1), 0)
                        for n_, size in ((row, height), (column, width))
                    )
                    inside = tirx.all(row >= 0, row < height, column >= 0, column < width)
                    total = total + tirx.Select(inside, x(n, c, at, beside) * (down * across), 0.0)
            return total

        return te.compute(value.shape, element, name="sampled")

    return host.builder.call_te(sampled, args[0], args[1])


OPS = (
    Op(
        "grid_sample",
        relax={"relax.image.grid_sample": _read},
        onnx=("GridSample",),
        onnx_import={"GridSample": _import},
        torch_import=dict.fromkeys(
            ("grid_sampler.default", "grid_sampler_2d.default"),
            left_to_onnx("takes the axes of a grid in another order"),
        ),
        compute=_grid_sample,
        host=_host,
        reason="samples at places that the model computes",
    ),
)
