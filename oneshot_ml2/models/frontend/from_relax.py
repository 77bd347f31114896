"""TVM Relax functions into float graphs."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models import operators, partition
from oneshot_ml2.models.frontend import origins
from oneshot_ml2.models.ir import Graph, Node, Value
from oneshot_ml2.models.simplify import simplify

Array: TypeAlias = NDArray[Any]

# Relax operators that keep all elements in their order.
_RESHAPES = ("relax.reshape", "relax.flatten", "relax.squeeze", "relax.expand_dims")
_ELEMENTWISE = {
    "relax.nn.relu": "relu",
    "relax.add": "add",
    "relax.subtract": "subtract",
    "relax.multiply": "multiply",
    "relax.divide": "divide",
    "relax.sigmoid": "sigmoid",
    "relax.tanh": "tanh",
    "relax.nn.gelu": "gelu",
    "relax.nn.gelu_tanh": "gelu_tanh",
    "relax.erf": "erf",
    "relax.exp": "exp",
    "relax.sqrt": "sqrt",
    "relax.power": "power",
    "relax.nn.silu": "silu",
}
SUPPORTED = sorted(
    {name.split(".")[-1] for name in (*_RESHAPES, *_ELEMENTWISE)}
    | {"conv2d", "conv2d_transpose", "matmul", "take", "split", "strided_slice", "broadcast_to", "max_pool2d"}
    | {"avg_pool2d", "adaptive_avg_pool2d", "mean", "softmax", "layer_norm", "batch_norm"}
    | {"clip", "concat", "permute_dims", "quantize", "dequantize", "dropout"}
)
INPUTS = "only float32 inputs are supported, and int64 ones as indices of embeddings"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of PyTorch and TVM on their own internals."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


class _Reader:
    """Turns the bindings of a Relax function into nodes, one operator at a time."""

    def __init__(self, supported: Sequence[str]) -> None:
        """``supported``: the operators that an error proposes."""
        self.supported = supported
        self.nodes: list[Node] = []
        self.inputs: list[str] = []
        self.values: dict[str, Value] = {}
        self.constants: dict[str, Array] = {}
        # Values and constants of whole numbers; only indices are.
        self.integers: set[str] = set()
        # Values that follow from constants alone (dequantized weights).
        self.fixed: set[str] = set()
        # Relax variable -> name, or a tuple of names.
        self.env: dict[Any, Any] = {}
        # What the operator at hand is called in the model: errors begin with it.
        self.where = ""
        self.counts: dict[str, int] = {}

    def refused(self, why: str) -> ModelError:
        """The error of the operator at hand."""
        return ModelError(f"{self.where} {why}")

    def constant(self, array: Array) -> str:
        name = f"const_{len(self.constants)}"
        self.constants[name] = array
        return name

    def is_constant(self, name: str) -> bool:
        return name in self.constants or name in self.fixed

    def limited(self, name: str, limit: int) -> None:
        """Note that an index is below ``limit``, if it is an input of the model."""
        while name not in self.inputs and name in self.values:
            name = self._producer(name).inputs[0]
        if name in self.inputs:
            known = self.values[name].limit
            self.values[name] = dataclasses.replace(self.values[name], limit=min(limit, known or limit))

    def add(self, op: str, inputs: Sequence[str], shape: Sequence[int], **attrs: Any) -> str:
        if op != "take" and not self.integers.isdisjoint(inputs):
            if op not in partition.MOVES:
                raise self.refused("on integers is not supported; they can only be indices (embeddings)")
            self.integers.add(f"{op}_{self.counts.get(op, 0)}")
        number = self.counts.get(op, 0)
        self.counts[op] = number + 1
        name = f"{op}_{number}"
        if all(self.is_constant(operand) for operand in inputs):
            self.fixed.add(name)
        self.nodes.append(Node(name, op, tuple(inputs), name, attrs))
        self.values[name] = Value(name, tuple(shape))
        return name

    def operand(self, expr: Any) -> Any:
        from tvm import ir, relax

        if isinstance(expr, ir.GenericConst):
            return self.constant(expr.value.numpy())
        if isinstance(expr, relax.Tuple):
            return tuple(self.operand(field) for field in expr.fields)
        if expr in self.env:
            return self.env[expr]
        raise self.refused(f"has an operand of a kind that is not supported ({type(expr).__name__})")

    def bind(self, var: Any, value: Any) -> None:
        from tvm import relax

        if isinstance(value, relax.TupleGetItem):
            self.env[var] = self.operand(value.tuple_value)[value.index]
        elif isinstance(value, relax.Call):
            self.env[var] = self.call(value)
        else:
            self.env[var] = self.operand(value)

    def call(self, call: Any) -> Any:
        op = getattr(call.op, "name", type(call.op).__name__)
        if op in ("relax.zeros_like", "relax.ones_like"):
            return self.filled(call, op, float(op == "relax.ones_like"))
        if op == "relax.full_like":
            return self.filled(call, op, float(self.constants[self.operand(call.args[1])]))
        if op == "relax.nn.dropout":
            return (self.operand(call.args[0]),) * 2
        attrs = call.attrs
        if op == "relax.nn.batch_norm":
            return (self.batch_norm([self.operand(arg) for arg in call.args], attrs),) * 3
        if op == "relax.call_tir":
            return self.bounded(call)
        if op == "relax.shape_of":
            return self.constant(np.array(_static(call.args[0].ty, self.where), dtype=np.int64))
        if op == "relax.shape_to_tensor":
            return self.operand(call.args[0])
        if op in ("relax.isnan", "relax.equal", "relax.less", "relax.logical_not", "relax.where", "relax.max"):
            # TVM writes ONNX's Clip and Gather and the masks of PyTorch's attention with them.
            return self.choice(op, [self.operand(arg) for arg in call.args], attrs)
        if op == "relax.split":
            return self.split(self.operand(call.args[0]), attrs)
        shape = _static(call.ty, self.where)
        if op == "relax.broadcast_to":
            return self.broadcast(self.operand(call.args[0]), shape)
        if op == "relax.astype":
            return self.cast(self.operand(call.args[0]), str(attrs.dtype))
        if op == "relax.strided_slice":
            return self.strided_slice(self.operand(call.args[0]), call.args[1:])
        if op == "relax.matmul":
            return self.matmul(self.operand(call.args[0]), self.operand(call.args[1]), shape)
        if op in _RESHAPES:
            return self.reshape(self.operand(call.args[0]), shape)
        if op == "relax.permute_dims":
            return self.permute(self.operand(call.args[0]), attrs, shape)
        if op == "relax.clip":
            low, high = (float(getattr(arg.value, "value", arg.value)) for arg in call.args[1:])
            return self.add("clip", [self.operand(call.args[0])], shape, low=low, high=high)
        method: Callable[[list[str], Any, tuple[int, ...]], str] | None = getattr(self, "_" + op.split(".")[-1], None)
        if method is None and op not in _ELEMENTWISE and op != "relax.concat":
            raise origins.not_supported(self.where, self.supported)
        operands = [self.operand(arg) for arg in call.args]
        if op == "relax.concat":
            return self.add("concat", operands[0], shape, axis=int(attrs.axis) % len(shape))
        for operand in operands:
            if not isinstance(operand, str) or (operand not in self.values and operand not in self.constants):
                raise self.refused("has an operand of a kind that is not supported")
        if op == "relax.add" and not self.integers.isdisjoint(operands):
            # ONNX's Gather counts negative indices from the end; ours are none. A use of them is not supported.
            return "a sum of integers"
        if op in _ELEMENTWISE:
            return self.elementwise(_ELEMENTWISE[op], operands, shape)
        assert method is not None
        return method(operands, attrs, shape)

    def bounded(self, call: Any) -> str:
        """Half of ONNX's Clip, which TVM makes a function of: the larger or smaller of a tensor and a constant."""
        name = call.args[0].name_hint.rstrip("0123456789_")
        operands = [self.operand(field) for field in call.args[1].fields]
        constant = self.constants.get(operands[-1])
        if name not in ("maximum", "minimum"):
            raise origins.not_supported(self.where, self.supported)
        if len(operands) != 2 or constant is None or constant.size != 1:
            raise self.refused("is not supported on these operands; only with a constant bound")
        bound = float(constant.reshape(()))
        low, high = (bound, math.inf) if name == "maximum" else (-math.inf, bound)
        x = operands[0]
        source = self._producer(x) if x in self.counted("clip") else None
        if source is not None and self.nodes[-1] is source:
            # The other half came just before: one clip, with the upper bound over the lower one as ONNX has it.
            self.nodes.pop()
            x = source.inputs[0]
            low, high = min(max(low, source.attrs["low"]), high), min(source.attrs["high"], high)
        return self.add("clip", [x], self.values[x].shape, low=low, high=high)

    def counted(self, op: str) -> set[str]:
        """The values that operators of a kind have made."""
        return {node.output for node in self.nodes if node.op == op}

    def filled(self, call: Any, op: str, fill: float) -> str:
        return self.constant(np.broadcast_to(np.array(fill, dtype=str(call.ty.dtype)), _static(call.ty, self.where)))

    def choice(self, op: str, operands: list[str], attrs: Any) -> str:
        """Conditions, and choices by them, as far as they are constants: all tensors of the model are finite."""
        arrays = [self.constants.get(name) for name in operands]
        first, *others = arrays
        if op == "relax.equal" and first is None and others[0] is not None and np.isneginf(others[0]).all():
            # Nothing of an attention without a mask is.
            return self.constant(np.broadcast_to(np.array(False), self.shape(operands[0])))
        if op == "relax.less" and operands[0] in self.integers and others[0] is not None and not others[0].any():
            return self.constant(np.broadcast_to(np.array(False), self.shape(operands[0])))
        if op == "relax.where" and first is not None and first.size and (first.all() or not first.any()):
            chosen = operands[1 if first.all() else 2]
            return self.broadcast(chosen, np.broadcast_shapes(first.shape, self.shape(chosen)))
        if first is None or any(other is None for other in others):
            raise self.refused("is supported on constants only; remove it from the model")
        if op == "relax.max":
            axes = None if attrs.axis is None else tuple(int(axis) for axis in attrs.axis)
            return self.constant(np.asarray(first.max(axis=axes, keepdims=bool(attrs.keepdims))))
        functions: dict[str, Callable[..., Any]] = {
            "isnan": np.isnan, "equal": np.equal, "less": np.less, "logical_not": np.logical_not, "where": np.where,
        }  # fmt: skip
        return self.constant(np.asarray(functions[op.removeprefix("relax.")](*arrays)))

    # One method for an operator whose attributes need translation ------------------------------
    def elementwise(self, op: str, operands: list[str], shape: tuple[int, ...]) -> str:
        if all(name in self.constants for name in operands):
            array = operators.FLOAT[op]([self.constants[name] for name in operands], {}, shape)
            return self.constant(np.asarray(array, dtype=np.float32))
        if op in ("add", "multiply") and operands[0] in self.constants:
            operands = operands[::-1]
        return self.add(op, operands, shape)

    def reshape(self, operand: str, shape: tuple[int, ...]) -> str:
        if operand in self.constants:
            return self.constant(self.constants[operand].reshape(shape))
        if self.values[operand].shape == shape:
            return operand
        return self.add("reshape", [operand], shape)

    def broadcast(self, operand: str, shape: tuple[int, ...]) -> str:
        if operand in self.constants:
            return self.constant(np.broadcast_to(self.constants[operand], shape))
        # PyTorch's matmul expands its operands, mostly to what they are.
        return operand if self.values[operand].shape == shape else self.add("broadcast", [operand], shape)

    def cast(self, operand: str, kind: str) -> str:
        """A change of type: of constants any, of indices to another integer one."""
        if operand in self.constants:
            return self.constant(self.constants[operand].astype(kind))
        if (operand in self.integers) == kind.startswith("int") and kind in ("float32", "int32", "int64"):
            return operand
        raise self.refused(f"casts to {kind}, which is not supported; tensors are float32, or integers as indices")

    def slice(self, operand: str, parts: Sequence[tuple[int, int, int]]) -> str:
        """(begin, end, step) along every axis, within the tensor."""
        if operand in self.constants:
            return self.constant(np.ascontiguousarray(self.constants[operand][tuple(slice(*part) for part in parts)]))
        shape = tuple(len(range(*part)) for part in parts)
        if shape == self.values[operand].shape:
            return operand
        return self.add("slice", [operand], shape, parts=tuple(parts))

    def shape(self, operand: str) -> tuple[int, ...]:
        return self.values[operand].shape if operand in self.values else self.constants[operand].shape

    def strided_slice(self, operand: str, args: Sequence[Any]) -> str:
        shape = self.shape(operand)
        axes, begins, ends, *steps = (
            [int(getattr(value, "value", value)) for value in getattr(arg, "fields", arg)] for arg in args
        )
        parts = [(0, size, 1) for size in shape]
        for index, axis in enumerate(axes):
            step = steps[0][index] if steps else 1
            if step < 1:
                raise self.refused(f"with step {step} is not supported; only above 0")
            parts[axis % len(shape)] = slice(begins[index], ends[index], step).indices(shape[axis % len(shape)])
        return self.slice(operand, parts)

    def split(self, operand: str, attrs: Any) -> tuple[str, ...]:
        shape = self.shape(operand)
        axis = int(attrs.axis) % len(shape)
        sections, size = attrs.indices_or_sections, shape[axis]
        try:
            # A number of equal parts, the last one maybe shorter.
            each = -(-size // int(sections))
            cuts = list(range(each, size, each))
        except TypeError:
            cuts = [int(cut) for cut in sections]
        edges = [0, *cuts, size]
        return tuple(
            self.slice(operand, [(0, n, 1) if i != axis else (begin, end, 1) for i, n in enumerate(shape)])
            for begin, end in itertools.pairwise(edges)
        )

    def _take(self, operands: list[str], attrs: Any, shape: tuple[int, ...]) -> str:
        x, index = operands
        source = self.shape(x)
        axis = int(attrs.axis) % len(source) if attrs.axis is not None else 0
        if index in self.constants:
            numbers = self.constants[index].reshape(-1).astype(np.int64)
            numbers = np.where(numbers < 0, numbers + source[axis], numbers)
            if x in self.constants:
                return self.constant(self.constants[x].take(numbers, axis).reshape(shape))
            begin, end = int(numbers[0]), int(numbers[-1]) + 1
            if not np.array_equal(numbers, np.arange(begin, end)):
                raise self.refused("on an activation is supported for neighbouring constant indices only")
            part = [(0, n, 1) if i != axis else (begin, end, 1) for i, n in enumerate(source)]
            return self.reshape(self.slice(x, part), shape)
        if index not in self.integers or not self.is_constant(x):
            raise self.refused("needs a constant table (an embedding) or constant indices")
        self.limited(index, source[axis])
        return self.add("take", operands, shape, axis=axis)

    def matmul(self, a: str, b: str, shape: tuple[int, ...]) -> str:
        """Products of two activations become batch_matmul: (B, N, C) times (B, K, C) transposed."""
        if b in self.constants and self.constants[b].ndim > 2:
            array = self.constants[b]
            if all(step == 0 or size == 1 for step, size in zip(array.strides[:-2], array.shape[:-2])):
                # The same matrix over and over, as PyTorch expands it.
                b = self.constant(array[(0,) * (array.ndim - 2)])
        left, right = self.shape(a), self.shape(b)
        if self.is_constant(a) or self.is_constant(b) or min(len(left), len(right)) < 2:
            if a in self.constants and b in self.constants:
                return self.constant(self.constants[a] @ self.constants[b])
            return self.add("matmul", [a, b], shape)
        if len(right) == 2:
            batch, rows = 1, math.prod(left[:-1])
        else:
            batch, rows = math.prod(shape[:-2]), left[-2]
            a, b = (self.broadcast(x, (*shape[:-2], *self.shape(x)[-2:])) for x in (a, b))
        a, b = self.reshape(a, (batch, rows, left[-1])), self.reshape(b, (batch, *right[-2:]))
        turned = self.add("permute", [b], (batch, right[-1], right[-2]), axes=(0, 2, 1))
        return self.reshape(self.add("batch_matmul", [a, turned], (batch, rows, right[-1])), shape)

    def permute(self, operand: str, attrs: Any, shape: tuple[int, ...]) -> str:
        rank = len(shape)
        axes = tuple(int(axis) % rank for axis in attrs.axes) if attrs.axes else tuple(reversed(range(rank)))
        if operand in self.constants:
            return self.constant(np.ascontiguousarray(self.constants[operand].transpose(axes)))
        return self.add("permute", [operand], shape, axes=axes)

    def batch_norm(self, operands: list[str], attrs: Any) -> str:
        x, *arrays = operands
        gamma, beta, mean, variance = (self.constants[name].astype(np.float64) for name in arrays)
        if int(attrs.axis) != 1:
            raise self.refused(f"works along axis {int(attrs.axis)}; only axis 1 is supported")
        scale = (gamma if attrs.scale else 1.0) / np.sqrt(variance + float(attrs.epsilon))
        offset = (beta if attrs.center else 0.0) - mean * scale
        shape = self.values[x].shape
        column = (-1,) + (1,) * (len(shape) - 2)
        scaled = self.add("multiply", [x, self.constant(scale.astype(np.float32).reshape(column))], shape)
        return self.add("add", [scaled, self.constant(offset.astype(np.float32).reshape(column))], shape)

    def _conv2d(self, operands: list[str], attrs: Any, shape: tuple[int, ...]) -> str:
        _layout(attrs, self.where)
        if not self.is_constant(operands[1]):
            raise self.refused("has a weight that the model computes; only constants are supported")
        return self.add(
            "conv2d", operands, shape, strides=_ints(attrs.strides), pads=_pads(attrs.padding),
            dilation=_ints(attrs.dilation), groups=int(attrs.groups),
        )  # fmt: skip

    def _conv2d_transpose(self, operands: list[str], attrs: Any, shape: tuple[int, ...]) -> str:
        if attrs.data_layout != "NCHW" or attrs.kernel_layout != "IOHW":
            raise self.refused(f"in layout {attrs.data_layout} is not supported; only NCHW is")
        if not self.is_constant(operands[1]):
            raise self.refused("has a weight that the model computes; only constants are supported")
        if _ints(attrs.dilation) != (1, 1):
            raise self.refused("with dilation is not supported; only 1")
        return self.add(
            "conv2d_transpose", operands, shape, strides=_ints(attrs.strides), pads=_pads(attrs.padding),
            dilation=(1, 1), groups=int(attrs.groups), output_padding=_ints(attrs.output_padding),
        )  # fmt: skip

    def _max_pool2d(self, operands: list[str], attrs: Any, shape: tuple[int, ...]) -> str:
        return self.add("max_pool2d", operands, shape, **_pool(attrs, self.where))

    def _avg_pool2d(self, operands: list[str], attrs: Any, shape: tuple[int, ...]) -> str:
        if attrs.ceil_mode:
            raise self.refused("with ceil_mode is not supported; pad the image instead")
        return self.add(
            "avg_pool2d", operands, shape, **_pool(attrs, self.where),
            count_include_pad=bool(attrs.count_include_pad),
        )  # fmt: skip

    def _global_pool(self, operand: str, shape: tuple[int, ...], size: tuple[int, int], stride: tuple[int, int]) -> str:
        n, c = self.values[operand].shape[:2]
        spatial = tuple((self.values[operand].shape[i + 2] - size[i]) // stride[i] + 1 for i in range(2))
        pooled = self.add(
            "avg_pool2d", [operand], (n, c, *spatial), size=size, strides=stride, pads=(0, 0, 0, 0), dilation=(1, 1),
            count_include_pad=True,
        )  # fmt: skip
        return self.reshape(pooled, shape)

    def _adaptive_avg_pool2d(self, operands: list[str], attrs: Any, shape: tuple[int, ...]) -> str:
        _layout(attrs, self.where, kernel=False)
        image = self.values[operands[0]].shape
        if image == shape:
            return operands[0]
        if image[2] % shape[2] == 0 and image[3] % shape[3] == 0:
            step = (image[2] // shape[2], image[3] // shape[3])
            return self._global_pool(operands[0], shape, step, step)
        return self.add("adaptive_avg_pool2d", operands, shape)

    def _mean(self, operands: list[str], attrs: Any, shape: tuple[int, ...]) -> str:
        image = self.values[operands[0]].shape
        axes = tuple(sorted(int(axis) % len(image) for axis in attrs.axis)) if attrs.axis else tuple(range(len(image)))
        if len(image) == 4 and axes == (2, 3):
            return self._global_pool(operands[0], shape, image[2:], (1, 1))
        return self.add("mean", operands, shape, axes=axes, keepdims=bool(attrs.keepdims))

    def _softmax(self, operands: list[str], attrs: Any, shape: tuple[int, ...]) -> str:
        return self.add("softmax", operands, shape, axis=int(attrs.axis) % len(shape))

    def _layer_norm(self, operands: list[str], attrs: Any, shape: tuple[int, ...]) -> str:
        axes = tuple(int(axis) % len(shape) for axis in attrs.axes)
        return self.add("layer_norm", operands, shape, axes=axes, epsilon=float(attrs.epsilon))

    def _scales(self, operands: list[str]) -> Array:
        scale, zero = (self.constants.get(name) for name in operands[1:])
        if scale is None or zero is None:
            raise self.refused("has a scale that the model computes; only constants are supported")
        if np.any(zero != 0):
            raise self.refused(
                f"has the zero point {int(np.ravel(zero)[0])}; only symmetric quantization (0) is "
                "supported: quantize with QuantType.QInt8, ActivationSymmetric and WeightSymmetric"
            )
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            raise self.refused(f"has the scale {float(np.min(scale))}; allowed: above 0")
        return np.asarray(scale, dtype=np.float32)

    def _quantize(self, operands: list[str], attrs: Any, shape: tuple[int, ...]) -> str:
        if str(attrs.out_dtype) != "int8":
            raise self.refused(f"quantizes to {attrs.out_dtype}; only int8 is supported (QuantType.QInt8)")
        scale = self._scales(operands)
        if scale.size != 1:
            raise self.refused("has a scale per channel on an activation; only one scale is supported")
        return self.add(
            "quantize", operands[:1], shape, scale=scale.reshape(()), axis=0, range=(-128, 127), dtype="int8"
        )

    def _dequantize(self, operands: list[str], attrs: Any, shape: tuple[int, ...]) -> str:
        scale = self._scales(operands)
        scale = scale.reshape(()) if scale.size == 1 else scale
        x = operands[0]
        if x in self.constants:
            kind = self.constants[x].dtype
            if kind not in (np.int8, np.int32):
                raise self.refused(f"dequantizes {kind} constants; only int8 and int32 (biases) are supported")
        return self.add("dequantize", [x], shape, scale=scale, axis=int(attrs.axis))

    def _producer(self, name: str) -> Node:
        return next(node for node in reversed(self.nodes) if node.output == name)


def _ints(values: Any) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _pads(values: Any) -> tuple[int, ...]:
    """Relax's (top, left, bottom, right) as (top, bottom, left, right)."""
    pads = _ints(values)
    if len(pads) == 2:
        pads = pads * 2
    top, left, bottom, right = pads
    return (top, bottom, left, right)


def _layout(attrs: Any, op: str, kernel: bool = True) -> None:
    layout = getattr(attrs, "data_layout", None) or attrs.layout
    if layout != "NCHW" or (kernel and attrs.kernel_layout != "OIHW"):
        raise ModelError(f"{op} in layout {layout} is not supported; only NCHW is")


def _pool(attrs: Any, op: str) -> dict[str, Any]:
    _layout(attrs, op, kernel=False)
    if _ints(attrs.dilation) != (1, 1):
        raise ModelError(f"{op} with dilation {_ints(attrs.dilation)} is not supported; only 1")
    return {
        "size": _ints(attrs.pool_size),
        "strides": _ints(attrs.strides),
        "pads": _pads(attrs.padding),
        "dilation": (1, 1),
    }


def _static(ty: Any, what: str) -> tuple[int, ...]:
    """The shape of a Relax tensor type.

    Raises:
        ModelError: no tensor, or a dynamic shape.
    """
    from tvm import tirx

    shape = getattr(ty, "shape", None)
    if shape is None:
        raise ModelError(f"{what} has no tensor of a known shape; dynamic shapes are not supported")
    if not all(isinstance(dim, (int, tirx.IntImm)) for dim in shape):
        dims = "x".join(str(getattr(dim, "value", dim)) for dim in shape)
        raise ModelError(f"{what} has the dynamic shape {dims}; export the model with fixed shapes")
    return tuple(int(dim) for dim in shape)


def from_relax(
    module: Any,
    name: str,
    names: Mapping[str, list[tuple[str, str]]],
    supported: Sequence[str],
    output_names: Sequence[str] = (),
    labels: Sequence[str] = (),
) -> Graph:
    """The ``main`` function of a Relax module.

    ``names``: operator -> (layer's name, tensor's name), in order; ``supported``: what errors propose; ``labels``: what
    each binding is called in the model.
    """
    if "main" not in [variable.name_hint for variable in module.get_global_vars()]:
        raise ModelError("the model has no main function")
    function = module["main"]
    reader = _Reader(supported)
    inputs = []
    for parameter in function.params:
        shape = _static(parameter.ty, f"input {parameter.name!r}")
        kind = str(parameter.ty.dtype)
        if kind not in ("float32", "int64", "int32"):
            raise ModelError(f"input {parameter.name!r} is {kind}; {INPUTS}")
        if kind != "float32":
            reader.integers.add(parameter.name)
        inputs.append(parameter.name)
        reader.inputs.append(parameter.name)
        reader.env[parameter] = parameter.name
        reader.values[parameter.name] = Value(parameter.name, shape)
    bindings = [binding for block in function.body.blocks for binding in block.bindings]
    for binding, label in zip(bindings, labels or [""] * len(bindings), strict=True):
        op = getattr(getattr(binding.value, "op", None), "name", type(binding.value).__name__)
        reader.where = label or f"operator {op.split('.')[-1]}"
        reader.bind(binding.var, binding.value)
    reader.where = "an output of the model"
    result = reader.operand(function.body.body)
    outputs = result if isinstance(result, tuple) else (result,)
    for output in outputs:
        if output not in reader.values:
            raise ModelError("an output of the model does not depend on its inputs; remove it from the model")
    if len(output_names) != len(outputs):
        output_names = [f"output_{index}" for index in range(len(outputs))] if len(outputs) > 1 else ["output"]
    graph = Graph(
        name, tuple(inputs), tuple(outputs), tuple(reader.nodes), reader.values, reader.constants,
        output_names=tuple(output_names),
    )  # fmt: skip
    return simplify(graph, names)
