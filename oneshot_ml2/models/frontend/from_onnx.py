"""ONNX files through TVM Relax."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models.frontend import origins
from oneshot_ml2.models.frontend.from_relax import INPUTS, from_relax, quiet
from oneshot_ml2.models.frontend.onnx_file import read_onnx
from oneshot_ml2.models.frontend.onnx_prepare import prepare
from oneshot_ml2.models.frontend.onnx_shapes import fix_shapes
from oneshot_ml2.models.ir import Graph
from oneshot_ml2.models.ops.registry import ops
from oneshot_ml2.models.simplify import in_module

# ONNX operator -> ours, to give layers their names in the file.
_ONNX_OPS = {name: op.named or op.name for op in ops().values() for name in op.onnx_layers}
_SUPPORTED_ONNX = tuple(sorted({name for op in ops().values() for name in op.onnx}))


def import_onnx(path: str | Path, shapes: Mapping[str, Sequence[int]] | None = None) -> Graph:
    """An ONNX file as a graph.

    Args:
        shapes: of inputs whose dimensions the file leaves free, by name; a free batch that none is given for is 1.

    Raises:
        ModelError: unreadable or broken, free dimensions, inputs that are neither float32 nor token ids, or operators
            that are not supported; each says which, and which nodes they are.
        ModuleNotFoundError: onnx or tvm is not installed.
    """
    path = Path(path)
    # TVM takes seconds to import: not for a file that cannot be read.
    given = [read_onnx(path)]
    notes = fix_shapes(given[0], shapes or {}, str(path))
    try:
        # Its weights are not kept here while others are made of them.
        graph = from_proto(given.pop(), path.stem)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    return dataclasses.replace(graph, notes=(*notes, *graph.notes))


def from_proto(model: Any, name: str) -> Graph:
    """An ONNX model of fixed shapes as a graph; the model is changed on the way.

    Raises:
        ModelError: as `import_onnx`.
    """
    with quiet():
        model, notes = prepare(model, _SUPPORTED_ONNX)
        outputs = [entry.name for entry in model.graph.output]
        _check_inputs(model.graph)
        imported = [origins.import_nodes(model, _SUPPORTED_ONNX)]
    names = _names(model.graph)
    # The weights are TVM's now, and soon numpy's: large models have no room for one copy more.
    del model
    graph = from_relax(imported.pop(), name, names, _SUPPORTED_ONNX, outputs)
    return dataclasses.replace(graph, notes=tuple(notes))


def _check_inputs(graph: Any) -> None:
    """Raise ModelError unless an ONNX graph's inputs are of types that can be compiled."""
    from onnx import TensorProto

    for entry in graph.input:
        kind = entry.type.tensor_type.elem_type
        if kind not in (TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL):
            raise ModelError(f"input {entry.name!r} is {TensorProto.DataType.Name(kind).lower()}; {INPUTS}")


def _names(graph: Any) -> dict[str, list[tuple[str, str]]]:
    """Our operators -> (name, tensor) of each of their nodes, in order."""
    constants = {tensor.name for tensor in graph.initializer}
    names: dict[str, list[tuple[str, str]]] = {}
    for node in graph.node:
        kind = node.op_type
        if kind in ("DequantizeLinear", "Transpose", "Constant") and constants.issuperset(node.input):
            constants.add(node.output[0])
        # A product of two activations is no layer.
        if kind != "MatMul" or node.input[1] in constants:
            op = _ONNX_OPS.get(kind, kind)
            names.setdefault(op, []).append((_scope(node, op) or _module_path(node.name), node.output[0]))
    return names


# Where PyTorch's newer exporter says which module a node is from: the modules' names from the outermost on, and last
# what the node computes.
_SCOPES = "pkg.torch.onnx.name_scopes"


def _scope(node: Any, op: str) -> str:
    """The module that a node is from, if the file says so; empty: it does not, or it is the outermost one."""
    text = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "")
    try:
        scopes = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return ""
    named = isinstance(scopes, list) and len(scopes) > 1 and all(isinstance(scope, str) for scope in scopes)
    return in_module(scopes[-2], op) if named else ""


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
