"""The Relax function of an integer graph: launches of the VTA's layers, and code for the host around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from oneshot_ml2.models import operators
from oneshot_ml2.models.ir import Graph, Node, Value
from oneshot_ml2.models.launcher import LAUNCHER
from oneshot_ml2.models.layout import Segment

# Relax expressions; TVM has no types of its own to check them by.
Expr: TypeAlias = Any


def relax_module(graph: Graph, steps: Sequence[Node | Segment], identity: str) -> Any:
    """An IRModule whose ``main`` computes the graph.

    Args:
        steps: nodes that become host code, and the submissions that the launcher runs, numbered in their order.
        identity: of the model, for the launcher.
    """
    import tvm
    from tvm import relax

    builder = relax.BlockBuilder()
    env: dict[str, Expr] = {
        name: relax.Var(_identifier(name), relax.TensorType(graph.values[name].shape, "float32"))
        for name in graph.inputs
    }
    parameters = [env[name] for name in graph.inputs]
    count = 0
    with builder.function("main", parameters):
        with builder.dataflow():
            for step in steps:
                if isinstance(step, Node):
                    names = step.inputs
                    operands = [env[name] if name in env else relax.const(graph.constants[name]) for name in names]
                    shapes = [graph.shape(name) for name in names]
                    value = graph.values[step.output]
                    env[step.output] = builder.emit(_Host(builder).node(step, operands, shapes, value))
                    continue
                launch = [tvm.ir.StringImm(identity), relax.prim_value(count), *(env[name] for name, _ in step.inputs)]
                kinds = [relax.TensorType(graph.values[name].shape, "int8") for name in step.outputs]
                results = builder.emit(relax.call_dps_packed(LAUNCHER, relax.Tuple(launch), out_ty=kinds))
                count += 1
                if len(kinds) == 1:
                    env[step.outputs[0]] = results
                    continue
                for index, name in enumerate(step.outputs):
                    env[name] = builder.emit(relax.TupleGetItem(results, index))
            outputs = [env[name] for name in graph.outputs]
            output = builder.emit_output(outputs[0] if len(outputs) == 1 else relax.Tuple(outputs))
        builder.emit_func_output(output)
    return builder.get()


def _identifier(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def _bottom_right(node: Node, before: Sequence[int], out: Sequence[int]) -> list[int]:
    """A pool's pads as (top, left, bottom, right), with what makes a window in ceil_mode complete."""
    top, bottom, left, right = node.attrs["pads"]
    reach = [(out[axis + 2] - 1) * node.attrs["strides"][axis] + node.attrs["size"][axis] for axis in range(2)]
    return [top, left, max(bottom, reach[0] - before[2] - top), max(right, reach[1] - before[3] - left)]


