"""Small networks for tests: random ones, and a corpus to train on."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from oneshot_ml2.corpus import collect
from oneshot_ml2.corpus.plan import Plan
from oneshot_ml2.network.predictor import NETWORKS, OUTPUTS, Predictor
from oneshot_ml2.spaces.full import features as full_features
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.workload.base import Workload
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.dense import Dense
from oneshot_ml2.workload.epilogue import Epilogue
from oneshot_ml2.workload.lists import Layer

SMALL = Conv2d(1, 32, 6, 6, 48, 3, 3, padding=1)
LAYERS = (
    Layer("small", SMALL, 3),
    Layer("strided", Conv2d(2, 24, 9, 7, 32, 3, 3, 2, 1, epilogue=Epilogue(bias=True)), 1),
    Layer("pointwise", Conv2d(1, 64, 5, 5, 32, 1, 1), 1),
    Layer("dense", Dense(2, 64, 40), 2),
)
CHIPS = ("pynq", "b8", "b2x16")


def random_network(
    seed: int = 0,
    widths: tuple[int, ...] = (8, 6),
    trusting: float = 0.0,
    version: int = full_features.FEATURE_VERSION,
) -> Predictor:
    """A network of random weights; ``trusting`` is added to every validity logit; ``version``: of its features."""
    rng = np.random.default_rng(seed)
    seen = full_features.FEATURE_SETS[version]
    features, tasks = len(seen.all), len(seen.task)
    tensors = {
        "mean": rng.normal(size=features),
        "scale": rng.uniform(0.5, 2.0, size=features),
        "low": np.zeros(tasks),
        "high": np.full(tasks, 40.0),
    }
    for network in NETWORKS:
        sizes = (features, *widths, len(OUTPUTS))
        for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
            tensors[f"{network}.{i}.weight"] = rng.normal(size=(outputs, inputs)) / inputs**0.5
            tensors[f"{network}.{i}.bias"] = rng.normal(size=outputs) * 0.1
        tensors[f"{network}.{len(widths)}.bias"][0] += trusting
    arrays = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    return Predictor(arrays, {"note": "random"}, version=version)


def small_corpus(folder: Path, samples: int = 60) -> Path:
    """A corpus of every pair of `LAYERS` and `CHIPS`."""
    chips = tuple(Accelerator.load(name) for name in CHIPS)
    plan = Plan(layers=LAYERS, accelerators=chips, tasks=len(LAYERS) * len(CHIPS), samples=samples, seed=3)
    collect.collect(plan, folder, progress=False)
    return folder


def workloads() -> list[Workload]:
    """The workloads of `LAYERS`."""
    return [layer.workload for layer in LAYERS]
