"""PyTorch modules through TVM Relax."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from oneshot_ml2.common.errors import ModelError, first_line
from oneshot_ml2.models.frontend.from_relax import INPUTS, SUPPORTED, from_relax, quiet
from oneshot_ml2.models.frontend.origins import Imported
from oneshot_ml2.models.ir import Graph
from oneshot_ml2.models.ops.registry import ops, torch_imports
from oneshot_ml2.models.simplify import NAMELESS

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

# PyTorch operator -> ours, to give layers their names in the module.
_TORCH_OPS = {name: op.named or op.name for op in ops().values() for name in op.torch_layers}

_PROGRAM = "torch.export.exported_program.ExportedProgram"


def import_torch(module: nn.Module, example_inputs: Sequence[Any], name: str | None = None) -> Graph:
    """A PyTorch module as a graph, by ``torch.export`` at the shapes of its example inputs (float32, or token ids).

    Raises:
        ModelError: it cannot be exported, or has an operator that is not supported.
        ModuleNotFoundError: tvm is not installed.
    """
    import torch

    for index, example in enumerate(example_inputs):
        allowed = (torch.float32, torch.int64, torch.int32)
        if not isinstance(example, torch.Tensor) or example.dtype not in allowed:
            kind = example.dtype if isinstance(example, torch.Tensor) else type(example).__name__
            raise ModelError(f"example input {index} is {kind}; {INPUTS}")
    kind = type(module).__name__
    with quiet():
        try:
            program = torch.export.export(module.eval(), tuple(example_inputs))
        except Exception as error:
            raise ModelError(f"torch.export cannot export {kind}: {first_line(error)}") from error
    return import_program(program, name or kind)


def is_program(model: object) -> bool:
    """Whether a model is what ``torch.export`` makes, told without loading PyTorch."""
    return any(f"{kind.__module__}.{kind.__name__}" == _PROGRAM for kind in type(model).__mro__)


def import_program(program: ExportedProgram, name: str = "program") -> Graph:
    """What ``torch.export`` made, as a graph.

    Raises:
        ModelError: it has free dimensions, or an operator that is not supported.
        ModuleNotFoundError: tvm is not installed.
    """
    from tvm.relax.frontend.torch import from_exported_program

    if program.range_constraints:
        free = ", ".join(str(symbol) for symbol in program.range_constraints)
        raise ModelError(f"the exported program has free dimensions ({free}); export it without dynamic_shapes")
    with quiet():
        try:
            relax_module = from_exported_program(
                program, unwrap_unit_return_tuple=True, custom_convert_map=torch_imports()
            )
        except Exception as error:
            raise ModelError(f"TVM cannot import {name}: {first_line(error)}") from error
    names: dict[str, list[tuple[str, str]]] = {}
    for node in program.graph.nodes:
        op = _TORCH_OPS.get(getattr(node.target, "__name__", "")) if node.op == "call_function" else None
        if op is not None:
            stack = list((node.meta.get("nn_module_stack") or {}).values())
            path = stack[-1][0] if stack else ""
            names.setdefault(op, []).append((f"{path}.{op}" if path and op in NAMELESS else path, node.name))
    return from_relax(Imported(relax_module), name, names, SUPPORTED)
