"""Builds the integer graph, node by node."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import ModelError, WorkloadError
from oneshot_ml2.models import partition, simplify
from oneshot_ml2.models.ir import Graph, Node, Value
from oneshot_ml2.models.ops.numeric import SUM_LIMIT, TOO_FINE, TOO_LARGE
from oneshot_ml2.models.ops.registry import op_of
from oneshot_ml2.models.partition import Composite
from oneshot_ml2.models.quantize import rounding
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
from oneshot_ml2.workload.epilogue import LARGEST_BIAS_BITS, LARGEST_RESIDUAL_SHIFT, LARGEST_SHIFT, Epilogue

if TYPE_CHECKING:
    from oneshot_ml2.models.quantize.rounding import Halves
    from oneshot_ml2.models.quantize.sampling import Array

# The bias_bits that the network was trained with; a smaller number would only leave its range.
_BIAS_BITS = 16


class IntegerBuilder:
    """Makes the integer graph node by node.

    Args:
        graph: float operators only.
        exponents: of the values that are int8; the others are float32.
        fixed: the exponents are the model's, none may change.
        half_even: exact ties go to the even neighbour.
        means: of values of the float graph by channel, each of the value's rank; their layers' biases take back what
            rounding the weights adds.
        rows: by the names of weights, what these are multiplied by, see `rounding`.
    """

    def __init__(
        self, graph: Graph, exponents: Mapping[str, int], fixed: bool, half_even: bool,
        means: Mapping[str, NDArray[np.float64]] = MappingProxyType({}),
        rows: Mapping[str, Halves] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        self.graph, self.fixed, self.half_even = graph, fixed, half_even
        self.means, self.rows = means, rows
        self.exponents = dict(exponents)
        self.nodes: list[Node] = []
        self.values: dict[str, Value] = {}
        self.users = graph.users()
        self.constants: dict[str, Array] = {}
        self.weights: dict[str, tuple[NDArray[np.int8], int]] = {}
        # By constant and exponent: layers that share a float weight share the integers.
        self.rounded: dict[tuple[str, int], NDArray[np.int8]] = {}
        self.fitted: dict[tuple[int, int], NDArray[np.int8]] = {}
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
        early = max((residual or 0) - LARGEST_RESIDUAL_SHIFT, 0)
        if early and (self.half_even or early > min(shift, LARGEST_SHIFT)):
            why = "rounding half to even" if self.half_even else f"a result shifted by {shift}"
            raise WorkloadError(
                f"its operands' scales differ by 2**{residual}; with {why} the VTA's layers have up to "
                f"{LARGEST_RESIDUAL_SHIFT}"
            )
        if shift - early > LARGEST_SHIFT:
            raise WorkloadError(f"its shift is {shift}; the VTA's layers have 0 to {LARGEST_SHIFT}")
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
            if lefts[0] > LARGEST_RESIDUAL_SHIFT:
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
            own = (node.inputs[1], exponent)
            if own not in self.rounded:
                self.rounded[own] = self.fine(node, exponent)
            self.weights[node.output] = (self.rounded[own], exponent)
        return self.weights[node.output]

    def fine(self, node: Node, exponent: int) -> NDArray[np.int8]:
        """A layer's weight in int8, by what it is multiplied by, where that is known."""
        name, plain = node.inputs[1], int8(self.graph.constants[node.inputs[1]], exponent)
        data = self.exponents.get(node.inputs[0])
        if name not in self.rows or data is None:
            return plain
        # Equal weights have the very same rows.
        own = (id(self.rows[name]), exponent)
        if own not in self.fitted:
            self.fitted[own] = rounding.rounded(node, self.graph.constants[name], exponent, self.rows[name])
        found = self.fitted[own]
        return found if self.largest_sum(node, found, data + exponent) <= SUM_LIMIT else plain

    def workable(self, node: Node, exponent: int) -> int:
        """The least exponent of a float layer's weight, from ``exponent`` on, that its epilogue and sums allow."""
        array = self.graph.constants[node.inputs[1]]
        data, output = self.exponents.get(node.inputs[0]), self.exponents.get(self.end(node))
        if data is None or output is None:
            return exponent
        exponent = max(exponent, output - data - LARGEST_SHIFT)
        while self.largest_sum(node, int8(array, exponent), data + exponent) > SUM_LIMIT:
            exponent += 1
        return exponent

    def largest_sum(self, node: Node, weight: NDArray[np.int8], exponent: int) -> float:
        """An upper bound of the magnitude of a layer's sums with their bias; infinite if that has too many bits."""
        bias = np.abs(self.bias(node, exponent))
        if bias.max(initial=0) > 2**LARGEST_BIAS_BITS - (1 << LARGEST_SHIFT):
            return math.inf
        axes = _kernel_axes(node, weight)
        weights = np.abs(weight.astype(np.int16)).sum(axes, dtype=np.int64)
        weights = np.tile(weights, len(bias) // len(weights))
        return float((weights * 128 + bias).max(initial=0)) + (128 << LARGEST_RESIDUAL_SHIFT) + 2**15

    def bias(self, node: Node, exponent: int) -> NDArray[np.float64]:
        """A layer's bias (K,) in units of its sums, rounded."""
        count = self.graph.shape(node.output)[op_of(node.op).channels]
        bias = self.graph.constants[node.inputs[2]] if len(node.inputs) > 2 else np.zeros(count)
        return np.rint(np.ldexp(bias.astype(np.float64), -exponent))

    def drift(self, node: Node, weight: NDArray[np.int8], exponent: int) -> NDArray[np.float64]:
        """What rounding its weight adds to a layer's sums on average, (K,), by the mean of its operand's channels."""
        mean = self.means.get(node.inputs[0])
        outputs = op_of(node.op).weight_outputs
        groups = int(node.attrs.get("groups", 1))
        if (
            mean is None
            or outputs is None
            or (mean.size not in (1, weight.shape[1 - outputs] * (groups if outputs == 0 else 1)))
        ):
            return np.zeros(1)
        terms, inputs = ("gckt,gc->gk", weight.shape[0] // groups) if outputs else ("gkct,gc->gk", weight.shape[1])
        each = np.broadcast_to(mean.reshape(-1), (groups * inputs,)).reshape(groups, inputs)
        # Of the two weights apart: their difference, in float64, would take eight times the memory of int8.
        rounded, exact = (
            np.einsum(terms, array.reshape(groups, array.shape[0] // groups, array.shape[1], -1), each)
            for array in (weight, self.graph.constants[node.inputs[1]])
        )
        return np.ravel(np.ldexp(rounded, exponent) - exact)

    def end(self, node: Node) -> str:
        """The first quantized value from a layer on, following what can be fused into it; without one, the last."""
        name = node.output
        while name not in self.exponents and single(self.graph, self.users, name):
            (user,) = self.users[name]
            if user.op != "add" and partition.bounds(user) is None:
                break
            name = user.output
        return name

    def fuse_residuals(self) -> None:
        """Let a layer add its residual itself, where the shift that this takes is one that VTA's layers have."""
        order = {node.output: index for index, node in enumerate(self.graph.nodes)}
        producers = self.graph.producers()
        for node in self.graph.nodes:
            if node.op != "add" or not all(name in self.exponents for name in (*node.inputs, self.end(node))):
                continue
            # The operand computed last takes the sum, as the other one must be there by then.
            for name in sorted(node.inputs, key=lambda name: -order.get(name, -1)):
                (other,) = [other for other in node.inputs if other != name] or [name]
                layer = producers.get(name)
                if layer is None or layer.op not in partition.HEADS or not single(self.graph, self.users, name):
                    continue
                if op_of(layer.op).weight_outputs is None:
                    continue
                if self.graph.shape(other) != self.graph.shape(node.output) or layer.inputs[0] not in self.exponents:
                    continue
                kept = self.exponents.pop(name)
                self.weights.pop(layer.output, None)
                shift = self.exponents[other] - self.exponents[layer.inputs[0]] - self.weight(layer)[1]
                right = self.exponents[self.end(layer)] - self.exponents[layer.inputs[0]] - self.weight(layer)[1]
                early = max(shift - LARGEST_RESIDUAL_SHIFT, 0)
                most = 0 if self.half_even else min(right, LARGEST_SHIFT)
                if shift >= 0 and early <= most and 0 <= right - early <= LARGEST_SHIFT:
                    break
                self.exponents[name] = kept
                self.weights.pop(layer.output, None)

    def clip(self, composite: Composite) -> tuple[int, int]:
        """The bounds of its result in int8."""
        return integer_bounds(composite.low, composite.high, self.exponents[composite.output])

    def shift_from(self, sums: int, output: str) -> int:
        """The right shift from sums of an exponent to a value; scales finer than the sums' own gain nothing, and are
        made theirs unless they are fixed.
        """
        if not self.fixed and self.exponents[output] < sums:
            self.exponents[output] = sums
        return self.exponents[output] - sums

    def refused(self, composite: Composite, reason: str) -> None:
        """All of it in float32."""
        for node in composite.nodes:
            self.floating(node, reason)

    def composite(self, composite: Composite) -> None:
        """A layer or an addition with what is fused into it."""
        own = op_of(composite.nodes[0].op).quantize
        if own is not None:
            own(self, composite)
        else:
            self.layer(composite)

    def layer(self, composite: Composite) -> None:
        """A layer with a constant weight, and what is fused into it."""
        head, output = composite.nodes[0], composite.output
        x = head.inputs[0]
        if x not in self.exponents:
            self.refused(composite, "its input is not quantized")
            return
        weight, exponent = self.weight(head)
        sums = self.exponents[x] + exponent
        shift = self.shift_from(sums, output)
        if shift < 0 or self.largest_sum(head, weight, sums) > SUM_LIMIT:
            self.refused(composite, TOO_FINE if shift < 0 else TOO_LARGE)
            return
        clip = self.clip(composite)
        drift = np.rint(np.ldexp(self.drift(head, weight, exponent), -sums))
        bias = (self.bias(head, sums) - drift + (1 << shift >> 1)).astype(np.int32)
        inputs, residual_shift = [self.int_name(x)], None
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
            if residual_shift is not None:
                self.check_residual(residual_shift, self.largest_sum(head, weight, sums))
            shape = self.graph.shape(x)
            data = (math.prod(shape[:-1]), shape[-1]) if head.op == "dense" else shape
            epilogue = self.epilogue(bias, residual_shift, shift, clip)
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
        value = Value(output, self.graph.shape(output), self.exponents[output])
        self.emit_layer(head, inputs, value, attrs, {"weight": weight, "bias": bias})

    def check_residual(self, shift: int, largest: float) -> None:
        """Raise WorkloadError unless a residual can be added to sums of at most ``largest``; says why."""
        if shift < 0:
            raise WorkloadError("its residual's scale is finer than that of its sums")
        if largest + (128 << shift) > SUM_LIMIT:
            raise WorkloadError("its sums with the residual may exceed 32 bits")

    def emit_layer(
        self, head: Node, inputs: Sequence[str], value: Value, attrs: Mapping[str, Any], arrays: Mapping[str, Array]
    ) -> None:
        """A layer's node of integers; a dense layer sees a matrix, whatever the rank of its operands."""
        if head.op != "dense" or len(value.shape) == 2:
            self.emit(head.name, f"int_{head.op}", inputs, value, attrs, arrays)
            return
        rows = math.prod(value.shape[:-1])
        flat = [self.reshaped(name, (rows, self.values[name].shape[-1])) for name in inputs]
        result = Value(f"{value.name}.flat", (rows, value.shape[-1]), value.exponent)
        self.emit(head.name, "int_dense", flat, result, attrs, arrays)
        self.emit(f"{head.name}.reshape", "reshape", [result.name], value, {})

    def unfused(self, composite: Composite, reason: str) -> None:
        """A layer that cannot add its residual itself: its own result is quantized like the sum, and added then."""
        head, *rest = composite.nodes
        self.exponents[head.output] = self.exponents[composite.output]
        self.changes.append(f"{head.name} is rounded to int8 before its residual is added: {reason}")
        self.composite(Composite((head,), None, -math.inf, math.inf))
        self.composite(Composite(tuple(rest), None, composite.low, composite.high))

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
        elif (own := op_of(node.op).quantize) is not None:
            own(self, Composite((node,), None, -math.inf, math.inf))
        else:
            self.floating(node)

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


def _kernel_axes(node: Node, weight: Array) -> tuple[int, ...]:
    """The axes of a weight that are not those of the output's channels."""
    return tuple(axis for axis in range(weight.ndim) if axis != op_of(node.op).weight_outputs)
