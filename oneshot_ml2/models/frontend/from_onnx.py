"""ONNX files through TVM Relax."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models.frontend import origins
from oneshot_ml2.models.frontend.from_relax import INPUTS, first_line, from_relax, quiet
from oneshot_ml2.models.ir import Graph
from oneshot_ml2.models.ops.registry import ops

if TYPE_CHECKING:
    from oneshot_ml2.models.ops.base import Array

# ONNX operator -> ours, to give layers their names in the file.
_ONNX_OPS = {name: op.named or op.name for op in ops().values() for name in op.onnx_layers}
_SUPPORTED_ONNX = tuple(sorted({name for op in ops().values() for name in op.onnx}))
_FIX_SHAPES = (
    "export the model with fixed shapes, or fix them with python -m onnxruntime.tools.make_dynamic_shape_fixed"
)


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
        raise ModelError(f"{path} is no valid ONNX model: {first_line(error)}") from error
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
            raise ModelError(f"{path}: input {entry.name!r} is {kind}; {INPUTS}")
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
        with quiet():
            module, labels = origins.import_nodes(_fold_shapes(model), _SUPPORTED_ONNX)
        return from_relax(module, path.stem, names, _SUPPORTED_ONNX, outputs, labels)
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
            raise ModelError(f"its shapes cannot be inferred: {first_line(error)}") from error
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
                    raise ModelError(f"{what}: {first_line(error)}") from error
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
