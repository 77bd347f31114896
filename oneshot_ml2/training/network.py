"""The networks in PyTorch, and their losses."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.network.predictor import NETWORKS, OUTPUTS, Predictor
from oneshot_ml2.spaces.registry import DEFAULT_KIND

if TYPE_CHECKING:
    from oneshot_ml2.spaces.base import FeatureSet
    from oneshot_ml2.training.data import Data
    from oneshot_ml2.training.settings import Settings


class Network(nn.Module):
    """The networks of `predictor.NETWORKS` on standardised features; what `Predictor` computes in numpy."""

    mean: Tensor
    scale: Tensor

    def __init__(self, settings: Settings, mean: NDArray[np.float32], scale: NDArray[np.float32]) -> None:
        super().__init__()
        for name in NETWORKS:
            widths = [len(mean), *getattr(settings, name), len(OUTPUTS)]
            self.add_module(name, nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths)))
        self.register_buffer("mean", torch.from_numpy(mean))
        self.register_buffer("scale", torch.from_numpy(scale))

    def forward(self, tasks: Tensor, schedules: Tensor) -> list[Tensor]:
        """Each network's outputs (B, M, 3) of task features (B, T) and schedule features (B, M, S)."""
        cut = tasks.shape[-1]
        tasks = (tasks - self.mean[:cut]) / self.scale[:cut]
        schedules = (schedules - self.mean[cut:]) / self.scale[cut:]
        outputs = []
        for name in NETWORKS:
            layers = cast("list[nn.Linear]", list(self.get_submodule(name).children()))
            first, rest = layers[0], layers[1:]
            shared = F.linear(tasks, first.weight[:, :cut], first.bias)
            x = F.linear(schedules, first.weight[:, cut:]) + shared[:, None]
            for layer in rest:
                x = layer(F.relu(x))
            outputs.append(x)
        return outputs


def losses(outputs: Tensor, targets: Sequence[Tensor], s: Settings) -> Tensor:
    """The loss of a network's outputs (B, M, 3) of a batch.

    ``targets``: valid, timed, log LB and log(T / LB), each (B, M), and log T* of each task's samples, (B,).
    """
    valid, timed, log_bound, log_ratio, best = targets
    logit, ratio, log_variance = outputs.unbind(-1)
    validity = F.binary_cross_entropy_with_logits(logit, valid)
    truth = log_bound + log_ratio
    weight = timed * torch.exp(s.fast * (best[:, None] - truth).clamp(max=0.0))
    total = weight.sum().clamp(min=1.0)
    huber = F.smooth_l1_loss(ratio, log_ratio, beta=s.huber, reduction="none")
    residual = (ratio - log_ratio).detach()
    log_variance = log_variance.clamp(-12.0, 4.0)
    spread = 0.5 * (residual**2 * torch.exp(-log_variance) + log_variance)
    # Of two valid schedules the faster one should be predicted faster; the larger and the faster, the more it counts.
    guess = log_bound + ratio
    gap = truth[:, None, :] - truth[:, :, None]
    pair = weight[:, :, None] * timed[:, None, :] * gap.clamp(0.0, 4 * s.temperature)
    wrong = F.softplus((guess[:, :, None] - guess[:, None, :]) / s.temperature)
    rank = (pair * wrong).sum() / pair.sum().clamp(min=1e-6)
    return (
        ((weight * huber).sum() / total) / s.huber
        + s.validity_weight * validity
        + s.rank_weight * rank
        + s.spread_weight * (weight * spread).sum() / total
    )


def standardisation(data: Data, tasks: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation of all features over the samples of ``tasks``, float32 (F,); constants get 1."""
    count, total, squares = 0, 0.0, 0.0
    for t in tasks:
        block = data.schedules[data.rows(int(t))].astype(np.float64)
        count += len(block)
        total, squares = total + block.sum(axis=0), squares + (block**2).sum(axis=0)
    mean = total / count
    own = data.tasks[tasks].astype(np.float64)
    means = np.concatenate([own.mean(axis=0), mean])
    deviations = np.concatenate([own.std(axis=0), np.sqrt(np.maximum(squares / count - mean**2, 0.0))])
    scales = np.where(deviations > 1e-4, deviations, 1.0)
    return means.astype(np.float32), scales.astype(np.float32)


def start_from(network: Network, weights: Predictor, seen: FeatureSet) -> None:
    """Make a network, which sees ``seen``, say what weights say; what they do not see counts for nothing yet.

    A feature that is constant in the network's data is taken to be what it was on average in that of the weights. Where
    latencies are predicted beside other cycles than those weights', the network predicts just these at first.

    Raises:
        OneShotError: weights that see other features, or whose hidden layers are of other widths.
    """
    known = weights.seen.all
    if not set(known) <= set(seen.all):
        raise OneShotError(
            "training settings: start: these weights see other features; start from others, or from none"
        )
    places = np.array([seen.all.index(name) for name in known])
    mean, scale = (buffer.double().numpy()[places] for buffer in (network.mean, network.scale))
    old_mean, old_scale = (weights.tensors[name].astype(np.float64) for name in ("mean", "scale"))
    shift = np.where(scale == 1.0, 0.0, (mean - old_mean) / old_scale)
    state = network.state_dict()
    for name in NETWORKS:
        first = weights.tensors[f"{name}.0.weight"].astype(np.float64)
        widened = np.zeros((len(first), len(seen.all)))
        widened[:, places] = first * (scale / old_scale)
        given: dict[str, NDArray[Any]] = {
            key: tensor for key, tensor in weights.tensors.items() if key.startswith(f"{name}.")
        }
        given |= {f"{name}.0.weight": widened, f"{name}.0.bias": given[f"{name}.0.bias"] + first @ shift}
        if seen.beside != weights.seen.beside:
            # The weights are shared with others.
            last, latency = len(getattr(network, name)) - 1, OUTPUTS.index("log(T / LB)")
            for key in (f"{name}.{last}.weight", f"{name}.{last}.bias"):
                given[key] = given[key].copy()
                given[key][latency] = 0.0
        own = {key: tuple(tensor.shape) for key, tensor in state.items() if key.startswith(f"{name}.")}
        if own != {key: tensor.shape for key, tensor in given.items()}:
            raise OneShotError(
                f"training settings: start: the hidden layers of {name} are of other widths there; set {name} to them"
            )
        state |= {key: torch.from_numpy(tensor.astype(np.float32)) for key, tensor in given.items()}
    network.load_state_dict(state)


def to_predictor(
    network: Network,
    low: NDArray[np.float32],
    high: NDArray[np.float32],
    card: dict[str, Any],
    kind: str = DEFAULT_KIND,
    version: int | None = None,
) -> Predictor:
    """The network's weights as they are shipped."""
    tensors = {name: tensor.detach().numpy().copy() for name, tensor in network.state_dict().items()}
    return Predictor(tensors | {"low": low, "high": high}, card, kind, version)
