"""All operators by name: what the files of this folder list in ``OPS``."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from oneshot_ml2.common.records import modules
from oneshot_ml2.models.ops.base import Import, Op, Read, TorchImport

if TYPE_CHECKING:
    from oneshot_ml2.models.ir import Node


@cache
def ops() -> dict[str, Op]:
    """Name -> operator."""
    return {op.name: op for module in modules("oneshot_ml2.models.ops") for op in getattr(module, "OPS", ())}


def op_of(name: str) -> Op:
    """The operator of a node's ``op``, be it of floats or of integers."""
    return ops()[name.removeprefix("int_")]


def is_integer(node: Node) -> bool:
    """Whether a node computes an operator's integer form; some have no other."""
    return node.op.startswith("int_") or op_of(node.op).compute is None


@cache
def readers() -> dict[str, Read]:
    """Relax operator -> how it is read."""
    return {name: read for op in ops().values() for name, read in op.relax.items()}


@cache
def onnx_imports() -> dict[str, Import]:
    """ONNX operator -> how it becomes Relax, of those that are not left to TVM."""
    return {name: make for op in ops().values() for name, make in op.onnx_import.items()}


@cache
def torch_imports() -> dict[str, TorchImport]:
    """As `onnx_imports`, of PyTorch's operators."""
    return {name: make for op in ops().values() for name, make in op.torch_import.items()}
