"""ONNX files and PyTorch modules, through TVM Relax, as a `Graph` of float operators.

Quantized ONNX models (QDQ) keep their ``quantize`` and ``dequantize`` operators; `quantize` makes integers of both.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.errors import ModelError, OneShotError
from oneshot_ml2.graph import is_onnx, origins, partition
from oneshot_ml2.graph.ir import Graph, Node, Value

if TYPE_CHECKING:
    from torch import nn

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
# ONNX operator -> ours, to give layers their names in the file.
_ONNX_OPS = {
    "Conv": "conv2d",
    "ConvTranspose": "conv2d_transpose",
    "Gemm": "dense",
    "MatMul": "dense",
    "Relu": "relu",
    "Add": "add",
    "QuantizeLinear": "quantize",
    "MaxPool": "max_pool2d",
    "AveragePool": "avg_pool2d",
    "GlobalAveragePool": "avg_pool2d",
    "Flatten": "reshape",
}
_TORCH_OPS = {
    "conv2d.default": "conv2d",
    "conv_transpose2d.input": "conv2d_transpose",
    "matmul.default": "batch_matmul",
    "add.Tensor": "add",
    "add_.Tensor": "add",
    "softmax.int": "softmax",
    "layer_norm.default": "layer_norm",
    "gelu.default": "gelu",
    "embedding.default": "take",
    "linear.default": "dense",
    "relu.default": "relu",
    "relu_.default": "relu",
    "max_pool2d.default": "max_pool2d",
    "adaptive_avg_pool2d.default": "avg_pool2d",
}
# Those that have no module of their own in PyTorch.
_NAMELESS = ("batch_matmul", "add", "softmax")
_SUPPORTED = sorted(
    {name.split(".")[-1] for name in (*_RESHAPES, *_ELEMENTWISE)}
    | {"conv2d", "conv2d_transpose", "matmul", "take", "split", "strided_slice", "broadcast_to", "max_pool2d"}
    | {"avg_pool2d", "adaptive_avg_pool2d", "mean", "softmax", "layer_norm", "batch_norm"}
    | {"clip", "concat", "permute_dims", "quantize", "dequantize", "dropout"}
)


_SUPPORTED_ONNX = (
    "Add", "AveragePool", "BatchNormalization", "Clip", "Concat", "Conv", "ConvTranspose", "DequantizeLinear", "Div",
    "Dropout", "Erf", "Exp", "Expand", "Flatten", "Gather", "Gelu", "Gemm", "GlobalAveragePool", "LayerNormalization",
    "MatMul", "MaxPool", "Mul", "Pow", "QuantizeLinear", "ReduceMean", "Relu", "Reshape", "Sigmoid", "Slice", "Softmax",
    "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze",
)  # fmt: skip
_FIX_SHAPES = (
    "export the model with fixed shapes, or fix them with python -m onnxruntime.tools.make_dynamic_shape_fixed"
)
_INPUTS = "only float32 inputs are supported, and int64 ones as indices of embeddings"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of PyTorch and TVM on their own internals."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def check_onnx_file(path: str | Path) -> None:
    """Raise ModelError, before anything that takes long, for what cannot be an ONNX file."""
    try:
        with Path(path).open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
    if empty:
        raise ModelError(f"{path} is empty; it should be an ONNX model")


def _read_onnx(path: Path) -> Any:
    """A checked ONNX model.

    Raises:
        ModelError: no ONNX model, or one that is broken, or its external data are.
        ModuleNotFoundError: onnx is not installed.
    """
    check_onnx_file(path)
    import onnx

    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
    except OSError as error:
        raise ModelError(f"cannot read {error.filename or path}: {error.strerror or error}") from error
    except MemoryError:
        raise
    except Exception as error:
        # protobuf's and onnx's own exceptions share no base.
        raise ModelError(f"{path} is no valid ONNX model: {_first_line(error)}") from error
    if not model.graph.node:
        raise ModelError(f"{path} is no valid ONNX model: it has no operators")
    known = onnx.defs.onnx_opset_version()
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx") and entry.version > known:
            raise ModelError(f"{path} is of opset {entry.version}; the installed onnx knows opsets up to {known}")
    return model


def _check_inputs(path: Path, graph: Any) -> None:
    """Raise ModelError unless an ONNX graph's inputs are of types and fixed shapes that can be compiled."""
    from onnx import TensorProto

    constants = {tensor.name for tensor in graph.initializer}
    for entry in graph.input:
        if entry.name in constants:
            continue
        tensor = entry.type.tensor_type
        if tensor.elem_type not in (TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32):
            kind = TensorProto.DataType.Name(tensor.elem_type).lower()
            raise ModelError(f"{path}: input {entry.name!r} is {kind}; {_INPUTS}")
        if not tensor.HasField("shape"):
            raise ModelError(f"{path}: input {entry.name!r} has no shape; {_FIX_SHAPES}")
        for axis, dim in enumerate(tensor.shape.dim):
            if dim.dim_value <= 0:
                what = f"dimension {axis} of input {entry.name!r} is dynamic ({dim.dim_param or '?'})"
                raise ModelError(f"{path}: {what}; {_FIX_SHAPES}")


