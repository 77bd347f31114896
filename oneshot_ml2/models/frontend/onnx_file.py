"""ONNX files: read, and checked for what can be told at first sight."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from oneshot_ml2.common.errors import ModelError, first_line

# Where onnxruntime keeps its own operators.
MICROSOFT = "com.microsoft"
# Elements up to which a constant may be a shape.
_SHAPES = 1 << 10


def check_onnx_file(path: str | Path) -> None:
    """Raise ModelError, before anything that takes long, for what cannot be an ONNX file."""
    try:
        with Path(path).open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
    if empty:
        raise ModelError(f"{path} is empty; it should be an ONNX model")


def read_onnx(path: Path) -> Any:
    """A checked ONNX model with its external data, which are files beside it; inputs are what it has to be given.

    Raises:
        ModelError: no ONNX model, or one that is broken, or its external data are.
        ModuleNotFoundError: onnx is not installed.
    """
    check_onnx_file(path)
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
        _check(model, path)
        onnx.load_external_data_for_model(model, str(path.resolve().parent))
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
    if opset_of(model) > known:
        raise ModelError(f"{path} is of opset {opset_of(model)}; the installed onnx knows opsets up to {known}")
    names = _inputs(model.graph)
    inputs = [entry for entry in model.graph.input if entry.name in names]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    return model


def input_names(path: str | Path) -> list[str]:
    """What an ONNX file's inputs are called; its weights beside it are not read.

    Raises:
        ModelError: no ONNX file.
    """
    check_onnx_file(path)
    import onnx

    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except Exception as error:
        raise ModelError(f"{path} is no valid ONNX model: {first_line(error)}") from error
    return _inputs(graph)


def _inputs(graph: Any) -> list[str]:
    # Up to IR version 3 initializers are inputs as well.
    constants = {tensor.name for tensor in graph.initializer}
    return [entry.name for entry in graph.input if entry.name not in constants]


def _check(model: Any, path: Path) -> None:
    """Raise onnx's own errors for a model that is broken, or whose external data lie elsewhere than beside its file."""
    import onnx

    ends = (*model.graph.input, *model.graph.output)
    if all(entry.type.tensor_type.HasField("shape") or not entry.type.HasField("tensor_type") for entry in ends):
        # By its path there is no limit of 2 GiB.
        onnx.checker.check_model(str(path))
        return
    # It asks for shapes, which onnxruntime and who writes for it do not.
    shaped = onnx.ModelProto()
    shaped.CopyFrom(model)
    for entry in (*shaped.graph.input, *shaped.graph.output):
        entry.type.tensor_type.shape.SetInParent()
    onnx.checker.check_model(shaped)


def opset_of(model: Any) -> int:
    """The version of ONNX's own operators in a model."""
    return next((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)


def without_weights(model: Any) -> Any:
    """The model for the inference of shapes, which no large constant says anything of: these without their elements."""
    import onnx

    light = onnx.ModelProto()
    for name in ("opset_import", "functions", "metadata_props"):
        getattr(light, name).extend(getattr(model, name))
    light.ir_version = model.ir_version
    graph = light.graph
    graph.name = model.graph.name
    for name in ("node", "input", "output", "value_info", "sparse_initializer"):
        getattr(graph, name).extend(getattr(model.graph, name))
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= _SHAPES:
            graph.initializer.append(tensor)
        else:
            graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    return light
