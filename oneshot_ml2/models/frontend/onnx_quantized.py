"""Quantization in ONNX files, brought to one form: QuantizeLinear and DequantizeLinear of 8 bits around float ones.

onnxruntime also writes operators of integers (the QOperator format), and, where scales are computed while the model
runs (dynamic quantization), products of integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models.frontend.onnx_file import MICROSOFT
from oneshot_ml2.models.frontend.origins import label, together

if TYPE_CHECKING:
    from oneshot_ml2.models.ops.base import Array

_OWN = ("", "ai.onnx", MICROSOFT)
_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


@dataclass(frozen=True)
class _Form:
    """A QOperator: the float operator that it is, and where its operands are.

    ``operands``: the index of each (tensor, scale, zero point); ``result``: that of the result's (scale, zero point);
    ``bias``: that of an int32 one.
    """

    op: str
    operands: tuple[int, ...]
    result: int
    bias: int | None = None


_FORMS = {
    "QLinearConv": _Form("Conv", (0, 3), 6, 8),
    "QLinearMatMul": _Form("MatMul", (0, 3), 6),
    "QGemm": _Form("Gemm", (0, 3), 7, 6),
    "QLinearAdd": _Form("Add", (0, 3), 6),
    "QLinearMul": _Form("Mul", (0, 3), 6),
    "QLinearSigmoid": _Form("Sigmoid", (0,), 3),
    "QLinearLeakyRelu": _Form("LeakyRelu", (0,), 3),
    "QLinearSoftmax": _Form("Softmax", (0,), 3),
    "QLinearGlobalAveragePool": _Form("GlobalAveragePool", (0,), 3),
    "QLinearAveragePool": _Form("AveragePool", (0,), 3),
    # Of any number of operands; see `_form`.
    "QLinearConcat": _Form("Concat", (), 0),
}
# Attributes that the float operator has not.
_EXTRA = ("opset", "channels_last")
# Operators that are the same on integers: their result has the scale of their first operand.
_SAME = (
    "MaxPool", "GlobalMaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Split", "Slice", "Gather",
    "Pad", "Resize", "Upsample", "Identity", "DepthToSpace", "SpaceToDepth", "Expand", "Tile", "Concat",
)  # fmt: skip
# Products of integers -> of floats, where the operands' zero points stand at 2 and 3.
_INTEGER = {"MatMulInteger": "MatMul", "ConvInteger": "Conv"}


class _Rewriting:
    """The nodes and constants of a model while they are made anew."""

    def __init__(self, model: Any) -> None:
        from onnx import helper, numpy_helper

        self.helper, self.numpy, self.graph = helper, numpy_helper, model.graph
        self.tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self.nodes: list[Any] = []
        self.node: Any = None
        # Tensor of 8 bits -> the names of its scale and zero point.
        self.grids: dict[str, tuple[str, str]] = {}
        self._taken = {name for node in model.graph.node for name in (*node.input, *node.output)} | set(self.tensors)

    def name(self, wanted: str) -> str:
        """A name that nothing has yet."""
        while wanted in self._taken:
            wanted += "_"
        self._taken.add(wanted)
        return wanted

    def array(self, name: str) -> Array:
        """A constant.

        Raises:
            ModelError: the model computes it.
        """
        if name not in self.tensors:
            raise ModelError(f"{label(self.node)} has a scale or zero point that the model computes")
        return np.asarray(self.numpy.to_array(self.tensors[name]))

    def constant(self, array: Array, wanted: str) -> str:
        name = self.name(wanted)
        self.tensors[name] = self.numpy.from_array(np.asarray(array), name)
        return name

    def add(self, op: str, inputs: Sequence[str], output: str, name: str = "", **attributes: Any) -> str:
        self.nodes.append(self.helper.make_node(op, list(inputs), [output], name, **attributes))
        return output

    def dequantized(self, tensor: str, grid: Sequence[str], axis: int | None = None) -> str:
        along: dict[str, Any] = {} if axis is None else {"axis": axis}
        return self.add(_DEQUANTIZE, [tensor, *grid], self.name(f"{tensor}.real"), **along)

    def finish(self) -> None:
        """Put them into the model, without constants that nothing reads."""
        del self.graph.node[:], self.graph.initializer[:], self.graph.value_info[:]
        self.graph.node.extend(self.nodes)
        read = {name for node in self.nodes for name in node.input} | {entry.name for entry in self.graph.output}
        self.graph.initializer.extend(tensor for name, tensor in self.tensors.items() if name in read)


# All operators that have to do with quantization.
QUANTIZED = (
    *_FORMS, *_INTEGER, _QUANTIZE, _DEQUANTIZE, "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM",
)  # fmt: skip


def is_quantized(model: Any) -> bool:
    """Whether any operator of a model has to do with quantization."""
    return any(node.op_type in QUANTIZED and node.domain in _OWN for node in model.graph.node)


def to_qdq(model: Any) -> list[str]:
    """Bring a model's quantization to QuantizeLinear and DequantizeLinear, in place.

    Returns:
        Lines on what was changed.

    Raises:
        ModelError: names all nodes whose numbers have other than 8 bits; or a scale that the model computes.
    """
    work, changes = _Rewriting(model), []
    _check_widths(work)
    for node in model.graph.node:
        work.node = node
        kind = node.op_type if node.domain in _OWN else ""
        if kind in (_QUANTIZE, _DEQUANTIZE):
            _linear(work, node)
        elif kind in _FORMS:
            _float_form(work, node, _FORMS[kind])
        elif kind in _INTEGER or kind.startswith("DynamicQuantize"):
            _dynamic(work, node)
            changes.append(label(node))
        else:
            _on_integers(work, node)
    work.finish()
    if not changes:
        return []
    return [
        f"{len(changes)} operators of dynamic quantization were taken as float ones, and quantized anew with fixed "
        "scales; calibrate them (--calibration)"
    ]


def _check_widths(work: _Rewriting) -> None:
    """Raise ModelError for all numbers of other than 8 bits."""
    from onnx import TensorProto

    wrong = []
    for node in work.graph.node:
        if node.op_type not in (_QUANTIZE, _DEQUANTIZE) or node.domain not in _OWN:
            continue
        attributes = {entry.name: entry.i for entry in node.attribute}
        zero = work.tensors.get(node.input[2]) if len(node.input) > 2 else None
        source = work.tensors.get(node.input[0]) if node.op_type == _DEQUANTIZE else None
        typed = zero if zero is not None else source
        kind = attributes.get("output_dtype") or (TensorProto.UINT8 if typed is None else typed.data_type)
        if node.op_type == _DEQUANTIZE and typed is not None:
            kind = typed.data_type
        allowed = (TensorProto.INT8, TensorProto.UINT8, *((TensorProto.INT32,) if node.op_type == _DEQUANTIZE else ()))
        if attributes.get("block_size"):
            wrong.append(ModelError(f"{label(node)} has a scale for each block"))
        elif kind not in allowed:
            wrong.append(ModelError(f"{label(node)} is of {TensorProto.DataType.Name(kind).lower()}"))
    if wrong:
        raise ModelError(
            f"{together(wrong)}; only 8 bits, with a scale for a tensor or a channel, are supported: quantize with "
            "QuantType.QInt8 or QUInt8"
        )


def _linear(work: _Rewriting, node: Any) -> None:
    """A quantize or dequantize with a scale that is a number where it is one, and with a zero point."""
    tensor, scale, zero = (*node.input, "")[:3]
    attributes = {entry.name: entry.i for entry in node.attribute}
    kind = np.dtype(np.uint8)
    if tensor in work.tensors:
        kind = work.array(tensor).dtype
    elif tensor in work.grids:
        kind = work.array(work.grids[tensor][1]).dtype
    elif attributes.get("output_dtype"):
        kind = work.helper.tensor_dtype_to_np_dtype(attributes["output_dtype"])
    grid = _grid(work, scale, zero, node.output[0], kind)
    along = {"axis": attributes["axis"]} if "axis" in attributes and work.array(grid[0]).ndim else {}
    work.add(node.op_type, [tensor, *grid], node.output[0], node.name, **along)
    if node.op_type == _QUANTIZE:
        work.grids[node.output[0]] = grid


def _grid(work: _Rewriting, scale: str, zero: str, of: str, kind: Any = np.uint8) -> tuple[str, str]:
    """The names of a scale and a zero point, of numbers where they are one."""
    scales = work.array(scale).astype(np.float32)
    zeros = work.array(zero) if zero else np.zeros(scales.shape, dtype=kind)
    if scales.size == 1:
        scales, zeros = scales.reshape(()), zeros.reshape(-1)[:1].reshape(())
    elif zeros.size == 1:
        zeros = np.full(scales.shape, zeros.reshape(()), dtype=zeros.dtype)
    return work.constant(scales, f"{of}.scale"), work.constant(zeros, f"{of}.zero")


def _float_form(work: _Rewriting, node: Any, form: _Form) -> None:
    """A QOperator as a float operator between dequantize and quantize."""
    attributes = {entry.name: work.helper.get_attribute_value(entry) for entry in node.attribute}
    if attributes.get("channels_last"):
        raise ModelError(f"{label(node)} has its channels last, which is not supported; quantize with QuantFormat.QDQ")
    inputs = [*node.input, *[""] * 9]
    starts = form.operands or tuple(range(2, len(node.input), 3))
    real, scales = [], []
    for number, start in enumerate(starts):
        tensor, scale, zero = inputs[start : start + 3]
        kind = work.array(tensor).dtype if tensor in work.tensors else np.uint8
        grid = _grid(work, scale, zero, f"{node.output[0]}.{number}", kind)
        scales.append(work.array(grid[0]))
        axis = None
        if scales[-1].ndim:
            # Of weights: Conv has its output channels first, products have them last.
            axis = 0 if form.op == "Conv" or attributes.get("transB") else work.array(tensor).ndim - 1
        real.append(work.dequantized(tensor, grid, axis))
    if form.bias is not None and inputs[form.bias]:
        product = np.asarray(scales[0] * scales[1] * np.float32(attributes.get("alpha", 1.0)), dtype=np.float32)
        scale = work.constant(product, f"{node.output[0]}.bias_scale")
        zero = work.constant(np.zeros(product.shape, np.int32), f"{node.output[0]}.bias_zero")
        real.append(work.dequantized(inputs[form.bias], (scale, zero), 0 if product.ndim else None))
    kept = {name: value for name, value in attributes.items() if name not in _EXTRA}
    if not inputs[form.result]:
        work.add(form.op, real, node.output[0], node.name, **kept)
        return
    result = work.add(form.op, real, work.name(f"{node.output[0]}.real"), node.name, **kept)
    grid = _grid(work, inputs[form.result], inputs[form.result + 1], node.output[0])
    work.add(_QUANTIZE, [result, *grid], node.output[0])
    work.grids[node.output[0]] = grid


def _on_integers(work: _Rewriting, node: Any) -> None:
    """Any other operator: on floats, where it is on quantized numbers in the file."""
    grid = next((work.grids[name] for name in node.input if name in work.grids), None)
    if grid is None:
        work.nodes.append(node)
        return
    inputs = [work.dequantized(name, work.grids[name]) if name in work.grids else name for name in node.input]
    if node.op_type == "Pad":
        # It pads with a number on the grid, if none is given with 0.
        scale, zero = (work.array(name) for name in grid)
        fill = work.array(inputs[2]) if len(inputs) > 2 and inputs[2] else np.zeros((), zero.dtype)
        value = (fill.astype(np.float32) - zero.astype(np.float32)) * scale
        inputs[2:3] = [work.constant(value.astype(np.float32), f"{node.output[0]}.fill")]
    floating = work.helper.make_node(node.op_type, inputs, list(node.output), node.name, domain=node.domain)
    floating.attribute.extend(node.attribute)
    work.nodes.append(floating)
    for index, name in enumerate(node.output if node.op_type in _SAME else ()):
        floating.output[index] = work.name(f"{name}.real")
        work.add(_QUANTIZE, [floating.output[index], *grid], name)
        work.grids[name] = grid


def _dynamic(work: _Rewriting, node: Any) -> None:
    """Dynamic quantization taken back: ``x`` stands for its integers, 1 for its scale and 0 for its zero point."""
    inputs, output = [*node.input, *[""] * 5], node.output[0]
    if node.op_type == "DynamicQuantizeLinear":
        work.add("Identity", [inputs[0]], output, node.name)
        for name, value in zip(node.output[1:], (np.float32(1), np.float32(0))):
            work.tensors[name] = work.numpy.from_array(np.asarray(value), name)
    elif node.op_type in _INTEGER:
        real = [
            work.constant(_integers(work, name, zero), f"{output}.{index}") if name in work.tensors else name
            for index, (name, zero) in enumerate(zip(inputs[:2], inputs[2:4]))
        ]
        floating = work.helper.make_node(_INTEGER[node.op_type], real, [output], node.name)
        floating.attribute.extend(node.attribute)
        work.nodes.append(floating)
    elif node.op_type == "DynamicQuantizeMatMul":
        data, weight, scale, zero, bias = inputs[:5]
        array = _integers(work, weight, zero) * work.array(scale)
        product = output if not bias else work.name(f"{output}.product")
        work.add("MatMul", [data, work.constant(array, f"{output}.weight")], product, node.name)
        if bias:
            work.add("Add", [product, bias], output)
    elif node.op_type == "DynamicQuantizeLSTM":
        inputs += [""] * (12 - len(inputs))
        real = [
            work.constant(_of_lstm(work, *(inputs[at] for at in places)), f"{output}.{places[0]}")
            for places in ((1, 8, 9), (2, 10, 11))
        ]
        floating = work.helper.make_node("LSTM", [inputs[0], *real, *inputs[3:8]], list(node.output), node.name)
        floating.attribute.extend(node.attribute)
        work.nodes.append(floating)
    else:
        work.nodes.append(node)


def _of_lstm(work: _Rewriting, name: str, scale: str, zero: str) -> Array:
    """A weight of an LSTM, float32 (directions, gates, inputs), of integers (directions, inputs, gates) with a scale
    for each direction or for each of its gates' rows.
    """
    integers, scales, zeros = (work.array(tensor).astype(np.float32) for tensor in (name, scale, zero))
    form = (len(integers), 1, -1)
    return np.ascontiguousarray(((integers - zeros.reshape(form)) * scales.reshape(form)).swapaxes(1, 2))


def _integers(work: _Rewriting, name: str, zero: str) -> Array:
    """A weight's integers less their zero point, as float32; one zero point for each channel stands along the last axis
    of a matrix, and along the first one of kernels."""
    array = work.array(name).astype(np.float32)
    zeros = work.array(zero).astype(np.float32) if zero else np.float32(0)
    if np.ndim(zeros) == 1 and array.ndim > 2:
        zeros = zeros.reshape(-1, *[1] * (array.ndim - 1))
    return np.asarray(array - zeros, dtype=np.float32)