def import_onnx(path: str | Path) -> Graph:
    """An ONNX file as a graph.

    Raises:
        ModelError: unreadable or broken, dynamic shapes, inputs that are neither float32 nor token ids, or an operator
            that is not supported; each says which, and which node it is.
        ModuleNotFoundError: onnx or tvm is not installed.
    """
    path = Path(path)
    # TVM takes seconds to import: not for a file that cannot be read.
    model = _read_onnx(path)
    _check_inputs(path, model.graph)
    constants = {tensor.name for tensor in model.graph.initializer}
    names: dict[str, list[tuple[str, str]]] = {}
    for node in model.graph.node:
        kind = node.op_type
        if kind.startswith("QLinear") or kind in ("QGemm", "ConvInteger", "MatMulInteger"):
            raise ModelError(
                f"{path}: {origins.label(node)} is of the QOperator format; quantize with QuantFormat.QDQ instead"
            )
        if kind in ("DequantizeLinear", "Transpose", "Constant") and constants.issuperset(node.input):
            constants.add(node.output[0])
        # A product of two activations is no layer.
        if kind != "MatMul" or node.input[1] in constants:
            names.setdefault(_ONNX_OPS.get(kind, kind), []).append((_module_path(node.name), node.output[0]))
    outputs = [entry.name for entry in model.graph.output]
    try:
        with _quiet():
            module, labels = origins.import_nodes(_fold_shapes(model), _SUPPORTED_ONNX)
        return _from_relax(module, path.stem, names, _SUPPORTED_ONNX, outputs, labels)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def _fold_shapes(model: Any) -> Any:
    """An ONNX model whose shapes are constants, where its operators compute them from those of its tensors.

    Raises:
        ModelError: shapes that contradict each other, or constants that do not fit their operator.
    """
    import onnx
    from onnx import numpy_helper
    from onnx.reference import ReferenceEvaluator

    if not any(node.op_type in ("Shape", "Size") for node in model.graph.node):
        return model
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    known: dict[str, Array] = {}
    while True:
        try:
            inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
        except Exception as error:
            # It names the node itself.
            raise ModelError(f"its shapes cannot be inferred: {_first_line(error)}") from error
        shapes = {
            entry.name: [dim.dim_value for dim in entry.type.tensor_type.shape.dim]
            for entry in (*inferred.graph.value_info, *inferred.graph.input)
            if all(dim.HasField("dim_value") for dim in entry.type.tensor_type.shape.dim)
        }
        shapes |= {name: list(tensor.dims) for name, tensor in constants.items()}
        left = []
        for node in model.graph.node:
            for name in node.input:
                # Only what shapes are made of; tables and weights are none.
                if name in constants and name not in known and math.prod(constants[name].dims) <= 64:
                    known[name] = numpy_helper.to_array(constants[name])
            if node.op_type == "Shape" and node.input[0] in shapes:
                begin, end = ([a.i for a in node.attribute if a.name == key] for key in ("start", "end"))
                size = shapes[node.input[0]][slice(begin[0] if begin else None, end[0] if end else None)]
                known[node.output[0]] = np.array(size, dtype=np.int64)
            elif node.op_type != "DequantizeLinear" and all(name in known or not name for name in node.input):
                if any(attribute.g.node or attribute.graphs for attribute in node.attribute):
                    left.append(node)
                    continue
                operands = {name: known[name] for name in node.input if name}
                try:
                    known |= zip(node.output, ReferenceEvaluator(node).run(None, operands), strict=True)
                except Exception as error:
                    what = f"{origins.label(node)} cannot be computed of its constants"
                    raise ModelError(f"{what}: {_first_line(error)}") from error
            else:
                left.append(node)
        if len(left) == len(model.graph.node):
            return model
        kept = onnx.ModelProto()
        kept.CopyFrom(model)
        del kept.graph.node[:]
        kept.graph.node.extend(left)
        needed = {name for node in left for name in node.input} | {entry.name for entry in model.graph.output}
        for name in sorted(needed & set(known) - set(constants)):
            constants[name] = numpy_helper.from_array(known[name], name)
            kept.graph.initializer.append(constants[name])
        model = kept


