"""Builds the integer graph, node by node."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import ModelError, WorkloadError
from oneshot_ml2.models import partition, simplify
from oneshot_ml2.models.ir import Graph, Node, Value
from oneshot_ml2.models.ops.pooling import counts
from oneshot_ml2.models.ops.registry import op_of
from oneshot_ml2.models.partition import Composite
from oneshot_ml2.models.quantize.qdq import single
from oneshot_ml2.models.quantize.sampling import drawn_values
from oneshot_ml2.models.quantize.scales import (
    HIGH,
    LOW,
    best_exponent,
    exponent_of,
    int8,
    integer_bounds,
    nearest_exponent,
)
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.epilogue import Epilogue

if TYPE_CHECKING:
    from oneshot_ml2.models.quantize.sampling import Array

# The bias_bits that the network was trained with; a smaller number would only leave its range.
_BIAS_BITS = 16
# How far, in steps, an average whose divisor is no power of two may be off on the VTA, root mean square over random
# inputs: as far as rounding takes every result anyway.
_AVERAGE_ERROR = 12**-0.5
# A 32-bit sum and all that is added to it stay below this.
_SUM_LIMIT = 2**31 - 1


class IntegerBuilder:
    """Makes the integer graph node by node.

    Args:
        graph: float operators only.
        exponents: of the values that are int8; the others are float32.
        fixed: the exponents are the model's, none may change.
        half_even: exact ties go to the even neighbour.
    """

    def __init__(self, graph: Graph, exponents: Mapping[str, int], fixed: bool, half_even: bool) -> None:
        self.graph, self.fixed, self.half_even = graph, fixed, half_even
        self.exponents = dict(exponents)
        self.nodes: list[Node] = []
        self.values: dict[str, Value] = {}
        self.users = graph.users()
        self.constants: dict[str, Array] = {}
        self.weights: dict[str, tuple[NDArray[np.int8], int]] = {}
        self.changes: list[str] = []
        # QDQ layers whose weights are quantized anew.
        self.requantized: list[str] = []

    def build(self) -> Graph:
        graph = self.graph
        for name in graph.inputs:
            self.values[name] = graph.values[name]
            if name in self.exponents:
                self.to_int8(name, name)
        if not self.fixed:
            self.fuse_residuals()
        ends = {composite.output: composite for composite in partition.composites(graph, self.exponents)}
        inner = {node.output for composite in ends.values() for node in composite.nodes[:-1]}
        for node in graph.nodes:
            if node.output in inner:
                continue
            if node.output in ends:
                self.composite(ends[node.output])
            else:
                self.single(node)
        if self.requantized:
            self.changes.append(
                f"the weights of {len(self.requantized)} layers have scales that are no powers of two, or one for each "
                "channel, and were quantized anew with the best power of two"
            )
        outputs = tuple(self.as_float(name) for name in graph.outputs)
        integer = Graph(
            graph.name, graph.inputs, outputs, tuple(self.nodes), self.values, self.constants,
            output_names=graph.output_names,
        )  # fmt: skip
        return simplify.fold_moves(integer)

    # Names: an int8 value keeps the float one's name; its float32 form is another value.
    def float_name(self, name: str) -> str:
        return f"{name}.float" if name in self.exponents and name not in self.graph.inputs else name

    def int_name(self, name: str) -> str:
        return f"{name}.int8" if name in self.graph.inputs else name

    def emit(
        self, name: str, op: str, inputs: Sequence[str], value: Value, attrs: Mapping[str, Any],
        arrays: Mapping[str, Array] | None = None,
    ) -> str:  # fmt: skip
        self.nodes.append(Node(name, op, tuple(inputs), value.name, attrs, arrays or {}))
        self.values[value.name] = value
        return value.name

    def as_float(self, name: str) -> str:
        """The float32 form of a value or constant."""
        if name in self.graph.constants:
            self.constants[name] = np.asarray(self.graph.constants[name], dtype=np.float32)
            return name
        wanted = self.float_name(name)
        if wanted not in self.values:
            value = Value(wanted, self.graph.shape(name))
            self.emit(wanted, "to_float", [self.int_name(name)], value, {"exponent": self.exponents[name]})
        return wanted

    def to_int8(self, name: str, layer: str) -> None:
        """Quantize the float32 form of a value."""
        value = Value(self.int_name(name), self.graph.shape(name), self.exponents[name])
        self.emit(f"{layer}.quantize", "to_int8", [self.float_name(name)], value, {"exponent": self.exponents[name]})

    def rescaled(self, source: str, exponent: int, target: str, layer: str, clip: tuple[int, int] = (LOW, HIGH)) -> str:
        """An int8 value with another exponent, under the name ``target``."""
        value = Value(target, self.values[source].shape, exponent)
        left = exponent_of(self.values[source]) - exponent
        if abs(left) > 24:
            raise ModelError(f"{layer}: scales differ by 2**{abs(left)}; quantize the model with closer ones")
        attrs = {"left": left, "clip": clip, "half_even": self.half_even}
        return self.pixelwise(layer, "int_requantize", [source], value, attrs, (max(left, 0),), max(-left, 0))

    # Element by element ------------------------------------------------------------------------
    def epilogue(self, bias: NDArray[np.int32], residual: int | None, shift: int, clip: tuple[int, int]) -> Epilogue:
        """That of sums whose bias holds half a step already, ``residual`` the shift of what is added to them.

        Raises:
            WorkloadError: VTA's layers cannot do it; says why.
        """
        bits = max(_BIAS_BITS, int(np.abs(bias.astype(np.int64)).max()).bit_length())
        # Shifting the sums first leaves less to shift the residual by, and the same result.
        early = max((residual or 0) - partition.LARGEST_RESIDUAL_SHIFT, 0)
        if early and (self.half_even or early > min(shift, partition.LARGEST_SHIFT)):
            why = "rounding half to even" if self.half_even else f"a result shifted by {shift}"
            raise WorkloadError(
                f"its operands' scales differ by 2**{residual}; with {why} the VTA's layers have up to "
                f"{partition.LARGEST_RESIDUAL_SHIFT}"
            )
        if shift - early > partition.LARGEST_SHIFT:
            raise WorkloadError(f"its shift is {shift}; the VTA's layers have 0 to {partition.LARGEST_SHIFT}")
        left = None if residual is None else residual - early
        return Epilogue(True, bits, left, shift - early, clip, early, self.half_even)

    def pixelwise(
        self, layer: str, op: str, sources: Sequence[str], value: Value, attrs: Mapping[str, Any],
        lefts: tuple[int, ...], shift: int,
    ) -> str:  # fmt: skip
        """Sums of one or two int8 tensors shifted left by ``lefts``, then right: a depthwise convolution."""
        attrs = {**attrs, "workload": None}
        arrays: dict[str, Array] = {}
        bias = np.full(partition.pixelwise_shape(value.shape)[1], 1 << shift >> 1, dtype=np.int32)
        try:
            if lefts[0] > partition.LARGEST_RESIDUAL_SHIFT:
                raise WorkloadError(f"its operand is shifted left by {lefts[0]}; an int8 weight allows up to 6")
            epilogue = self.epilogue(bias, lefts[1] if len(lefts) > 1 else None, shift, attrs["clip"])
            attrs["workload"] = partition.pixelwise_workload(value.shape, epilogue)
            arrays = {"weight": np.full((len(bias), 1, 1, 1), 1 << lefts[0], dtype=np.int8), "bias": bias}
        except WorkloadError as error:
            attrs["reason"] = str(error)
        if len(value.shape) == 4 or attrs["workload"] is None:
            return self.emit(layer, op, sources, value, attrs, arrays)
        shape = partition.pixelwise_shape(value.shape)
        images = [self.reshaped(name, shape) for name in sources]
        result = Value(f"{value.name}.image", shape, value.exponent)
        self.emit(layer, op, images, result, attrs, arrays)
        return self.emit(f"{layer}.reshape", "reshape", [result.name], value, {})

    def reshaped(self, name: str, shape: tuple[int, ...]) -> str:
        """An int8 value in another shape."""
        value, target = self.values[name], f"{name}.{'x'.join(map(str, shape))}"
        if value.shape == shape:
            return name
        if target not in self.values:
            self.emit(target, "reshape", [name], Value(target, shape, value.exponent), {})
        return target

    # Layers ------------------------------------------------------------------------------------
    def weight(self, node: Node) -> tuple[NDArray[np.int8], int]:
        """A layer's int8 weight and its exponent: the model's if its scale is a power of two, else the best."""
        if node.output not in self.weights:
            array = self.graph.constants[node.inputs[1]]
            scale = node.attrs["weight_scale"][0] if "weight_scale" in node.attrs else np.zeros(2)
            largest = max(float(array.max(initial=0.0)), -float(array.min(initial=0.0)))
            exponent = best_exponent(drawn_values(array), largest)
            if scale.size == 1 and float(scale) == 2.0 ** nearest_exponent(float(scale)):
                exponent = nearest_exponent(float(scale))
            else:
                exponent = self.workable(node, exponent)
                if self.fixed:
                    self.requantized.append(node.name)
            self.weights[node.output] = (int8(array, exponent), exponent)
        return self.weights[node.output]

    def workable(self, node: Node, exponent: int) -> int:
        """The least exponent of a float layer's weight, from ``exponent`` on, that its epilogue and sums allow."""
        array = self.graph.constants[node.inputs[1]]
        data, output = self.exponents.get(node.inputs[0]), self.exponents.get(self.end(node))
        if data is None or output is None:
            return exponent
        exponent = max(exponent, output - data - partition.LARGEST_SHIFT)
        while self.largest_sum(node, int8(array, exponent), data + exponent) > _SUM_LIMIT:
            exponent += 1
        return exponent

    def largest_sum(self, node: Node, weight: NDArray[np.int8], exponent: int) -> float:
        """An upper bound of the magnitude of a layer's sums with their bias; infinite if that has too many bits."""
        bias = np.abs(self.bias(node, exponent))
        if bias.max(initial=0) > 2**partition.LARGEST_BIAS_BITS - (1 << partition.LARGEST_SHIFT):
            return math.inf
        axes = _kernel_axes(node, weight)
        weights = np.abs(weight.astype(np.int16)).sum(axes, dtype=np.int64)
        weights = np.tile(weights, len(bias) // len(weights))
        return float((weights * 128 + bias).max(initial=0)) + (128 << partition.LARGEST_RESIDUAL_SHIFT) + 2**15

    def bias(self, node: Node, exponent: int) -> NDArray[np.float64]:
        """A layer's bias (K,) in units of its sums, rounded."""
        count = self.graph.shape(node.output)[op_of(node.op).channels]
        bias = self.graph.constants[node.inputs[2]] if len(node.inputs) > 2 else np.zeros(count)
        return np.rint(np.ldexp(bias.astype(np.float64), -exponent))

    def end(self, node: Node) -> str:
        """The first quantized value from a layer on, following its only users."""
        name = node.output
        while name not in self.exponents and single(self.graph, self.users, name):
            name = self.users[name][0].output
        return name

    def fuse_residuals(self) -> None:
        """Let a layer add its residual itself, where the shift that this takes is one that VTA's layers have."""
        order = {node.output: index for index, node in enumerate(self.graph.nodes)}
        producers = self.graph.producers()
        for node in self.graph.nodes:
            if node.op != "add" or not all(name in self.exponents for name in node.inputs):
                continue
            # The operand computed last takes the sum, as the other one must be there by then.
            for name in sorted(node.inputs, key=lambda name: -order.get(name, -1)):
                (other,) = [other for other in node.inputs if other != name] or [name]
                layer = producers.get(name)
                if layer is None or layer.op not in partition.HEADS or not single(self.graph, self.users, name):
                    continue
                if layer.op == "batch_matmul":
                    continue
                if self.graph.shape(other) != self.graph.shape(node.output) or layer.inputs[0] not in self.exponents:
                    continue
                kept = self.exponents.pop(name)
                self.weights.pop(layer.output, None)
                shift = self.exponents[other] - self.exponents[layer.inputs[0]] - self.weight(layer)[1]
                right = self.exponents[self.end(layer)] - self.exponents[layer.inputs[0]] - self.weight(layer)[1]
                early = max(shift - partition.LARGEST_RESIDUAL_SHIFT, 0)
                most = 0 if self.half_even else min(right, partition.LARGEST_SHIFT)
                if shift >= 0 and early <= most and 0 <= right - early <= partition.LARGEST_SHIFT:
                    break
                self.exponents[name] = kept
                self.weights.pop(layer.output, None)

    def composite(self, composite: Composite) -> None:
        """A layer or an addition with what is fused into it."""
        head = composite.nodes[0]
        if head.op == "add":
            self.addition(composite)
            return
        x = head.inputs[0]
        if head.op == "batch_matmul":
            self.product(composite)
            return
        if x not in self.exponents:
            for node in composite.nodes:
                self.floating(node, "its input is not quantized")
            return
        weight, exponent = self.weight(head)
        sums = self.exponents[x] + exponent
        if not self.fixed and self.exponents[composite.output] < sums:
            # Finer than the sums themselves: nothing to gain.
            self.exponents[composite.output] = sums
        shift = self.exponents[composite.output] - sums
        if shift < 0 or self.largest_sum(head, weight, sums) > _SUM_LIMIT:
            for node in composite.nodes:
                reason = "its scale is finer than that of its sums" if shift < 0 else "its sums may exceed 32 bits"
                self.floating(node, reason)
            return
        clip = integer_bounds(composite.low, composite.high, self.exponents[composite.output])
        bias = (self.bias(head, sums) + (1 << shift >> 1)).astype(np.int32)
        inputs = [self.int_name(x)]
        residual_shift = None
        if composite.residual is not None:
            residual_shift = self.exponents[composite.residual] - sums
            inputs.append(self.int_name(composite.residual))
        ungrouped = op_of(head.op).ungrouped
        if ungrouped is not None and head.attrs["groups"] > 1:
            # VTA's has one group: zeros between those that the model has.
            weight = ungrouped(weight, head.attrs["groups"])
            head = dataclasses.replace(head, attrs={**head.attrs, "groups": 1})
        workload, reason = None, ""
        try:
            if residual_shift is not None and residual_shift < 0:
                raise WorkloadError("its residual's scale is finer than that of its sums")
            if (
                residual_shift is not None
                and self.largest_sum(head, weight, sums) + (128 << residual_shift) > _SUM_LIMIT
            ):
                raise WorkloadError("its sums with the residual may exceed 32 bits")
            epilogue = self.epilogue(bias, residual_shift, shift, clip)
            shape = self.graph.shape(x)
            matrix = (math.prod(shape[:-1]), shape[-1])
            data = matrix if head.op == "dense" else shape
            workload = partition.layer_workload(head, data, weight.shape, epilogue)
        except WorkloadError as error:
            if residual_shift is not None:
                self.unfused(composite, str(error))
                return
            reason = str(error)
        attrs = {
            **head.attrs, "shift": shift, "clip": clip, "workload": workload, "reason": reason,
            "residual_shift": residual_shift, "half_even": self.half_even,
        }  # fmt: skip
        attrs.pop("weight_scale", None)
        shape = self.graph.shape(composite.output)
        value = Value(composite.output, shape, self.exponents[composite.output])
        if head.op != "dense" or len(shape) == 2:
            self.emit(head.name, f"int_{head.op}", inputs, value, attrs, {"weight": weight, "bias": bias})
            return
        # A dense layer sees a matrix, whatever the rank of its operands.
        rows = math.prod(shape[:-1])
        flat = [self.reshaped(name, (rows, self.values[name].shape[-1])) for name in inputs]
        result = Value(f"{value.name}.flat", (rows, shape[-1]), value.exponent)
        self.emit(head.name, "int_dense", flat, result, attrs, {"weight": weight, "bias": bias})
        self.emit(f"{head.name}.reshape", "reshape", [result.name], value, {})

    def product(self, composite: Composite) -> None:
        """A product of two activations."""
        head = composite.nodes[0]
        if not all(name in self.exponents for name in head.inputs):
            for node in composite.nodes:
                self.floating(node, "an operand is not quantized")
            return
        sums = sum(self.exponents[name] for name in head.inputs)
        if not self.fixed and self.exponents[composite.output] < sums:
            self.exponents[composite.output] = sums
        shift = self.exponents[composite.output] - sums
        data, weight = (self.graph.shape(name) for name in head.inputs)
        if shift < 0 or data[-1] * 2**14 + 2**30 > _SUM_LIMIT:
            for node in composite.nodes:
                self.floating(
                    node, "its scale is finer than that of its sums" if shift < 0 else "its sums may exceed 32 bits"
                )
            return
        clip = integer_bounds(composite.low, composite.high, self.exponents[composite.output])
        bias = np.full(weight[1], 1 << shift >> 1, dtype=np.int32)
        workload, reason = None, ""
        try:
            workload = partition.layer_workload(head, data, weight, self.epilogue(bias, None, shift, clip))
        except WorkloadError as error:
            reason = str(error)
        attrs = {
            "shift": shift, "clip": clip, "workload": workload, "reason": reason, "residual_shift": None,
            "half_even": self.half_even,
        }  # fmt: skip
        value = Value(composite.output, self.graph.shape(composite.output), self.exponents[composite.output])
        inputs = [self.int_name(name) for name in head.inputs]
        self.emit(head.name, "int_batch_matmul", inputs, value, attrs, {"bias": bias})

    def unfused(self, composite: Composite, reason: str) -> None:
        """A layer that cannot add its residual itself: its own result is quantized like the sum, and added then."""
        head, *rest = composite.nodes
        self.exponents[head.output] = self.exponents[composite.output]
        self.changes.append(f"{head.name} is rounded to int8 before its residual is added: {reason}")
        self.composite(Composite((head,), None, -math.inf, math.inf))
        self.composite(Composite(tuple(rest), None, composite.low, composite.high))

    def addition(self, composite: Composite) -> None:
        head = composite.nodes[0]
        names = [self.int_name(name) for name in head.inputs]
        exponents = [self.exponents[name] for name in head.inputs]
        low, out = min(exponents), self.exponents[composite.output]
        if max(*exponents, out) - low > 20 or self.graph.shape(head.inputs[0]) != self.graph.shape(head.inputs[1]):
            for node in composite.nodes:
                self.floating(node, "its operands differ in shape, or too much in scale")
            return
        # The finer operand is the convolution's data, so that only the other one is shifted far.
        low = min(low, out)
        pairs = sorted((exponent - low, name) for exponent, name in zip(exponents, names))
        lefts = tuple(left for left, _ in pairs)
        attrs = {
            "left": lefts, "shift": out - low, "clip": integer_bounds(composite.low, composite.high, out),
            "half_even": self.half_even,
        }  # fmt: skip
        value = Value(composite.output, self.graph.shape(composite.output), out)
        self.pixelwise(head.name, "int_add", [name for _, name in pairs], value, attrs, lefts, out - low)

    # The others --------------------------------------------------------------------------------
    def single(self, node: Node) -> None:
        """An operator of its own."""
        source = node.inputs[0]
        if node.output not in self.exponents or any(name not in self.exponents for name in node.inputs):
            self.floating(node, "its result is not quantized" if node.op in partition.HEADS else None)
            return
        exponent, shape = self.exponents[node.output], self.graph.shape(node.output)
        limits = partition.bounds(node)
        if limits is not None or node.op == "identity":
            clip = integer_bounds(*(limits or (-math.inf, math.inf)), exponent)
            self.rescaled(self.int_name(source), exponent, node.output, node.name, clip)
        elif op_of(node.op).keeps_scale:
            before = self.exponents[source]
            target = node.output if before == exponent else f"{node.output}.before"
            attrs = dict(node.attrs)
            layer = op_of(node.op).plain_layer
            if layer is not None:
                attrs["workload"] = None
                try:
                    attrs["workload"] = layer(attrs, self.graph.shape(source), shape)
                except WorkloadError as error:
                    attrs["reason"] = str(error)
            self.emit(node.name, node.op, [self.int_name(source)], Value(target, shape, before), attrs)
            if before != exponent:
                self.rescaled(target, exponent, node.output, f"{node.name}.rescale")
        elif node.op == "concat":
            parts = []
            for index, name in enumerate(node.inputs):
                part = self.int_name(name)
                if self.exponents[name] != exponent:
                    part = self.rescaled(part, exponent, f"{node.output}.part{index}", f"{node.name}.rescale{index}")
                parts.append(part)
            self.emit(node.name, "concat", parts, Value(node.output, shape, exponent), node.attrs)
        elif node.op == "avg_pool2d":
            self.average(node)
        else:
            self.floating(node)

    def average(self, node: Node) -> None:
        """An average of images: a depthwise convolution, exact if the divisor is a power of two."""
        source, exponent, shape = node.inputs[0], self.exponents[node.output], self.graph.shape(node.output)
        left = self.exponents[source] - exponent
        count = math.prod(node.attrs["size"])
        if count.bit_length() + abs(left) > 20:
            self.floating(node, "its sums may exceed 32 bits")
            return
        clip = (LOW, HIGH)
        attrs = {**node.attrs, "left": left, "clip": clip, "half_even": self.half_even, "workload": None}
        arrays: dict[str, Array] = {}
        try:
            kernel, shift = average_kernel(node.attrs["size"], left)
            off = kernel / 2.0**shift - 2.0**left / count
            worst, usual = float(np.abs(off).sum()) * 128, float(np.sqrt(np.square(off).sum())) * 128 / 3**0.5
            if np.any(counts(self.graph.shape(source), node.attrs, shape) != count):
                raise WorkloadError("its divisor differs at the border, where padding does not count")
            if worst and (self.fixed or self.half_even):
                why = "half to even is exact" if self.half_even else "the scales are the model's"
                raise WorkloadError(f"its divisor {count} is no power of two, and {why}")
            if usual > _AVERAGE_ERROR:
                raise WorkloadError(f"its divisor {count} is no power of two; int8 weights would be off by {usual:.1f}")
            n, c, h, w = self.graph.shape(source)
            r, s = node.attrs["size"]
            bias = np.full(c, 1 << shift >> 1, dtype=np.int32)
            workload = Conv2d(
                n, c, h, w, c, r, s, node.attrs["strides"], node.attrs["pads"], node.attrs["dilation"],
                epilogue=self.epilogue(bias, None, shift, clip), groups=c,
            )  # fmt: skip
            if workload.output_shape != shape:
                raise WorkloadError(f"its output is {shape}; the VTA's would be {workload.output_shape}")
            attrs["workload"] = workload
            arrays = {"weight": np.broadcast_to(kernel, (c, 1, *kernel.shape)).copy(), "bias": bias}
            if worst:
                self.changes.append(
                    f"{node.name} divides by {count}, no power of two: weights of {kernel.min()} to {kernel.max()} and "
                    f"a shift of {shift} instead, off by {usual:.2f} steps of int8 for random inputs and never by more "
                    f"than {worst:.1f}"
                )
        except WorkloadError as error:
            attrs["reason"] = str(error)
        value = Value(node.output, shape, exponent)
        self.emit(node.name, "int_avg_pool2d", [self.int_name(source)], value, attrs, arrays)

    def floating(self, node: Node, reason: str | None = None) -> None:
        """An operator in float32, its result quantized if it is to be."""
        name = self.float_name(node.output)
        value = Value(name, self.graph.shape(node.output))
        attrs = {**node.attrs} | ({} if reason is None else {"reason": reason})
        if node.op == "identity":
            raise ModelError(f"{node.name}: a tensor is quantized twice with different scales; quantize the model anew")
        self.emit(node.name, node.op, [self.as_float(name) for name in node.inputs], value, attrs)
        if node.output in self.exponents:
            self.to_int8(node.output, node.name)


def average_kernel(size: Sequence[int], left: int) -> tuple[NDArray[np.int8], int]:
    """Weights of a window and a right shift that average int8 numbers, times ``2**left``.

    Exact where the number of weights is a power of two; else the weights differ by one, spread evenly, so that their
    sum is what it should be.

    Raises:
        WorkloadError: no int8 weights do it.
    """
    count = math.prod(size)
    if count & (count - 1) == 0:
        shift = count.bit_length() - 1 - left
        if shift < -partition.LARGEST_RESIDUAL_SHIFT:
            raise WorkloadError(f"its result is shifted left by {-shift}; int8 weights allow up to 6")
        return np.full(tuple(size), 1 << max(-shift, 0), dtype=np.int8), max(shift, 0)
    shift = min(math.floor(math.log2(127 * count)) - left, partition.LARGEST_SHIFT)
    if shift < 0 or 2.0 ** (left + shift) < count:
        raise WorkloadError(f"its divisor {count} is no power of two, and its scales differ by 2**{abs(left)}")
    total = 1 << (left + shift)
    # Whole parts of a line from 0 to the sum.
    edges = np.arange(count + 1) * total // count
    return np.diff(edges).astype(np.int8).reshape(tuple(size)), shift


def _kernel_axes(node: Node, weight: Array) -> tuple[int, ...]:
    """The axes of a weight that are not those of the output's channels."""
    return tuple(axis for axis in range(weight.ndim) if axis != op_of(node.op).weight_outputs)
