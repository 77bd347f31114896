"""What the nodes of a graph compute, in numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from oneshot_ml2.models import partition
from oneshot_ml2.models.ir import Node
from oneshot_ml2.models.ops.base import Array, Function
from oneshot_ml2.models.ops.registry import is_integer, op_of, ops

# By operator; of those that a graph has before it is quantized.
FLOAT: dict[str, Function] = {op.name: op.compute for op in ops().values() if op.compute is not None}
# Those that move elements only, of any type.
SHAPING: dict[str, Function] = {name: function for name, function in FLOAT.items() if ops()[name].moves_data}


def compute(node: Node, args: Sequence[Array], out: Sequence[int]) -> Array:
    """What a node makes of its operands; ``out`` is the shape of the result."""
    workload = node.attrs.get("workload")
    if workload is not None:
        operands = dict(zip(partition.operand_names(node), args, strict=True))
        return np.asarray(workload.reference({**operands, **node.arrays}))
    op = op_of(node.op)
    if is_integer(node):
        assert op.integer is not None
        return op.integer(args, node, out)
    assert op.compute is not None
    result = op.compute(args, node.attrs, out)
    return result if op.moves_data or op.keeps_type else np.asarray(result, dtype=np.float32)