def import_torch(module: nn.Module, example_inputs: Sequence[Any], name: str | None = None) -> Graph:
    """A PyTorch module as a graph, by ``torch.export`` at the shapes of its example inputs (float32, or token ids).

    Raises:
        ModelError: it cannot be exported, or has an operator that is not supported.
        ModuleNotFoundError: tvm is not installed.
    """
    import torch
    from tvm.relax.frontend.torch import from_exported_program

    for index, example in enumerate(example_inputs):
        allowed = (torch.float32, torch.int64, torch.int32)
        if not isinstance(example, torch.Tensor) or example.dtype not in allowed:
            kind = example.dtype if isinstance(example, torch.Tensor) else type(example).__name__
            raise ModelError(f"example input {index} is {kind}; {_INPUTS}")
    with _quiet():
        try:
            program = torch.export.export(module.eval(), tuple(example_inputs))
        except Exception as error:
            raise ModelError(f"torch.export cannot export {type(module).__name__}: {_first_line(error)}") from error
        try:
            relax_module = from_exported_program(program, unwrap_unit_return_tuple=True)
        except Exception as error:
            raise ModelError(f"TVM cannot import {type(module).__name__}: {_first_line(error)}") from error
    names: dict[str, list[tuple[str, str]]] = {}
    for node in program.graph.nodes:
        op = _TORCH_OPS.get(getattr(node.target, "__name__", "")) if node.op == "call_function" else None
        if op is not None:
            stack = list((node.meta.get("nn_module_stack") or {}).values())
            path = stack[-1][0] if stack else ""
            names.setdefault(op, []).append((f"{path}.{op}" if path and op in _NAMELESS else path, node.name))
    return _from_relax(relax_module, name or type(module).__name__, names, _SUPPORTED)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


def _module_path(name: str) -> str:
    """``layer1.0.conv1`` for the node that PyTorch's exporter calls ``/layer1/layer1.0/conv1/Conv``."""
    *parts, last = [part for part in name.split("/") if part] or [""]
    if not parts:
        return last
    path = previous = parts[0]
    for part in parts[1:]:
        # A child of a Sequential repeats its parent's name.
        path += part[len(previous) :] if part.startswith(previous + ".") else "." + part
        previous = part
    # A residual has no module of its own.
    return f"{path}.add" if last.startswith("Add") else path


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
            from oneshot_ml2.graph import operators

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


