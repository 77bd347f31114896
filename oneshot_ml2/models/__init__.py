"""Whole models: imported through TVM Relax, quantized, compiled for a VTA and the host, saved and run.

``compile_model`` needs tvm (and onnx for ONNX files): ``pip install 'oneshot-ml2[onnx]'``.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oneshot_ml2.models.compiled import CompiledGraph
    from oneshot_ml2.models.executable import Executable

_MODULE_OF = {
    "CompiledGraph": "compiler",
    "compile_model": "compiler",
    "Executable": "executable",
    "load": "executable",
}

__all__ = ["CompiledGraph", "Executable", "compile_model", "is_onnx", "load"]


def is_onnx(model: object) -> bool:
    """Whether a model is named as an ONNX file is, in letters of any case."""
    return isinstance(model, (str, os.PathLike)) and os.fspath(model).lower().endswith(".onnx")


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
