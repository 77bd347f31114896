"""Sums, products and extremes along axes, running sums, and where the largest elements are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models.ops.base import Array, Attrs, Expr, HostCode, Op, Read, Shapes, TorchImport

if TYPE_CHECKING:
    from oneshot_ml2.models.ir import Node, Value
    from oneshot_ml2.models.ops.host import Host
    from oneshot_ml2.models.ops.importing import OnnxNode
    from oneshot_ml2.models.ops.reading import Reader


def reduced_axes(axis: Any, rank: int) -> tuple[int, ...]:
    """Relax's ``axis`` of a reduction, in order; none given: all of ``rank``."""
    if axis is None:
        return tuple(range(rank))
    return tuple(sorted(int(number) % rank for number in axis)) or tuple(range(rank))


def _read(name: str) -> Read:
    def read(reader: Reader, call: Any) -> str:
        shape, (x,), attrs = reader.static(call), reader.tensors(call), call.attrs
        before = reader.shape(x)
        axes = reduced_axes(attrs.axis, len(before))
        if name == "reduce_max" and len(before) > 2 and axes == tuple(range(2, len(before))):
            # The largest element of an image is that of a window as large.
            image = before if len(before) == 4 else (*before[:2], 1, math.prod(before[2:]))
            pooled = reader.add(
                "max_pool2d", [reader.reshape(x, image)], (*before[:2], 1, 1),
                size=image[2:], strides=(1, 1), pads=(0, 0, 0, 0), dilation=(1, 1),
            )  # fmt: skip
            return reader.reshape(pooled, shape)
        return reader.add(name, [x], shape, axes=axes, keepdims=bool(attrs.keepdims))

    return read