def _from_relax(
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
            raise ModelError(f"input {parameter.name!r} is {kind}; {_INPUTS}")
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
    return _simplify(graph, names)


def _simplify(graph: Graph, names: Mapping[str, list[tuple[str, str]]]) -> Graph:
    """Fold constants into layers, name nodes as the model does, and drop what nothing reads."""
    graph = drop_unused(fold_moves(hoist_scales(fold_layers(fold_constants(graph)))))
    renamed, labels = [], {}
    taken: set[str] = set()
    kinds: dict[str, int] = {}
    for node in graph.nodes:
        kinds[node.op] = kinds.get(node.op, 0) + 1
    seen: dict[str, int] = {}
    for node in graph.nodes:
        index = seen.get(node.op, 0)
        seen[node.op] = index + 1
        known = names.get(node.op, [])
        # Only if every operator of that kind has come through, so that none takes another one's name.
        if len(known) == kinds[node.op]:
            label, tensor = known[index]
            labels[node.output] = tensor
            if node.op in _NAMELESS and label in taken:
                label = next(name for n in itertools.count(1) if (name := f"{label}_{n}") not in taken)
            if label and label not in taken:
                taken.add(label)
                node = dataclasses.replace(node, name=label)
        renamed.append(node)
    return dataclasses.replace(graph, nodes=tuple(renamed), labels=labels)


def fold_constants(graph: Graph) -> Graph:
    """Replace dequantized, reshaped and permuted constants by their values.

    A dequantized constant's scale is kept: see ``attrs['scales']`` of the layers that read it.
    """
    from oneshot_ml2.graph import operators

    constants = dict(graph.constants)
    scales: dict[str, tuple[Array, int]] = {}
    kept: list[Node] = []
    for node in graph.nodes:
        if node.inputs and all(name in constants for name in node.inputs) and node.op in operators.FLOAT:
            out = graph.values[node.output].shape
            array = operators.FLOAT[node.op]([constants[name] for name in node.inputs], node.attrs, out)
            constants[node.output] = np.asarray(array, dtype=np.float32)
            if node.op == "dequantize":
                scales[node.output] = (node.attrs["scale"], node.attrs["axis"] % max(array.ndim, 1))
            elif node.inputs[0] in scales:
                scale, axis = scales[node.inputs[0]]
                if node.op == "permute":
                    axis = tuple(node.attrs["axes"]).index(axis)
                if node.op == "permute" or scale.ndim == 0:
                    scales[node.output] = (scale, axis)
            continue
        kept.append(node)
    values = {name: value for name, value in graph.values.items() if name not in constants}
    nodes = [
        dataclasses.replace(node, attrs={**node.attrs, "weight_scale": scales[node.inputs[1]]})
        if len(node.inputs) > 1 and node.inputs[1] in scales and node.op in ("conv2d", "conv2d_transpose", "matmul")
        else node
        for node in kept
    ]
    return dataclasses.replace(graph, nodes=tuple(nodes), constants=constants, values=values)


def fold_layers(graph: Graph) -> Graph:
    """Products with constant matrices become ``dense``; scales and biases after a layer go into it."""
    constants = dict(graph.constants)
    users = graph.users()
    made: dict[str, Node] = {}
    # Value that a folded node made -> the value that now stands for it.
    alias: dict[str, str] = {}
    order: list[str] = []

    def constant(array: Array) -> str:
        name = f"folded_{len(constants)}"
        constants[name] = np.ascontiguousarray(array, dtype=np.float32)
        return name

    for node in graph.nodes:
        inputs = tuple(alias.get(name, name) for name in node.inputs)
        alone = bool(inputs) and len(users[node.inputs[0]]) == 1 and node.inputs[0] not in graph.outputs
        node = dataclasses.replace(node, inputs=inputs)
        source = made.get(inputs[0]) if inputs else None
        if node.op == "matmul" and inputs[1] in constants and constants[inputs[1]].ndim == 2:
            weight = np.ascontiguousarray(constants[inputs[1]].T)
            attrs = dict(node.attrs)
            if "weight_scale" in attrs:
                scale, axis = attrs["weight_scale"]
                attrs["weight_scale"] = (scale, 1 - axis)
            node = dataclasses.replace(node, op="dense", inputs=(inputs[0], constant(weight)), attrs=attrs)
        elif (
            node.op in ("add", "multiply")
            and source is not None
            and source.op in ("conv2d", "conv2d_transpose", "dense")
            and alone
            and len(inputs) == 2
            and inputs[1] in constants
        ):
            shape = graph.values[node.output].shape
            channels = _per_channel(constants[inputs[1]], shape, source.op)
            scales = node.op == "multiply"
            grouped = source.op == "conv2d_transpose" and source.attrs["groups"] > 1
            if channels is not None and not (scales and ("weight_scale" in source.attrs or grouped)):
                weight = constants[source.inputs[1]]
                bias = constants[source.inputs[2]] if len(source.inputs) > 2 else np.zeros(len(channels), np.float32)
                if node.op == "add":
                    bias = bias + channels
                else:
                    outer = (1,) if source.op == "conv2d_transpose" else ()
                    weight = weight * channels.reshape((*outer, -1) + (1,) * (weight.ndim - 1 - len(outer)))
                    bias = bias * channels
                folded = (source.inputs[0], source.inputs[1] if node.op == "add" else constant(weight), constant(bias))
                made[source.output] = dataclasses.replace(source, inputs=folded)
                alias[node.output] = source.output
                continue
        made[node.output] = node
        order.append(node.output)
    outputs = tuple(alias.get(name, name) for name in graph.outputs)
    return dataclasses.replace(graph, nodes=tuple(made[name] for name in order), constants=constants, outputs=outputs)


def hoist_scales(graph: Graph) -> Graph:
    """Scalars that multiply the operands of a batch_matmul, as attention has them, multiply its result instead."""
    users, producers = graph.users(), graph.producers()
    values, constants = dict(graph.values), dict(graph.constants)
    # Value of a multiplication that moves -> its operand; product -> what multiplies it now.
    alias: dict[str, str] = {}
    factors: dict[str, float] = {}
    for node in graph.nodes:
        for name in node.inputs if node.op == "batch_matmul" else ():
            source = producers.get(name)
            while source is not None and len(users[source.output]) == 1 and source.output not in graph.outputs:
                if source.op == "multiply" and constants.get(source.inputs[1], np.zeros(2)).size == 1:
                    alias[source.output] = source.inputs[0]
                    scalar = float(constants[source.inputs[1]].reshape(()))
                    factors[node.output] = factors.get(node.output, 1.0) * scalar
                elif source.op not in partition.MOVES:
                    break
                source = producers.get(source.inputs[0])
    nodes = []
    for node in graph.nodes:
        if node.output in alias:
            continue
        inputs = []
        for name in node.inputs:
            while name in alias:
                name = alias[name]
            inputs.append(name)
        node = dataclasses.replace(node, inputs=tuple(inputs))
        if node.output not in factors:
            nodes.append(node)
            continue
        product, factor = f"{node.output}.product", f"{node.output}.factor"
        values[product] = dataclasses.replace(values[node.output], name=product)
        constants[factor] = np.array(factors[node.output], dtype=np.float32)
        nodes.append(dataclasses.replace(node, output=product))
        nodes.append(Node(f"{node.name}.scale", "multiply", (product, factor), node.output))
    return dataclasses.replace(graph, nodes=tuple(nodes), values=values, constants=constants)


def fold_moves(graph: Graph) -> Graph:
    """Compose reshapes with reshapes and permutes with permutes, and drop those that change nothing.

    Dense layers take tensors as they are, without a reshape to a matrix before and one back after them. The permute of
    a product's operand meets the one before it, past the reshape between them.
    """
    graph = _unflattened(graph)
    values = dict(graph.values)
    made: dict[str, Node] = {}
    alias: dict[str, str] = {}
    kept: list[Node] = []

    def keep(node: Node) -> str:
        made[node.output] = node
        kept.append(node)
        return node.output

    def permuted(x: str, axes: tuple[int, ...], name: str) -> str:
        """``x`` with its axes in another order, as the value ``name``; what it is anyway, if that changes nothing."""
        source, shape = made.get(x), values[x].shape
        if source is not None and source.op == "permute":
            return permuted(source.inputs[0], tuple(source.attrs["axes"][axis] for axis in axes), name)
        if axes == tuple(range(len(axes))):
            return x
        if source is not None and source.op == "reshape" and axes == (0, 2, 1):
            before = values[source.inputs[0]].shape
            if len(before) > 3 and before[-2:] == shape[-2:]:
                # The reshape merges leading axes only: turn the last two before it.
                rank = len(before)
                swapped = (*range(rank - 2), rank - 1, rank - 2)
                inner = permuted(source.inputs[0], swapped, f"{name}.permuted")
                return reshaped(inner, (shape[0], shape[2], shape[1]), name)
        values[name] = dataclasses.replace(values[x], name=name, shape=tuple(shape[axis] for axis in axes))
        return keep(Node(name, "permute", (x,), name, {"axes": axes}))

    def reshaped(x: str, shape: tuple[int, ...], name: str) -> str:
        source = made.get(x)
        if source is not None and source.op == "reshape":
            return reshaped(source.inputs[0], shape, name)
        if values[x].shape == shape:
            return x
        values[name] = dataclasses.replace(values[x], name=name, shape=shape)
        return keep(Node(name, "reshape", (x,), name))

    for node in graph.nodes:
        inputs = tuple(alias.get(name, name) for name in node.inputs)
        if node.op == "permute" and inputs[0] in values:
            alias[node.output] = permuted(inputs[0], tuple(node.attrs["axes"]), node.output)
        elif node.op == "reshape" and inputs[0] in values:
            alias[node.output] = reshaped(inputs[0], values[node.output].shape, node.output)
        else:
            keep(dataclasses.replace(node, inputs=inputs))
    outputs = tuple(alias.get(name, name) for name in graph.outputs)
    return drop_unused(dataclasses.replace(graph, nodes=tuple(kept), values=values, outputs=outputs))


def _unflattened(graph: Graph) -> Graph:
    """Dense layers between a reshape to a matrix and reshapes back, without the first one."""
    users, producers = graph.users(), graph.producers()
    values = dict(graph.values)
    nodes = []
    for node in graph.nodes:
        source = producers.get(node.inputs[0]) if node.op == "dense" else None
        if source is not None and source.op == "reshape" and node.output not in graph.outputs:
            before, after = graph.shape(source.inputs[0]), graph.shape(source.output)
            back = all(user.op == "reshape" for user in users[node.output])
            if back and len(before) > 2 and len(after) == 2 and before[-1] == after[-1]:
                node = dataclasses.replace(node, inputs=(source.inputs[0], *node.inputs[1:]))
                shape = (*before[:-1], graph.shape(node.output)[-1])
                values[node.output] = dataclasses.replace(values[node.output], shape=shape)
        nodes.append(node)
    return dataclasses.replace(graph, nodes=tuple(nodes), values=values)


def _per_channel(array: Array, shape: tuple[int, ...], op: str) -> Array | None:
    """A constant as one number per output channel (K,), or None if it is not that."""
    axis = len(shape) - 1 if op == "dense" else 1
    full = (1,) * (len(shape) - array.ndim) + tuple(array.shape)
    if len(full) != len(shape) or any(size != 1 for i, size in enumerate(full) if i != axis):
        return None
    return np.broadcast_to(array.reshape(-1), (shape[axis],)).astype(np.float32)


def drop_unused(graph: Graph) -> Graph:
    """Without nodes, values and constants that no output depends on."""
    needed = set(graph.outputs)
    kept = []
    for node in reversed(graph.nodes):
        if node.output in needed:
            kept.append(node)
            needed.update(node.inputs)
    kept.reverse()
    return dataclasses.replace(
        graph,
        nodes=tuple(kept),
        values={name: value for name, value in graph.values.items() if name in needed or name in graph.inputs},
        constants={name: array for name, array in graph.constants.items() if name in needed},
    )


def import_model(model: Any, example_inputs: Sequence[Any] | None = None, size: int = 224) -> Graph:
    """A path ending in ``.onnx``, a name of the zoo (`models.model_names`), or a PyTorch module with example inputs.

    Raises:
        OneShotError: none of them, or a model that cannot be imported.
    """
    if isinstance(model, (str, Path)):
        if is_onnx(model):
            return import_onnx(model)
        from oneshot_ml2 import models

        if size < 1:
            raise OneShotError(f"size is {size}; allowed: at least 1")
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = models.build(str(model))
        return import_torch(module, (models.example_input(str(model), size),), str(model))
    if example_inputs is None:
        raise ModelError("a PyTorch module needs example_inputs, a tuple of tensors that fix the shapes")
    return import_torch(model, example_inputs)