class _Host:
    """Relax expressions of single nodes; integers are 32 bits wide between the int8 tensors."""

    def __init__(self, builder: Any) -> None:
        from tvm import relax

        self.builder = builder
        self.emit: Callable[[Expr], Expr] = builder.emit
        self.relax = relax
        self.op = relax.op

    def integer(self, value: Any) -> Expr:
        return self.relax.const(np.asarray(value, dtype=np.int32))

    def wide(self, x: Expr) -> Expr:
        return self.emit(self.op.astype(x, "int32"))

    def narrow(self, x: Expr, clip: tuple[int, int]) -> Expr:
        bounded = self.emit(self.op.minimum(self.op.maximum(x, self.integer(clip[0])), self.integer(clip[1])))
        return self.op.astype(bounded, "int8")

    def rounded(self, x: Expr, shift: int, attrs: Mapping[str, Any]) -> Expr:
        """As `operators.rounded`."""
        if shift and attrs["half_even"]:
            floor = self.emit(self.op.right_shift(x, self.integer(shift)))
            x = self.emit(self.op.subtract(x, self.op.bitwise_and(floor, self.integer(1))))
        if shift:
            x = self.emit(self.op.right_shift(x, self.integer(shift)))
        return self.narrow(x, attrs["clip"])

    def left(self, x: Expr, shift: int) -> Expr:
        return self.emit(self.op.left_shift(x, self.integer(shift))) if shift > 0 else x

    def shifted(self, x: Expr, left: int, attrs: Mapping[str, Any]) -> Expr:
        """As `operators.shifted`."""
        if left < 0:
            x = self.emit(self.op.add(x, self.integer(1 << (-left - 1))))
        return self.rounded(self.left(x, left), max(-left, 0), attrs)

    def node(self, node: Node, args: list[Expr], shapes: list[tuple[int, ...]], value: Value) -> Expr:
        if node.op.startswith("int_") or node.op in ("to_int8", "to_float"):
            return getattr(self, f"_{node.op}")(node, args, shapes, value)
        function = getattr(self, f"_{node.op}", None)
        if function is not None:
            return function(node, args, shapes, value)
        simple = {
            "relu": self.op.nn.relu,
            "add": self.op.add,
            "subtract": self.op.subtract,
            "multiply": self.op.multiply,
            "divide": self.op.divide,
            "matmul": self.op.matmul,
            "sigmoid": self.op.sigmoid,
            "tanh": self.op.tanh,
            "gelu": self.op.nn.gelu,
            "gelu_tanh": self.op.nn.gelu_tanh,
            "erf": self.op.erf,
            "exp": self.op.exp,
            "sqrt": self.op.sqrt,
            "power": self.op.power,
            "silu": self.op.nn.silu,
        }
        return simple[node.op](*args)

    # The border --------------------------------------------------------------------------------
    def _to_int8(self, node: Node, args: list[Expr], shapes: Any, value: Value) -> Expr:
        scale = self.relax.const(np.float32(2.0 ** node.attrs["exponent"]))
        return self.op.quantize(args[0], scale, self.relax.const(np.int8(0)), axis=0, out_dtype="int8")

    def _to_float(self, node: Node, args: list[Expr], shapes: Any, value: Value) -> Expr:
        real = self.emit(self.op.astype(args[0], "float32"))
        return self.op.multiply(real, self.relax.const(np.float32(2.0 ** node.attrs["exponent"])))

    # Integers ----------------------------------------------------------------------------------
    def _int_conv2d(self, node: Node, args: list[Expr], shapes: Any, value: Value) -> Expr:
        sums = self.convolution(node, args[0], self.relax.const(node.arrays["weight"]), "int32")
        return self.finished(node, sums, args[1:], (1, -1, 1, 1))

    def _int_dense(self, node: Node, args: list[Expr], shapes: Any, value: Value) -> Expr:
        weight = self.relax.const(np.ascontiguousarray(node.arrays["weight"].T))
        sums = self.emit(self.op.matmul(args[0], weight, out_dtype="int32"))
        return self.finished(node, sums, args[1:], (1, -1))

    def _int_conv2d_transpose(self, node: Node, args: list[Expr], shapes: Any, value: Value) -> Expr:
        sums = self.transposed_convolution(node, args[0], self.relax.const(node.arrays["weight"]), "int32")
        return self.finished(node, sums, args[1:], (1, -1, 1, 1))

    def _int_batch_matmul(self, node: Node, args: list[Expr], shapes: Any, value: Value) -> Expr:
        sums = self.emit(self.op.matmul(args[0], self.op.permute_dims(args[1], [0, 2, 1]), out_dtype="int32"))
        return self.finished(node, sums, [], (1, 1, -1))

    def finished(self, node: Node, sums: Expr, residual: list[Expr], column: tuple[int, ...]) -> Expr:
        """A layer's epilogue; its bias holds the half step already."""
        total = self.emit(self.op.add(sums, self.relax.const(node.arrays["bias"].reshape(column))))
        for operand in residual:
            total = self.emit(self.op.add(total, self.left(self.wide(operand), node.attrs["residual_shift"])))
        return self.rounded(total, node.attrs["shift"], node.attrs)

    def _int_add(self, node: Node, args: list[Expr], shapes: Any, value: Value) -> Expr:
        first, second = (self.left(self.wide(x), shift) for x, shift in zip(args, node.attrs["left"]))
        return self.shifted(self.emit(self.op.add(first, second)), -node.attrs["shift"], node.attrs)

    def _int_requantize(self, node: Node, args: list[Expr], shapes: Any, value: Value) -> Expr:
        return self.shifted(self.wide(args[0]), node.attrs["left"], node.attrs)

    def _int_avg_pool2d(self, node: Node, args: list[Expr], shapes: Any, value: Value) -> Expr:
        attrs, (shape,) = node.attrs, shapes
        if tuple(attrs["size"]) == tuple(shape[2:]) and not any(attrs["pads"]):
            total = self.emit(self.op.sum(self.wide(args[0]), axis=[2, 3], keepdims=True))
        else:
            ones = np.ones((shape[1], 1, *attrs["size"]), dtype=np.int8)
            total = self.convolution(node, args[0], self.relax.const(ones), "int32", groups=shape[1])
        counts = operators.pool_counts(shape, attrs, value.shape) << max(-attrs["left"], 0)
        counts = counts.reshape(1, 1, *counts.shape)
        doubled = self.emit(self.op.add(self.left(total, max(attrs["left"], 0) + 1), self.integer(counts)))
        result = self.emit(self.op.floor_divide(doubled, self.integer(2 * counts)))
        if attrs["half_even"]:
            rest = self.op.subtract(doubled, self.emit(self.op.multiply(result, self.integer(2 * counts))))
            tie = self.emit(self.op.astype(self.op.equal(rest, self.integer(0)), "int32"))
            result = self.emit(self.op.subtract(result, self.op.bitwise_and(result, tie)))
        return self.narrow(result, attrs["clip"])

    def _int_patches(self, node: Node, args: list[Expr], shapes: Any, value: Value) -> Expr:
        import tvm
        from tvm import te

        attrs, (_, _, height, width) = node.attrs, shapes[0]
        (r, s), (sh, sw), (dh, dw), (top, _, left, _) = (
            attrs[name] for name in ("size", "strides", "dilation", "pads")
        )

        def patches(x: Any) -> Any:
            def element(n: Any, k: Any, i: Any, j: Any) -> Any:
                y = i * sh + k // s % r * dh - top
                z = j * sw + k % s * dw - left
                inside = tvm.tirx.all(y >= 0, y < height, z >= 0, z < width)
                return tvm.tirx.if_then_else(inside, x[n, k // (r * s), y, z], tvm.tirx.const(0, "int8"))

            return te.compute(value.shape, element, name="patches")

        return self.builder.call_te(patches, args[0])

    # Both --------------------------------------------------------------------------------------
    def convolution(self, node: Node, x: Expr, weight: Expr, kind: str, groups: int | None = None) -> Expr:
        attrs = node.attrs
        top, bottom, left, right = attrs["pads"]
        return self.emit(
            self.op.nn.conv2d(
                x, weight, strides=attrs["strides"], padding=(top, left, bottom, right), dilation=attrs["dilation"],
                groups=attrs.get("groups", 1) if groups is None else groups, out_dtype=kind,
            )
        )  # fmt: skip

    def transposed_convolution(self, node: Node, x: Expr, weight: Expr, kind: str) -> Expr:
        attrs = node.attrs
        top, bottom, left, right = attrs["pads"]
        return self.emit(
            self.op.nn.conv2d_transpose(
                x, weight, strides=attrs["strides"], padding=(top, left, bottom, right), dilation=attrs["dilation"],
                output_padding=attrs["output_padding"], groups=attrs["groups"], out_dtype=kind,
            )
        )  # fmt: skip

    def _max_pool2d(self, node: Node, args: list[Expr], shapes: Any, value: Value) -> Expr:
        pads = _bottom_right(node, shapes[0], value.shape)
        return self.op.nn.max_pool2d(args[0], node.attrs["size"], node.attrs["strides"], pads)

    def _reshape(self, node: Node, args: list[Expr], shapes: Any, value: Value) -> Expr:
        return self.op.reshape(args[0], value.shape)

    def _permute(self, node: Node, args: list[Expr], shapes: Any, value: Value) -> Expr:
        return self.op.permute_dims(args[0], node.attrs["axes"])

    def _slice(self, node: Node, args: list[Expr], shapes: Any, value: Value) -> Expr:
        begin, end, step = zip(*node.attrs["parts"], strict=True)
        return self.op.strided_slice(args[0], list(range(len(begin))), begin, end, step)

    def _broadcast(self, node: Node, args: list[Expr], shapes: Any, value: Value) -> Expr:
        return self.op.broadcast_to(args[0], value.shape)

    def _take(self, node: Node, args: list[Expr], shapes: Any, value: Value) -> Expr:
        return self.op.take(args[0], self.emit(self.op.astype(args[1], "int32")), node.attrs["axis"], mode="clip")

    def _concat(self, node: Node, args: list[Expr], shapes: Any, value: Value) -> Expr:
        return self.op.concat(args, node.attrs["axis"])

    # Real numbers ------------------------------------------------------------------------------
    def _conv2d(self, node: Node, args: list[Expr], shapes: Any, value: Value) -> Expr:
        sums = self.convolution(node, args[0], args[1], "float32")
        return self.op.add(sums, self.op.reshape(args[2], (1, value.shape[1], 1, 1))) if len(args) > 2 else sums

    def _conv2d_transpose(self, node: Node, args: list[Expr], shapes: Any, value: Value) -> Expr:
        sums = self.transposed_convolution(node, args[0], args[1], "float32")
        return self.op.add(sums, self.op.reshape(args[2], (1, value.shape[1], 1, 1))) if len(args) > 2 else sums

    def _batch_matmul(self, node: Node, args: list[Expr], shapes: Any, value: Value) -> Expr:
        return self.op.matmul(args[0], self.op.permute_dims(args[1], [0, 2, 1]))

    def _dense(self, node: Node, args: list[Expr], shapes: Any, value: Value) -> Expr:
        product = self.emit(self.op.matmul(args[0], self.op.permute_dims(args[1], [1, 0])))
        return self.op.add(product, args[2]) if len(args) > 2 else product

    def _clip(self, node: Node, args: list[Expr], shapes: Any, value: Value) -> Expr:
        low, high = (self.relax.const(np.float32(node.attrs[bound])) for bound in ("low", "high"))
        return self.op.minimum(self.op.maximum(args[0], low), high)

    def _avg_pool2d(self, node: Node, args: list[Expr], shapes: Any, value: Value) -> Expr:
        top, bottom, left, right = node.attrs["pads"]
        return self.op.nn.avg_pool2d(
            args[0], node.attrs["size"], node.attrs["strides"], (top, left, bottom, right),
            count_include_pad=node.attrs["count_include_pad"],
        )  # fmt: skip

    def _adaptive_avg_pool2d(self, node: Node, args: list[Expr], shapes: Any, value: Value) -> Expr:
        return self.op.nn.adaptive_avg_pool2d(args[0], value.shape[2:])

    def _mean(self, node: Node, args: list[Expr], shapes: Any, value: Value) -> Expr:
        return self.op.mean(args[0], list(node.attrs["axes"]), node.attrs["keepdims"])

    def _softmax(self, node: Node, args: list[Expr], shapes: Any, value: Value) -> Expr:
        return self.op.nn.softmax(args[0], node.attrs["axis"])

    def _layer_norm(self, node: Node, args: list[Expr], shapes: Any, value: Value) -> Expr:
        return self.op.nn.layer_norm(*args, axes=list(node.attrs["axes"]), epsilon=node.attrs["epsilon"])
