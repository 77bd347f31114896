"""Images of another size: nearest elements are gathered, others are weighted sums of few along one axis at a time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models.ops.base import Array, Attrs, Expr, Op, Shapes
from oneshot_ml2.models.ops.importing import OWN, left_to_onnx
from oneshot_ml2.models.ops.moves import picked

if TYPE_CHECKING:
    from oneshot_ml2.models.ir import Node, Value
    from oneshot_ml2.models.ops.host import Host
    from oneshot_ml2.models.ops.importing import OnnxNode
    from oneshot_ml2.models.ops.reading import Reader


@dataclasses.dataclass(frozen=True)
class Line:
    """How an axis is resized; fields are ONNX's attributes of Resize.

    ``scale``: of the axis, as given (the size of the result is rounded down); ``roi``: for tf_crop_and_resize.
    """

    mode: str
    coordinates: str
    before: int
    after: int
    scale: float
    nearest: str = "round_prefer_floor"
    cubic: float = -0.75
    antialias: bool = False
    exclude: bool = False

    def places(self) -> Array:
        """Where in the source each element of the result lies, (after,)."""
        x, before, after = np.arange(self.after, dtype=np.float64), self.before, self.after
        if self.coordinates == "asymmetric":
            return x / self.scale
        if self.coordinates == "align_corners":
            return x * (before - 1) / (after - 1) if after > 1 else np.zeros(after)
        if self.coordinates == "pytorch_half_pixel" and after == 1:
            return np.zeros(after)
        if self.coordinates == "half_pixel_symmetric":
            # What rounding the size down cuts off is cut off at both ends.
            centre = before / 2 * (1 - after / (self.scale * before))
            return centre + (x + 0.5) / self.scale - 0.5
        if self.coordinates in ("half_pixel", "pytorch_half_pixel"):
            return (x + 0.5) / self.scale - 0.5
        raise ModelError(f"with the coordinates {self.coordinates} is not supported; use half_pixel or align_corners")

    def picks(self) -> Array:
        """The nearest source of each element, (after,) int64."""
        # A place that should be exact is; division may have left it just beside.
        x = np.round(self.places(), 9)
        half = {"round_prefer_floor": -0.5, "round_prefer_ceil": 0.5}.get(self.nearest, 0.0)
        found = np.ceil(x + half) if self.nearest in ("ceil", "round_prefer_floor") else np.floor(x + half)
        return np.clip(found, 0, self.before - 1).astype(np.int64)

    def taps(self) -> tuple[Array, Array]:
        """Sources of each element and their weights, (taps, after) int64 and float32."""
        places = self.places()
        # Smoothed over as many elements as one of the result stands for.
        stretch = max(1.0, 1 / self.scale) if self.antialias else 1.0
        reach = (1 if self.mode == "linear" else 2) * stretch
        first = np.floor(places).astype(np.int64) - math.ceil(reach) + 1
        sources = first[None] + np.arange(2 * math.ceil(reach))[:, None]
        distance = np.abs(places[None] - sources) / stretch
        weights = np.maximum(1 - distance, 0) if self.mode == "linear" else _cubic(distance, self.cubic)
        if self.exclude:
            weights = np.where((sources >= 0) & (sources < self.before), weights, 0)
        weights = weights / weights.sum(0)
        return np.clip(sources, 0, self.before - 1), weights.astype(np.float32)


def _cubic(x: Array, a: float) -> Array:
    """Keys' kernel of cubic convolution (IEEE TASSP 29, 1981)."""
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def _resized(reader: Reader, x: str, axis: int, line: Line) -> str:
    """A tensor with another size of an axis."""
    shape = reader.shape(x)
    made = tuple(line.after if i == axis else n for i, n in enumerate(shape))
    if line.mode == "nearest":
        return picked(reader, x, line.picks(), axis)
    sources, weights = line.taps()
    return reader.add("resample", [x], made, axis=axis, sources=sources, weights=weights)


def _read_resize2d(reader: Reader, call: Any) -> str:
    """Relax's, as PyTorch's interpolations become it."""
    shape, x, attrs = reader.static(call), reader.operand(call.args[0]), call.attrs
    if attrs.layout != "NCHW":
        raise reader.refused(f"in layout {attrs.layout} is not supported; only NCHW is")
    mode = {"nearest_neighbor": "nearest"}.get(str(attrs.method), str(attrs.method))
    # TVM gives PyTorch's nearest other coordinates than it has.
    coordinates = "asymmetric" if mode == "nearest" else str(attrs.coordinate_transformation_mode)
    for axis in (2, 3):
        before, after = reader.shape(x)[axis], shape[axis]
        line = Line(
            mode, coordinates, before, after, after / before, "floor", float(attrs.cubic_alpha)
        )  # fmt: skip
        if before != after:
            x = _resized(reader, x, axis, line)
    return x


