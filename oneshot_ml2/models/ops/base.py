"""The record of an operator: everything that the other modules ask about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from numpy.typing import NDArray

if TYPE_CHECKING:
    from oneshot_ml2.models.ir import Graph, Node, Value
    from oneshot_ml2.models.ops.host import Host
    from oneshot_ml2.models.ops.importing import OnnxNode
    from oneshot_ml2.models.ops.reading import Reader
    from oneshot_ml2.workload.epilogue import Epilogue
    from oneshot_ml2.workload.registry import Workload

Array: TypeAlias = NDArray[Any]
Attrs: TypeAlias = Mapping[str, Any]
Shape: TypeAlias = Sequence[int]
Shapes: TypeAlias = list[tuple[int, ...]]
# Relax expressions; TVM has no types of its own to check them by.
Expr: TypeAlias = Any
# (reader, Relax call) -> the name of the value that it makes, or a tuple of names.
Read: TypeAlias = "Callable[[Reader, Any], Any]"
# (node) -> the Relax expression of its result, or one of several.
Import: TypeAlias = "Callable[[OnnxNode], Expr]"
# (torch.fx node, TVM's importer) -> the Relax expression of its result, or one of several.
TorchImport: TypeAlias = "Callable[[Any, Any], Expr]"
# (operands, attributes, shape of the result) -> the result.
Function: TypeAlias = Callable[[Sequence[Array], Attrs, Shape], Array]
# (operands, node, shape of the result) -> the result, int8.
Integer: TypeAlias = "Callable[[Sequence[Array], Node, Shape], Array]"
# (host, node, operands, their shapes, what the node makes) -> the Relax expression.
HostCode: TypeAlias = "Callable[[Host, Node, list[Expr], Shapes, Value], Expr]"


@dataclass(frozen=True)
class Op:
    """One operator of a graph; what a field does not give, the operator does not have.

    Attributes:
        name: of its nodes; those of integers are called ``int_`` and that.
        relax: Relax operators that are read as it, and how; also those of our own, see `OnnxNode.own`.
        onnx_import: ONNX operators that become Relax by it, where TVM's importer lacks or mistakes them.
        torch_import: the same of PyTorch's.
        proposed: whether errors propose its Relax operators to users.
        onnx: ONNX operators that errors propose.
        onnx_layers, torch_layers: operators of the frontends whose names its nodes take.
        named: the operator whose nodes take those names; empty: this one.
        compute: what it makes of float32 operands, or of any type if it ``moves_data`` or ``keeps_type``.
        integer: what its nodes of integers make; of operators without ``compute``, all nodes are such.
        host, integer_host: the same as code for the host.
        elementwise: an element of its result follows from those of its operands in the same place.
        moves_data: it moves elements only.
        one_source: of those that move data, that its result holds elements of one operand as they are.
        keeps_type: its result has a type of its own, or its operand's.
        bounds: of operators that bound their operand: (attributes) -> the least and the largest result.
        scales: on int8 operands it has an int8 result of a scale of its own.
        keeps_scale: on int8 its result has the scale of its operand.
        layer: (attributes, shape of data, of weight, epilogue) -> workload, of sums of products; raises WorkloadError.
        plain_layer: (attributes, shape of data, of the result) -> workload, of those that ``keeps_scale``.
        weight_outputs: the axis of a constant weight along which the output channels lie; None: no such weight.
        channels: the axis of the result along which they lie.
        ungrouped: (weight, groups) -> the weight with one group, where that is all that ``layer`` has.
        macs: (elements of the result, shape of data, of weight) -> multiplications.
        reason: why the host computes it.
        rewrite: a pass over imported float graphs, before constants are folded.
    """

    name: str
    relax: Mapping[str, Read] = field(default_factory=dict)
    onnx_import: Mapping[str, Import] = field(default_factory=dict)
    torch_import: Mapping[str, TorchImport] = field(default_factory=dict)
    proposed: bool = True
    onnx: tuple[str, ...] = ()
    onnx_layers: tuple[str, ...] = ()
    torch_layers: tuple[str, ...] = ()
    named: str = ""
    compute: Function | None = None
    integer: Integer | None = None
    host: HostCode | None = None
    integer_host: HostCode | None = None
    elementwise: bool = False
    moves_data: bool = False
    one_source: bool = False
    keeps_type: bool = False
    bounds: Callable[[Attrs], tuple[float, float]] | None = None
    scales: bool = False
    keeps_scale: bool = False
    layer: Callable[[Attrs, Shape, Shape, Epilogue], Workload] | None = None
    plain_layer: Callable[[Attrs, Shape, Shape], Workload] | None = None
    weight_outputs: int | None = None
    channels: int = 1
    ungrouped: Callable[[Array, int], Array] | None = None
    macs: Callable[[int, Shape, Shape], int] | None = None
    reason: str = "computed in float32"
    rewrite: Callable[[Graph], Graph] | None = None
