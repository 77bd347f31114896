"""Anything that can be compiled: a model as a float graph, or a list of layers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oneshot_ml2.common.errors import ModelError, OneShotError
from oneshot_ml2.models import zoo
from oneshot_ml2.models.frontend.from_onnx import import_onnx
from oneshot_ml2.models.frontend.from_torch import import_program, import_torch, is_program
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


def import_model(
    model: Any,
    example_inputs: Sequence[Any] | None = None,
    size: int | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Graph | LayerList:
    """Anything that can be compiled: a model as a float graph, or layers as they are.

    Args:
        model: a path ending in ``.onnx`` or ``.toml``, a name of the zoo (`zoo.model_names`), a PyTorch module, what
            ``torch.export`` makes, or `Layer`s.
        example_inputs: of a PyTorch module; their shapes are compiled for.
        size: height and width of the zoo's images, or its number of tokens; None: `zoo.native_size`.
        shapes: of an ONNX file's inputs, by name, where it leaves dimensions free.

    Raises:
        OneShotError: none of them, or a model that cannot be imported.
    """
    if shapes and not is_onnx(model):
        raise ModelError("shapes are those of an ONNX file's inputs; this model is none")
    if is_list(model):
        return LayerList(Path(model).stem, tuple(read_layers(model)))
    if isinstance(model, Sequence) and not isinstance(model, str):
        return LayerList("layers", tuple(model))
    if is_onnx(model):
        return import_onnx(model, shapes)
    return import_graph(model, example_inputs, size)


def import_graph(model: Any, example_inputs: Sequence[Any] | None = None, size: int | None = None) -> Graph:
    """As `import_model`, of a name of the zoo or PyTorch's."""
    if isinstance(model, (str, Path)):
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
    if is_program(model):
        if example_inputs is not None:
            raise ModelError("an exported program has its shapes; example_inputs are of PyTorch modules")
        return import_program(model)
    if example_inputs is None:
        raise ModelError("a PyTorch module needs example_inputs, a tuple of tensors that fix the shapes")
    return import_torch(model, example_inputs)
