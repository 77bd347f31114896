"""PyTorch modules through TVM Relax."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from oneshot_ml2.common.errors import ModelError, first_line
from oneshot_ml2.models.frontend.from_onnx import from_proto
from oneshot_ml2.models.frontend.from_relax import INPUTS, SUPPORTED, from_relax, quiet
from oneshot_ml2.models.frontend.origins import Imported, forget
from oneshot_ml2.models.ir import Graph
from oneshot_ml2.models.ops.registry import ops, torch_imports
from oneshot_ml2.models.simplify import in_module

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
        allowed = (torch.float32, torch.int64, torch.int32, torch.bool)
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
    """What ``torch.export`` made, as a graph; what TVM's importer of PyTorch refuses comes through ONNX, with a note.

    Raises:
        ModelError: it has free dimensions, or an operator that is not supported.
        ModuleNotFoundError: tvm is not installed.
    """
    if program.range_constraints:
        free = ", ".join(str(symbol) for symbol in program.range_constraints)
        raise ModelError(f"the exported program has free dimensions ({free}); export it without dynamic_shapes")
    try:
        return _by_tvm(program, name)
    except ModelError as error:
        try:
            graph = _by_onnx(program, name)
        except ModelError:
            # Its names are those of PyTorch, which users know.
            raise error from None
    notes = ("PyTorch's exporter wrote it as ONNX, which has what TVM's importer of PyTorch lacks", *graph.notes)
    return dataclasses.replace(graph, notes=notes)


def _by_tvm(program: ExportedProgram, name: str) -> Graph:
    from tvm.relax.frontend.torch import from_exported_program

    with quiet():
        try:
            relax_module = from_exported_program(
                program, unwrap_unit_return_tuple=True, custom_convert_map=torch_imports()
            )
        except Exception as error:
            forget(error)
            raise ModelError(f"TVM cannot import {name}: {first_line(error)}") from error
    names: dict[str, list[tuple[str, str]]] = {}
    for node in program.graph.nodes:
        op = _TORCH_OPS.get(getattr(node.target, "__name__", "")) if node.op == "call_function" else None
        if op is not None:
            stack = list((node.meta.get("nn_module_stack") or {}).values())
            names.setdefault(op, []).append((in_module(stack[-1][0] if stack else "", op), node.name))
    return from_relax(Imported(relax_module), name, names, SUPPORTED)


def _by_onnx(program: ExportedProgram, name: str) -> Graph:
    import torch

    # It prints how it gets on.
    with quiet(), contextlib.redirect_stdout(io.StringIO()):
        try:
            exported = torch.onnx.export(program, dynamo=True, verbose=False)
            assert exported is not None
            proto = exported.model_proto
        except Exception as error:
            raise ModelError(f"PyTorch cannot write {name} as ONNX: {first_line(error)}") from error
    return from_proto(proto, name)
