"""ONNX models as TVM's importer takes them: what they compute of constants and shapes is computed, and tensors are
float32.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from oneshot_ml2.common.errors import ModelError, first_line
from oneshot_ml2.models.frontend.onnx_branches import take_branches
from oneshot_ml2.models.frontend.onnx_ends import cut_ends
from oneshot_ml2.models.frontend.onnx_file import opset_of, without_weights
from oneshot_ml2.models.frontend.onnx_masks import bound_masks
from oneshot_ml2.models.frontend.onnx_quantized import QUANTIZED, is_quantized, to_qdq

# From here on a scale of each channel can say along which axis they lie.
_CHANNEL_SCALES = 13

# What is a loop when it is expanded; of constants it is computed.
_LOOPS = ("Range", "SequenceMap")


def prepare(model: Any, known: Collection[str]) -> tuple[Any, list[str]]:
    """Resolve what need not be left to the compiled model.

    Args:
        model: an ONNX model of fixed shapes, which may be changed; ``known``: operators that need not be expanded to
            what they are made of.

    Returns:
        The model, a new one where memory would hold the old one's weights, too, and lines on what was changed of what
        it computes.

    Raises:
        ModelError: shapes that contradict each other, or a quantization that is not supported.
    """
    from onnx import inliner

    if model.functions:
        model = inliner.inline_local_functions(model)
    model = _fold(model)
    changes = take_branches(model)
    if changes:
        model = _fold(model)
    expanded = _expand(model, {*known, *QUANTIZED, *_LOOPS})
    if expanded is not model:
        model = _fold(expanded)
    changes += _trained(model)
    if is_quantized(model):
        if opset_of(model) < _CHANNEL_SCALES:
            model = _convert(model, _CHANNEL_SCALES)
        changes += to_qdq(model)
        model = _fold(model)
    changes += _as_float32(model)
    changes += cut_ends(model)
    bound_masks(model.graph)
    return model, changes


def _expand(model: Any, known: Collection[str]) -> Any:
    """The model with ONNX's operators that are not ``known`` replaced by what they are made of, where the standard says
    it; the same one if there are none.
    """
    import onnx
    from onnx import defs, helper, inliner

    version, expanded = opset_of(model), set()
    for node in nodes(model.graph):
        if node.domain == "" and node.op_type not in known and defs.has(node.op_type):
            schema = defs.get_schema(node.op_type, version)
            if schema.has_function or schema.has_context_dependent_function:
                expanded.add(("", node.op_type))
    if expanded:
        # Some depend on the types of their operands, also of constants.
        inferred = onnx.shape_inference.infer_shapes(model)
        for tensor in model.graph.initializer:
            info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            inferred.graph.value_info.append(info)
        return inliner.inline_selected_functions(inferred, sorted(expanded), inline_schema_functions=True)
    return model


def nodes(graph: Any) -> Iterator[Any]:
    """The nodes of a graph and of all graphs inside of them."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from nodes(inner)


def _fold(model: Any) -> Any:
    """The model with what follows from constants and shapes alone computed; dequantized weights stay as they are.

    Raises:
        ModelError: shapes that contradict each other, or constants that do not fit their operator.
    """
    if not _foldable(model.graph):
        return model
    import onnx
    from onnx_ir.passes import common
    from onnxscript import ir, optimizer

    try:
        # With the values of shapes, which tells more of what follows from them.
        inferred = onnx.shape_inference.infer_shapes(without_weights(model), data_prop=True)
    except Exception as error:
        # It names the node itself.
        raise ModelError(f"its shapes cannot be inferred: {first_line(error)}") from error
    quantizers = ("QuantizeLinear", "DequantizeLinear")
    logger = logging.getLogger("onnxscript")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        for name in ("node", "value_info", "output"):
            part = getattr(model.graph, name)
            del part[:]
            part.extend(getattr(inferred.graph, name))
        graph = ir.serde.deserialize_model(model)
        optimizer.fold_constants(
            graph, onnx_shape_inference=True, output_size_limit=1 << 30,
            should_fold=lambda node: node.op_type not in quantizers,
        )  # fmt: skip
        optimizer.remove_unused_nodes(graph)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(graph)
        return ir.serde.serialize_model(graph)
    except Exception as error:
        raise ModelError(f"its constants cannot be computed: {first_line(error.__cause__ or error)}") from error
    finally:
        logger.setLevel(level)


def _trained(model: Any) -> list[str]:
    """A line on dropouts that are in training mode; they do nothing here."""
    from onnx import numpy_helper

    known = {tensor.name: tensor for tensor in model.graph.initializer}
    modes = [node.input[2] for node in model.graph.node if node.op_type == "Dropout" and len(node.input) > 2]
    on = sum(name in known and bool(numpy_helper.to_array(known[name])) for name in modes)
    return [f"{on} dropouts are in training mode in the file, and do nothing here"] if on else []


def _foldable(graph: Any) -> bool:
    """Whether anything in a graph may follow from constants or shapes alone."""
    constants = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in ("Constant", "Shape", "Size", "If", "Dropout", "Identity"):
            return True
        if node.op_type != "DequantizeLinear" and constants.issuperset(node.input):
            return True
    return False


def _convert(model: Any, opset: int) -> Any:
    """A model of a later opset.

    Raises:
        ModelError: there is no way to.
    """
    from onnx import version_converter

    try:
        return version_converter.convert_version(model, opset)
    except Exception as error:
        what = f"it is of opset {opset_of(model)} and cannot be brought to {opset}; export it anew"
        raise ModelError(f"{what}: {first_line(error)}") from error


def _as_float32(model: Any) -> list[str]:
    """Make float32 of all tensors that are other floats, and of inputs that are cast to floats at once."""
    from onnx import TensorProto, numpy_helper

    graph, other = model.graph, (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
    found: set[int] = set()

    def replaced(tensor: Any) -> None:
        if tensor.data_type in other:
            found.add(tensor.data_type)
            array = np.asarray(numpy_helper.to_array(tensor)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    for tensor in graph.initializer:
        replaced(tensor)
    for node in nodes(graph):
        for attribute in node.attribute:
            if attribute.name == "to" and node.op_type == "Cast" and attribute.i in other:
                found.add(attribute.i)
                attribute.i = TensorProto.FLOAT
            elif attribute.HasField("t"):
                replaced(attribute.t)
    changes = []
    if found:
        kinds = " and ".join(TensorProto.DataType.Name(kind).lower() for kind in sorted(found))
        changes.append(f"its {kinds} tensors were taken as float32")
    for entry in graph.input:
        tensor = entry.type.tensor_type
        if tensor.elem_type in other or (tensor.elem_type in _SMALL and _cast_at_once(graph, entry.name)):
            kind = TensorProto.DataType.Name(tensor.elem_type).lower()
            changes.append(f"input {entry.name!r} is {kind} in the file, and float32 here")
            tensor.elem_type = TensorProto.FLOAT
    if changes:
        del graph.value_info[:]
    return changes


# TensorProto's UINT8, INT8, UINT16, INT16, whose numbers float32 holds exactly.
_SMALL = (2, 3, 4, 5)


def _cast_at_once(graph: Any, name: str) -> bool:
    """Whether all that reads a tensor is casts to float32."""
    users = [node for node in graph.node if name in node.input]
    return bool(users) and all(
        node.op_type == "Cast" and all(entry.i == 1 for entry in node.attribute if entry.name == "to") for node in users
    )
