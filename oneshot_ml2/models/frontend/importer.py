"""Any model that can be imported, as a float graph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from oneshot_ml2.common.errors import ModelError, OneShotError
from oneshot_ml2.models import is_onnx, zoo
from oneshot_ml2.models.frontend.from_onnx import import_onnx
from oneshot_ml2.models.frontend.from_torch import import_torch
from oneshot_ml2.models.ir import Graph


def import_model(model: Any, example_inputs: Sequence[Any] | None = None, size: int = 224) -> Graph:
    """A path ending in ``.onnx``, a name of the zoo (`models.model_names`), or a PyTorch module with example inputs.

    Raises:
        OneShotError: none of them, or a model that cannot be imported.
    """
    if isinstance(model, (str, Path)):
        if is_onnx(model):
            return import_onnx(model)

        if size < 1:
            raise OneShotError(f"size is {size}; allowed: at least 1")
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = zoo.build(str(model))
        return import_torch(module, (zoo.example_input(str(model), size),), str(model))
    if example_inputs is None:
        raise ModelError("a PyTorch module needs example_inputs, a tuple of tensors that fix the shapes")
    return import_torch(model, example_inputs)