def _read_own(reader: Reader, call: Any) -> str:
    """Ours: one axis, its sources and weights as constants."""
    x, sources, weights, axis = call.args[1].fields
    shape = reader.static(call)
    constants = (reader.constants[reader.operand(part)] for part in (sources, weights))
    named = dict(zip(("sources", "weights"), constants, strict=True))
    return reader.add("resample", [reader.operand(x)], shape, axis=int(axis), **named)


def _import(node: OnnxNode) -> Expr:
    shape = node.shape()
    rank = len(shape)
    given = node.attribute("axes", None)
    axes = [int(axis) % rank for axis in (range(rank) if given is None else given)]
    mode = node.text("mode", "nearest")
    # Before opset 11 there were scales only, and no choice of coordinates.
    old = node.opset < 11
    scales = node.array(1 if old else 2)
    if node.attribute("scales", None) is not None:
        scales = np.array(node.attribute("scales", None))
    sizes = None if old else node.numbers(3, "")
    coordinates = "asymmetric" if old else node.text("coordinate_transformation_mode", "half_pixel")
    factors, afters = _sizes(node, [shape[axis] for axis in axes], scales, sizes)
    result = node.input(0)
    for axis, factor, after in zip(axes, factors, afters, strict=True):
        line = Line(
            mode.replace("bilinear", "linear"), coordinates, shape[axis], after, factor,
            "floor" if old else node.text("nearest_mode", "round_prefer_floor"),
            float(node.attribute("cubic_coeff_a", -0.75)), bool(node.attribute("antialias", 0)),
            bool(node.attribute("exclude_outside", 0)),
        )  # fmt: skip
        if after == shape[axis] and factor == 1:
            continue
        if mode == "nearest":
            result = node.emit(node.op.take(result, node.constant(line.picks(), "int64"), axis))
            continue
        sources, weights = line.taps()
        made = tuple(after if i == axis else n for i, n in enumerate(node.shape(result)))
        operands = [result, node.constant(sources, "int64"), node.constant(weights), node.relax.prim_value(axis)]
        result = node.own("resample", operands, made)
    return result


def _sizes(
    node: OnnxNode, before: list[int], scales: Array | None, sizes: list[int] | None
) -> tuple[list[float], list[int]]:
    """Scale and size of each axis that is resized."""
    if scales is not None and scales.size:
        factors = [float(factor) for factor in scales.reshape(-1)]
        return factors, [math.floor(n * factor + 1e-6) for n, factor in zip(before, factors, strict=True)]
    if not sizes:
        raise ModelError("has neither scales nor sizes")
    policy = node.text("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return [after / n for n, after in zip(before, sizes, strict=True)], sizes
    ratios = [after / n for n, after in zip(before, sizes, strict=True)]
    factor = min(ratios) if policy == "not_larger" else max(ratios)
    return [factor] * len(before), [math.floor(n * factor + 0.5) for n in before]


def _resample(args: Sequence[Array], attrs: Attrs, out: Sequence[int]) -> Array:
    x, axis = args[0], attrs["axis"]
    column = tuple(-1 if i == axis else 1 for i in range(x.ndim))
    total = np.zeros(tuple(out), dtype=np.float32)
    for sources, weights in zip(attrs["sources"], attrs["weights"], strict=True):
        total += x.take(sources, axis) * weights.reshape(column)
    return total


def _resample_host(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
    from tvm import te

    axis, (taps, _) = node.attrs["axis"], node.attrs["sources"].shape

    def resampled(x: Any, sources: Any, weights: Any) -> Any:
        def element(*at: Any) -> Any:
            def part(tap: int) -> Any:
                return x(*at[:axis], sources[tap, at[axis]], *at[axis + 1 :]) * weights[tap, at[axis]]

            return sum((part(tap) for tap in range(1, taps)), part(0))

        return te.compute(value.shape, element, name="resampled")

    weights = host.relax.const(np.asarray(node.attrs["weights"], dtype=np.float32))
    return host.builder.call_te(resampled, args[0], host.integer(node.attrs["sources"]), weights)


OPS = (
    Op(
        "resample",
        relax={"relax.image.resize2d": _read_resize2d, OWN + "resample": _read_own},
        onnx=("Resize", "Upsample"),
        onnx_import={"Resize": _import, "Upsample": _import},
        torch_import=dict.fromkeys(
            (f"_upsample_{mode}2d_aa.default" for mode in ("bilinear", "bicubic")),
            left_to_onnx("leaves out what antialias smooths"),
        ),
        compute=_resample,
        host=_resample_host,
    ),
)
