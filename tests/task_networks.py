"""Task networks with drawn weights, for tests of what uses one."""

from __future__ import annotations

import itertools

import numpy as np

from oneshot_ml2.network.tasks import TaskNetwork
from oneshot_ml2.spaces.full.task_features import FEATURES


def drawn_network(seed: int = 0, scale: float = 0.02, networks: int = 2) -> TaskNetwork:
    """Small networks whose predictions are near the guess in closed form."""
    rng = np.random.default_rng(seed)
    widths = (len(FEATURES), 8, 1)
    tensors = {
        "mean": np.zeros(len(FEATURES)),
        "scale": np.full(len(FEATURES), 10.0),
        "low": np.full(len(FEATURES), -100.0),
        "high": np.full(len(FEATURES), 100.0),
    }
    for name in (f"task{k}" for k in range(networks)):
        for i, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
            tensors[f"{name}.{i}.weight"] = rng.normal(0, scale, (outputs, inputs))
            tensors[f"{name}.{i}.bias"] = rng.normal(0, scale, outputs)
    return TaskNetwork({name: tensor.astype(np.float32) for name, tensor in tensors.items()}, {"samples": 0})
