"""PyTorch modules through TVM Relax."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.models.frontend.from_relax import INPUTS, SUPPORTED, first_line, from_relax, quiet
from oneshot_ml2.models.ir import Graph
from oneshot_ml2.models.ops.registry import ops, torch_imports
from oneshot_ml2.models.simplify import NAMELESS

if TYPE_CHECKING:
    from torch import nn

# PyTorch operator -> ours, to give layers their names in the module.
_TORCH_OPS = {name: op.named or op.name for op in ops().values() for name in op.torch_layers}


def import_torch(module: nn.Module, example_inputs: Sequence[Any], name: str | None = None) -> Graph:
    """A PyTorch module as a graph, by ``torch.export`` at the shapes of its example inputs (float32, or token ids).

    Raises:
        ModelError: it cannot be exported, or has an operator that is not supported.
        ModuleNotFoundError: tvm is not installed.
    """
    import torch
    from tvm.relax.frontend.torch import from_exported_program

    for index, example in enumerate(example_inputs):
        allowed = (torch.float32, torch.int64, torch.int32)
        if not isinstance(example, torch.Tensor) or example.dtype not in allowed:
            kind = example.dtype if isinstance(example, torch.Tensor) else type(example).__name__
            raise ModelError(f"example input {index} is {kind}; {INPUTS}")
    with quiet():
        try:
            program = torch.export.export(module.eval(), tuple(example_inputs))
        except Exception as error:
            raise ModelError(f"torch.export cannot export {type(module).__name__}: {first_line(error)}") from error
        try:
            relax_module = from_exported_program(
                program, unwrap_unit_return_tuple=True, custom_convert_map=torch_imports()
            )
        except Exception as error:
            raise ModelError(f"TVM cannot import {type(module).__name__}: {first_line(error)}") from error
    names: dict[str, list[tuple[str, str]]] = {}
    for node in program.graph.nodes:
        op = _TORCH_OPS.get(getattr(node.target, "__name__", "")) if node.op == "call_function" else None
        if op is not None:
            stack = list((node.meta.get("nn_module_stack") or {}).values())
            path = stack[-1][0] if stack else ""
            names.setdefault(op, []).append((f"{path}.{op}" if path and op in NAMELESS else path, node.name))
    return from_relax(relax_module, name or type(module).__name__, names, SUPPORTED)
