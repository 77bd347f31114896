"""Models as what an accelerator computes of them: workloads and how often each occurs."""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from oneshot_ml2.common.errors import ModelError, OneShotError, OneShotWarning
from oneshot_ml2.corpus.format import workload_text
from oneshot_ml2.models.compile import vta_layers
from oneshot_ml2.models.frontend import importer
from oneshot_ml2.models.frontend.importer import LayerList
from oneshot_ml2.models.ir import Graph
from oneshot_ml2.models.patches import over_patches
from oneshot_ml2.models.quantize.quantize import quantize
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.workload.base import Workload
from oneshot_ml2.workload.batch_matmul import BatchMatmul
from oneshot_ml2.workload.lists import Layer


@dataclass(frozen=True)
class Model:
    """A model to build an accelerator for.

    Attributes:
        name: what it is called.
        layers: those that the VTA takes, of few input channels as they are.
        graph: the integer graph that they are of; None: a list of layers.
        weight: of its time beside other models'.
    """

    name: str
    layers: tuple[Layer, ...]
    graph: Graph | None = None
    weight: float = 1.0

    def workloads(self, accelerator: Accelerator, images: int = 1) -> Counter[Workload]:
        """What an accelerator computes for so many images at once, and how often each occurs.

        Layers of few channels are products with patches where `compile` makes them so on this accelerator.
        """
        layers: Sequence[Layer] = self.layers
        if self.graph is not None:
            layers = vta_layers(over_patches(self.graph, accelerator))
        found = Counter[Workload]()
        for layer in layers:
            found[of_images(layer.workload, images)] += layer.count
        return found

    @property
    def digest(self) -> str:
        """SHA-256 of what is computed."""
        text = repr([self.name, self.weight, [(workload_text(layer.workload), layer.count) for layer in self.layers]])
        return hashlib.sha256(text.encode()).hexdigest()


def of_images(workload: Workload, images: int) -> Workload:
    """A workload for so many images (or texts) at once instead of one."""
    if images == 1:
        return workload
    name = "b" if isinstance(workload, BatchMatmul) else "n"
    changed: Workload = dataclasses.replace(workload, **{name: getattr(workload, name) * images})  # type: ignore[type-var]
    return changed


def read_model(model: Any, size: int | None = None, weight: float = 1.0) -> Model:
    """A model as `compile` takes it (a name of the zoo, an ONNX file, a list of layers), through the same stages.

    Scales come from random inputs, as no time depends on them.

    Raises:
        OneShotError: a model that cannot be imported or quantized, or of which the VTA takes nothing.
    """
    if not weight > 0:
        raise OneShotError(f"the weight of {model} is {weight:g}; allowed: above 0")
    source = importer.import_model(model, None, size)
    if isinstance(source, LayerList):
        return Model(source.name, source.layers, weight=weight)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OneShotWarning)
        graph = quantize(source, None, 0).graph
    layers = tuple(vta_layers(graph))
    if not layers:
        raise ModelError(
            f"{graph.name}: none of its operators is one that the VTA takes; there is nothing to design for"
        )
    return Model(graph.name, layers, graph, weight)
