"""The Relax function of an integer graph: launches of the VTA's layers, and code for the host around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from oneshot_ml2.models.ir import Graph, Node
from oneshot_ml2.models.launcher import LAUNCHER
from oneshot_ml2.models.layout import Segment
from oneshot_ml2.models.ops.base import Expr, HostCode
from oneshot_ml2.models.ops.host import Host
from oneshot_ml2.models.ops.registry import is_integer, op_of


def relax_module(graph: Graph, steps: Sequence[Node | Segment], identity: str) -> Any:
    """An IRModule whose ``main`` computes the graph.

    Args:
        steps: nodes that become host code, and the submissions that the launcher runs, numbered in their order.
        identity: of the model, for the launcher.
    """
    import tvm
    from tvm import relax

    builder = relax.BlockBuilder()
    host = Host(builder)
    env: dict[str, Expr] = {
        name: relax.Var(_identifier(name), relax.TensorType(graph.values[name].shape, "float32"))
        for name in graph.inputs
    }
    parameters = [env[name] for name in graph.inputs]
    count = 0
    with builder.function("main", parameters):
        with builder.dataflow():
            for step in steps:
                if isinstance(step, Node):
                    names = step.inputs
                    operands = [env[name] if name in env else relax.const(graph.constants[name]) for name in names]
                    shapes = [graph.shape(name) for name in names]
                    value = graph.values[step.output]
                    env[step.output] = builder.emit(_code(step)(host, step, operands, shapes, value))
                    continue
                launch = [tvm.ir.StringImm(identity), relax.prim_value(count), *(env[name] for name, _ in step.inputs)]
                kinds = [relax.TensorType(graph.values[name].shape, "int8") for name in step.outputs]
                results = builder.emit(relax.call_dps_packed(LAUNCHER, relax.Tuple(launch), out_ty=kinds))
                count += 1
                if len(kinds) == 1:
                    env[step.outputs[0]] = results
                    continue
                for index, name in enumerate(step.outputs):
                    env[name] = builder.emit(relax.TupleGetItem(results, index))
            outputs = [env[name] for name in graph.outputs]
            output = builder.emit_output(outputs[0] if len(outputs) == 1 else relax.Tuple(outputs))
        builder.emit_func_output(output)
    return builder.get()


def _identifier(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def _code(node: Node) -> HostCode:
    """How the host computes a node."""
    op = op_of(node.op)
    code = op.integer_host if is_integer(node) else op.host
    assert code is not None
    return code
