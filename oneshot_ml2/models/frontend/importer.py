"""Anything that can be compiled: a model as a float graph, or a list of layers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oneshot_ml2.common.errors import ModelError, OneShotError
from oneshot_ml2.models import zoo
from oneshot_ml2.models.frontend.from_onnx import import_onnx
from oneshot_ml2.models.frontend.from_torch import import_torch
from oneshot_ml2.models.ir import Graph
from oneshot_ml2.workload.lists import Layer, read_layers


def is_onnx(model: object) -> bool:
    """Whether a model is named as an ONNX file is, in letters of any case."""
    return isinstance(model, (str, os.PathLike)) and os.fspath(model).lower().endswith(".onnx")


def is_list(model: object) -> bool:
    """Whether a model is named as a list of layers is, in letters of any case."""
    return isinstance(model, (str, os.PathLike)) and os.fspath(model).lower().endswith(".toml")


@dataclass(frozen=True)
class LayerList:
    """Layers that are compiled one by one, and what they are called together."""

    name: str
    layers: tuple[Layer, ...]


def import_model(model: Any, example_inputs: Sequence[Any] | None = None, size: int | None = None) -> Graph | LayerList:
    """Anything that can be compiled: a model as a float graph, or layers as they are.

    Args:
        model: a path ending in ``.onnx`` or ``.toml``, a name of the zoo (`zoo.model_names`), a PyTorch module, or
            `Layer`s.
        example_inputs: of a PyTorch module; their shapes are compiled for.
        size: height and width of the zoo's images, or its number of tokens; None: `zoo.native_size`.

    Raises:
        OneShotError: none of them, or a model that cannot be imported.
    """
    if is_list(model):
        return LayerList(Path(model).stem, tuple(read_layers(model)))
    if isinstance(model, Sequence) and not isinstance(model, str):
        return LayerList("layers", tuple(model))
    return import_graph(model, example_inputs, size)


def import_graph(model: Any, example_inputs: Sequence[Any] | None = None, size: int | None = None) -> Graph:
    """As `import_model`, of what is no list of layers."""
    if isinstance(model, (str, Path)):
        if is_onnx(model):
            return import_onnx(model)
        name = str(model)
        zoo.check_name(name)
        size = zoo.native_size(name) if size is None else size
        if size < 1:
            raise OneShotError(f"size is {size}; allowed: at least 1")
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = zoo.build(name)
        return import_torch(module, (zoo.example_input(name, size),), name)
    if example_inputs is None:
        raise ModelError("a PyTorch module needs example_inputs, a tuple of tensors that fix the shapes")
    return import_torch(model, example_inputs)
