"""Matrix products: of two activations, and with constant weights (dense)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from oneshot_ml2.models.ops.base import Array, Attrs, Expr, Op, Shape, Shapes
from oneshot_ml2.models.ops.numeric import layer_sums
from oneshot_ml2.workload.batch_matmul import BatchMatmul
from oneshot_ml2.workload.dense import Dense

if TYPE_CHECKING:
    from oneshot_ml2.models.ir import Node, Value
    from oneshot_ml2.models.ops.host import Host
    from oneshot_ml2.models.ops.importing import OnnxNode
    from oneshot_ml2.models.ops.reading import Reader
    from oneshot_ml2.workload.epilogue import Epilogue
    from oneshot_ml2.workload.registry import Workload


def _read(reader: Reader, call: Any) -> str:
    """Products of two activations become batch_matmul: (B, N, C) times (B, K, C) transposed."""
    a, b, shape = reader.operand(call.args[0]), reader.operand(call.args[1]), reader.static(call)
    if b in reader.constants and reader.constants[b].ndim > 2:
        array = reader.constants[b]
        if all(step == 0 or size == 1 for step, size in zip(array.strides[:-2], array.shape[:-2])):
            # The same matrix over and over, as PyTorch expands it.
            b = reader.constant(array[(0,) * (array.ndim - 2)])
    left, right = reader.shape(a), reader.shape(b)
    # A vector is a row before a product, and a column behind it.
    full = (*shape, 1) if len(right) == 1 else shape
    full = (*full[:-1], 1, full[-1]) if len(left) == 1 else full
    a = reader.reshape(a, (1, *left)) if len(left) == 1 else a
    b = reader.reshape(b, (*right, 1)) if len(right) == 1 else b
    product = _product_of(reader, a, b, full)
    return product if full == shape else reader.reshape(product, shape)


def _product_of(reader: Reader, a: str, b: str, shape: tuple[int, ...]) -> str:
    """The product of two tensors of matrices, of the given shape."""
    left, right = reader.shape(a), reader.shape(b)
    known_a, known_b = (x in reader.constants for x in (a, b))
    if known_a and not known_b:
        # Constants stand behind: what is wanted is the transpose of the other product.
        swapped = (*shape[:-2], shape[-1], shape[-2])
        return _transposed(reader, _product_of(reader, _transposed(reader, b), _transposed(reader, a), swapped))
    if known_b and not known_a and len(right) > 2:
        if math.prod(right[:-2]) > 1:
            return _many(reader, a, b, shape)
        if len(left) >= len(right):
            b = reader.reshape(b, right[-2:])
    if reader.is_constant(a) or reader.is_constant(b):
        return reader.add("matmul", [a, b], shape)
    if len(right) == 2:
        batch, rows = 1, math.prod(left[:-1])
    else:
        batch, rows = math.prod(shape[:-2]), left[-2]
        a, b = (reader.broadcast(x, (*shape[:-2], *reader.shape(x)[-2:])) for x in (a, b))
    a, b = reader.reshape(a, (batch, rows, left[-1])), reader.reshape(b, (batch, *right[-2:]))
    turned = reader.add("permute", [b], (batch, right[-1], right[-2]), axes=(0, 2, 1))
    return reader.reshape(reader.add("batch_matmul", [a, turned], (batch, rows, right[-1])), shape)


def _transposed(reader: Reader, x: str) -> str:
    """With the last two axes swapped."""
    shape = reader.shape(x)
    rank = len(shape)
    axes = (*range(rank - 2), rank - 1, rank - 2)
    return reader.add("permute", [x], tuple(shape[axis] for axis in axes), axes=axes)


def _many(reader: Reader, a: str, b: str, shape: tuple[int, ...]) -> str:
    """Products with different constant matrices: a convolution of as many groups, its pixels the rows."""
    weight = reader.constants[b]
    batch, (rows, inner, columns) = shape[:-2], (shape[-2], *weight.shape[-2:])
    # Matrices that repeat along the first axes are the same groups.
    own = len(weight.shape[:-2])
    while own and weight.shape[-2 - own] == 1:
        own -= 1
    kept = batch[len(batch) - own :]
    groups, images = math.prod(kept), math.prod(batch[: len(batch) - own])
    weight = np.broadcast_to(weight.reshape(weight.shape[-2 - own :]), (*kept, inner, columns))
    kernel = weight.reshape(groups, inner, columns).swapaxes(1, 2).reshape(groups * columns, inner, 1, 1)
    data = _transposed(reader, reader.broadcast(a, (*batch, rows, inner)))
    data = reader.reshape(data, (images, groups * inner, 1, rows))
    sums = reader.add(
        "conv2d", [data, reader.constant(np.ascontiguousarray(kernel))], (images, groups * columns, 1, rows),
        strides=(1, 1), pads=(0, 0, 0, 0), dilation=(1, 1), groups=groups,
    )  # fmt: skip
    return _transposed(reader, reader.reshape(sums, (*batch, columns, rows)))


def _import_gemm(node: OnnxNode) -> Expr:
    """``alpha * a @ b + beta * c``, the factors in constants."""
    op, emit = node.op, node.emit

    def scaled(index: int, factor: float) -> Expr:
        x = node.input(index)
        if factor == 1.0 or x is None:
            return x
        if node.is_constant(index):
            return node.constant(node.array(index) * np.float32(factor))
        return emit(op.multiply(x, node.constant(factor)))

    a, b = node.input(0), scaled(1, float(node.attribute("alpha", 1.0)))
    if node.attribute("transA", 0):
        a = emit(op.permute_dims(a, [1, 0]))
    if node.attribute("transB", 0):
        b = emit(op.permute_dims(b, [1, 0]))
    product = emit(op.matmul(a, b))
    c = scaled(2, float(node.attribute("beta", 1.0)))
    return product if c is None else op.add(product, c)


def _dense(args: Sequence[Array], attrs: Attrs, out: Sequence[int]) -> Array:
    product = args[0] @ args[1].T
    return product + args[2] if len(args) > 2 else product


def _dense_layer(attrs: Attrs, data: Shape, weight: Shape, epilogue: Epilogue) -> Workload:
    return Dense(data[0], data[1], weight[0], epilogue)


def _product(args: Sequence[Array], attrs: Attrs, out: Shape) -> Array:
    return args[0] @ args[1].swapaxes(-1, -2)


def _product_layer(attrs: Attrs, data: Shape, weight: Shape, epilogue: Epilogue) -> Workload:
    b, rows, c = data
    return BatchMatmul(b, rows, c, weight[1], epilogue)


def _dense_host(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
    product = host.emit(host.op.matmul(args[0], host.op.permute_dims(args[1], [1, 0])))
    return host.op.add(product, args[2]) if len(args) > 2 else product


def _int_dense_host(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
    weight = host.relax.const(np.ascontiguousarray(node.arrays["weight"].T))
    sums = host.emit(host.op.matmul(args[0], weight, out_dtype="int32"))
    return host.finished(node, sums, args[1:], (1, -1))


def _batch_matmul_host(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
    return host.op.matmul(args[0], host.op.permute_dims(args[1], [0, 2, 1]))


def _int_batch_matmul_host(host: Host, node: Node, args: list[Expr], shapes: Shapes, value: Value) -> Expr:
    sums = host.emit(host.op.matmul(args[0], host.op.permute_dims(args[1], [0, 2, 1]), out_dtype="int32"))
    return host.finished(node, sums, [], (1, 1, -1))


OPS = (
    Op(
        "matmul",
        relax={"relax.matmul": _read},
        onnx=("MatMul",),
        compute=lambda args, attrs, out: args[0] @ args[1],
        host=lambda host, node, args, shapes, value: host.op.matmul(*args),
        macs=lambda out, data, weight: out * data[-1],
    ),
    Op(
        "dense",
        onnx=("Gemm",),
        onnx_import={"Gemm": _import_gemm},
        onnx_layers=("Gemm", "MatMul"),
        torch_layers=("linear.default",),
        compute=_dense,
        integer=layer_sums(_dense, (-1,)),
        host=_dense_host,
        integer_host=_int_dense_host,
        layer=_dense_layer,
        weight_outputs=0,
        channels=-1,
        macs=lambda out, data, weight: out * math.prod(weight[1:]),
    ),
    Op(
        "batch_matmul",
        torch_layers=("matmul.default",),
        compute=_product,
        integer=layer_sums(_product, (-1,)),
        host=_batch_matmul_host,
        integer_host=_int_batch_matmul_host,
        layer=_product_layer,
        channels=-1,
        macs=lambda out, data, weight: out * data[-1],
    ),
)