def reduction(name: str, relax_name: str, of_array: Callable[..., Array], read: Read, onnx: tuple[str, ...] = ()) -> Op:
    """An operator that has numpy's and Relax's arguments, in ``axes`` and ``keepdims``."""

    def compute(args: Sequence[Array], attrs: Attrs, out: Sequence[int]) -> Array:
        return of_array(args[0], axis=tuple(attrs["axes"]), keepdims=attrs["keepdims"])

    def host(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
        return getattr(host.op, relax_name)(args[0], list(node.attrs["axes"]), node.attrs["keepdims"])

    return Op(name, relax={f"relax.{relax_name}": read}, onnx=onnx, compute=compute, host=host)


def _read_place(name: str) -> Read:
    def read(reader: Reader, call: Any) -> str:
        shape, (x,), attrs = reader.static(call), reader.tensors(call), call.attrs
        before = reader.shape(x)
        if attrs.axis is None:
            x, axis = reader.reshape(x, (math.prod(before),)), 0
        else:
            axis = int(attrs.axis) % len(before)
        kept = tuple(1 if i == axis else n for i, n in enumerate(reader.shape(x)))
        return reader.reshape(reader.add(name, [x], kept, axis=axis), shape)

    return read


def _place(of_array: Callable[..., Array]) -> Callable[..., Array]:
    def compute(args: Sequence[Array], attrs: Attrs, out: Sequence[int]) -> Array:
        return np.asarray(of_array(args[0], axis=attrs["axis"], keepdims=True), dtype=np.float32)

    return compute


def _place_host(relax_name: str) -> HostCode:
    def code(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
        place = host.emit(getattr(host.op, relax_name)(args[0], node.attrs["axis"], True))
        return host.op.astype(place, "float32")

    return code


def _read_cumsum(reader: Reader, call: Any) -> str:
    shape, (x,), attrs = reader.static(call), reader.tensors(call), call.attrs
    if attrs.axis is None:
        x = reader.reshape(x, shape)
    axis = 0 if attrs.axis is None else int(attrs.axis) % len(shape)
    return reader.add("cumsum", [x], shape, axis=axis, exclusive=bool(attrs.exclusive))


def _cumsum(args: Sequence[Array], attrs: Attrs, out: Sequence[int]) -> Array:
    sums = np.cumsum(args[0], axis=attrs["axis"], dtype=args[0].dtype)
    return sums - args[0] if attrs["exclusive"] else sums


def _cumsum_host(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
    sums = host.emit(host.op.cumsum(args[0], node.attrs["axis"]))
    return host.op.subtract(sums, args[0]) if node.attrs["exclusive"] else sums


def _read_topk(reader: Reader, call: Any) -> tuple[str, ...]:
    (x,), attrs = reader.tensors(call), call.attrs
    before = reader.shape(x)
    axis, k = int(attrs.axis) % len(before), int(attrs.k)
    shape = tuple(k if i == axis else n for i, n in enumerate(before))
    parts = {"both": ("values", "indices"), "values": ("values",), "indices": ("indices",)}[str(attrs.ret_type)]
    made = []
    for part in parts:
        reader.kind = "int64" if part == "indices" else "float32"
        made.append(reader.add(f"topk_{part}", [x], shape, axis=axis, k=k, largest=bool(attrs.largest)))
    return tuple(made)


def _topk(args: Sequence[Array], attrs: Attrs, out: Sequence[int]) -> Array:
    order = np.argsort(-args[0] if attrs["largest"] else args[0], axis=attrs["axis"], kind="stable")
    return order.take(np.arange(attrs["k"]), attrs["axis"])


def _topk_host(part: str) -> HostCode:
    def code(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
        attrs = node.attrs
        made = host.emit(host.op.topk(args[0], attrs["k"], attrs["axis"], part, attrs["largest"], "int32"))
        return host.op.astype(made, "float32") if part == "indices" else made

    return code


def _import_cumsum(node: OnnxNode) -> Expr:
    axis = node.number(1) % len(node.shape())
    backwards = node.constant(np.arange(node.shape()[axis])[::-1].copy(), "int64")
    x, reverse = node.input(0), bool(node.attribute("reverse", 0))
    if reverse:
        x = node.emit(node.op.take(x, backwards, axis))
    sums = node.emit(node.op.cumsum(x, axis, exclusive=bool(node.attribute("exclusive", 0))))
    return node.op.take(sums, backwards, axis) if reverse else sums


def _first_place(node: OnnxNode, relax_name: str, axis: int, keepdims: bool) -> Expr:
    if node.attribute("select_last_index", 0):
        raise ModelError("with select_last_index is not supported; only the first of equal elements is found")
    return getattr(node.op, relax_name)(node.input(0), axis, keepdims)


def _import_argmax(node: OnnxNode) -> Expr:
    return _first_place(node, "argmax", int(node.attribute("axis", 0)), bool(node.attribute("keepdims", 1)))


def _import_argmin(node: OnnxNode) -> Expr:
    return _first_place(node, "argmin", int(node.attribute("axis", 0)), bool(node.attribute("keepdims", 1)))


def _one_hot(node: OnnxNode, places: Expr, depth: int, axis: int) -> Expr:
    """1 where an axis of ``depth`` places, put in front of ``axis``, is at its place; else 0."""
    rank = len(node.shape(places)) + 1
    column = [-1 if i == axis % rank else 1 for i in range(rank)]
    real = node.emit(node.op.astype(node.emit(node.op.expand_dims(places, axis)), "float32"))
    line = node.constant(np.arange(depth).reshape(column))
    return node.emit(node.op.astype(node.emit(node.op.equal(real, line)), "float32"))


def _import_one_hot(node: OnnxNode) -> Expr:
    values = node.array(2)
    if values is None or values.size != 2:
        raise ModelError("has no two values")
    hot = _one_hot(node, node.input(0), node.number(1), int(node.attribute("axis", -1)))
    scaled = node.emit(node.op.multiply(hot, node.constant(values[1] - values[0])))
    return node.op.add(scaled, node.constant(values[0]))


def _import_hardmax(node: OnnxNode) -> Expr:
    axis = int(node.attribute("axis", -1)) % len(node.shape())
    place = node.emit(node.op.argmax(node.input(0), axis, False))
    return _one_hot(node, place, node.shape()[axis], axis)


def _import_torch(relax_name: str) -> TorchImport:
    """PyTorch's amax and amin."""

    def make(node: Any, importer: Any) -> Expr:
        from tvm import relax

        given = list(node.args)
        x, axis, kept = given + [[], False][len(given) - 1 :]
        axes = [axis] if isinstance(axis, int) else list(axis)
        return importer.block_builder.emit(getattr(relax.op, relax_name)(importer.env[x], axes or None, kept))

    return make


OPS = (
    reduction("reduce_sum", "sum", np.sum, _read("reduce_sum"),
              ("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare")),
    reduction("reduce_max", "max", np.max, _read("reduce_max"), ("ReduceMax", "GlobalMaxPool", "ReduceLogSumExp")),
    reduction("reduce_min", "min", np.min, _read("reduce_min"), ("ReduceMin",)),
    reduction("reduce_prod", "prod", np.prod, _read("reduce_prod"), ("ReduceProd",)),
    reduction("variance", "variance", np.var, _read("variance")),
    reduction("std", "std", np.std, _read("std")),
    Op(
        "argmax", relax={"relax.argmax": _read_place("argmax")}, onnx=("ArgMax", "OneHot", "Hardmax"),
        onnx_import={"ArgMax": _import_argmax, "OneHot": _import_one_hot, "Hardmax": _import_hardmax},
        compute=_place(np.argmax), host=_place_host("argmax"),
    ),
    Op(
        "argmin", relax={"relax.argmin": _read_place("argmin")}, onnx=("ArgMin",),
        onnx_import={"ArgMin": _import_argmin}, compute=_place(np.argmin), host=_place_host("argmin"),
    ),
    Op(
        "cumsum", relax={"relax.cumsum": _read_cumsum}, onnx=("CumSum",), onnx_import={"CumSum": _import_cumsum},
        compute=_cumsum, host=_cumsum_host,
    ),
    Op(
        "topk_values", relax={"relax.topk": _read_topk}, onnx=("TopK",), host=_topk_host("values"),
        compute=lambda args, attrs, out: np.take_along_axis(args[0], _topk(args, attrs, out), attrs["axis"]),
    ),
    # Made of the reductions above at import.
    Op("extremes", torch_import={"amax.default": _import_torch("max"), "amin.default": _import_torch("min")}),
    Op("topk_indices", compute=lambda args, attrs, out: _topk(args, attrs, out).astype(np.float32),
       host=_topk_host("indices")),
)  # fmt: skip
