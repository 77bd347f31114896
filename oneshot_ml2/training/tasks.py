"""Training of the task network on labels: features, split, loop, card.

Kept out are a share of the layers, by their shapes, and a share of the accelerators, by their block, batch, bus and
design: neither a layer nor an accelerator of the validation sets is trained on.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import itertools
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from oneshot_ml2.common import metrics
from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.network.tasks import NETWORK, TaskNetwork
from oneshot_ml2.spaces.registry import DEFAULT_KIND, space_kind
from oneshot_ml2.training.checkpoint import commit
from oneshot_ml2.training.task_shards import Labels

# Validation sets: unseen layers on seen accelerators, seen ones on unseen accelerators, and both unseen.
SETS = ("layer", "accelerator", "both")


@dataclass(frozen=True)
class TaskSettings:
    """What a training run is decided by; `train/tasks.toml` explains each.

    Attributes:
        networks: whose mean is predicted; they differ in where they begin, and in the order of what they see.
        widths: of the hidden layers of each.
        epochs: passes over the pairs.
        batch: pairs of a step.
        learning_rate, weight_decay: AdamW; the rate falls as a cosine.
        average: decay of the exponential average of the weights that is kept.
        dropout: share of the hidden units that a step leaves out.
        huber: residual in log T* beyond which the loss grows linearly.
        held_layers, held_accelerators: shares that are kept for validation.
        seed: of everything random.
    """

    networks: int = 1
    widths: tuple[int, ...] = (256, 256, 128)
    epochs: int = 80
    batch: int = 512
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    average: float = 0.998
    dropout: float = 0.0
    huber: float = 0.01
    held_layers: float = 0.1
    held_accelerators: float = 0.1
    seed: int = 1

    def __post_init__(self) -> None:
        shares = (self.held_layers, self.held_accelerators, self.dropout)
        if not self.widths or min(*self.widths, self.networks, self.epochs, self.batch) < 1:
            raise OneShotError("training settings: networks, widths, epochs and batch are at least 1")
        if not all(0 <= share < 1 for share in shares):
            raise OneShotError("training settings: held_layers, held_accelerators and dropout are shares below 1")


@dataclass(frozen=True)
class TaskData:
    """Features and targets of n pairs.

    ``features``: float32 (n, F); ``target``: float32 (n,), log(T* / reference); ``picked``: float64 (n,), T of the pick
    over T*; ``bound``: float64 (n,), log(T* / engine bound); ``layers``, ``shapes``: what a pair's workload is, and its
    accelerator but for the SRAMs; ``families``: int32 (n,).
    """

    features: NDArray[np.float32]
    target: NDArray[np.float32]
    picked: NDArray[np.float64]
    bound: NDArray[np.float64]
    layers: list[Hashable]
    shapes: list[Hashable]
    families: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.target)


def make_task_data(labels: Labels) -> TaskData:
    """Features and targets of labels."""
    record = space_kind(DEFAULT_KIND)
    order = np.argsort(labels.family, kind="stable")
    closed = labels.closed[order]
    nests, layers, shapes = [], list[Hashable](), list[Hashable]()
    for family in np.unique(labels.family).tolist():
        workload, members = labels.workloads[family], labels.members(family)
        chip = members[0]
        nests.append(record.families.nests(workload, members))
        layers += [workload.shape_key] * len(members)
        shapes += [(chip.log_block, chip.log_batch, chip.bus_bits, chip.design)] * len(members)
    least = labels.least[order].astype(np.float64)
    return TaskData(
        features=record.tasks.encode(np.concatenate(nests), closed),
        target=np.log(least / record.tasks.reference(closed)).astype(np.float32),
        picked=labels.cycles[order] / least,
        bound=np.log(least / labels.engine_bound[order]),
        layers=layers,
        shapes=shapes,
        families=labels.family[order],
    )


def _held(keys: Sequence[Hashable], share: float, seed: int, what: str) -> NDArray[np.bool_]:
    """Whether each key is among a share that is kept out; told by the key, whatever else there is."""
    kept = {
        key: int.from_bytes(hashlib.sha256(repr((seed, what, key)).encode()).digest()[:4], "big") < share * 2**32
        for key in set(keys)
    }
    return np.array([kept[key] for key in keys], dtype=bool)


def split_pairs(data: TaskData, settings: TaskSettings) -> dict[str, NDArray[np.int64]]:
    """Positions of the pairs that are trained on (``train``), and of each of `SETS`."""
    layer = _held(data.layers, settings.held_layers, settings.seed, "layer")
    shape = _held(data.shapes, settings.held_accelerators, settings.seed, "accelerator")
    parts = {"train": ~layer & ~shape, "layer": layer & ~shape, "accelerator": ~layer & shape, "both": layer & shape}
    return {name: np.flatnonzero(mask) for name, mask in parts.items()}


class TaskModule(nn.Module):
    """The network on standardised features; what `TaskNetwork` computes in numpy."""

    mean: Tensor
    scale: Tensor

    def __init__(self, settings: TaskSettings, mean: NDArray[np.float32], scale: NDArray[np.float32]) -> None:
        super().__init__()
        widths = [len(mean), *settings.widths, 1]
        self.task = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.dropout = nn.Dropout(settings.dropout)
        self.register_buffer("mean", torch.from_numpy(mean))
        self.register_buffer("scale", torch.from_numpy(scale))

    def forward(self, features: Tensor) -> Tensor:
        """log(T* / reference), (n,), of features (n, F)."""
        x = (features - self.mean) / self.scale
        for layer in list(self.task)[:-1]:
            x = self.dropout(F.relu(layer(x)))
        return self.task[-1](x)[:, 0]


def figures(network: TaskNetwork, data: TaskData, places: NDArray[np.int64]) -> dict[str, float]:
    """How far predictions of pairs are off: of T* the mean error (``mape``), its median and that of nine in ten, and
    Kendall's tau within families of at least five pairs, which differ in SRAMs alone."""
    if not len(places):
        return {}
    guess = network.log_ratio(data.features[places])
    off = np.abs(np.expm1(guess - data.target[places]))
    least, taus = data.features[places, _log_guess()] * np.log(2), []
    for family in np.unique(data.families[places]):
        own = data.families[places] == family
        if own.sum() >= 5:
            taus.append(metrics.kendall_tau((least + data.target[places])[own], (least + guess)[own]))
    found = {"pairs": float(len(places)), "mape": float(off.mean()), "median": float(np.median(off))}
    return found | {"nine_in_ten": float(np.quantile(off, 0.9)), "tau": float(np.nanmean(taus)) if taus else np.nan}


def _log_guess() -> int:
    return space_kind(DEFAULT_KIND).tasks.FEATURES.index("log guess")


def train_tasks(
    data: TaskData, settings: TaskSettings, origin: dict[str, Any], tell: Callable[[str], None] = lambda text: None
) -> TaskNetwork:
    """Train on pairs; the network's card has the figures of each of `SETS`.

    Raises:
        OneShotError: no pairs to train on.
    """
    parts = split_pairs(data, settings)
    places = parts["train"]
    if not len(places):
        raise OneShotError("no pairs are left to train on; collect more, or keep out fewer")
    known = data.features[places].astype(np.float64)
    scale = known.std(axis=0)
    shared = {
        "mean": known.mean(axis=0).astype(np.float32),
        "scale": np.where(scale > 1e-4, scale, 1.0).astype(np.float32),
        "low": data.features[places].min(axis=0),
        "high": data.features[places].max(axis=0),
    }
    tensors: dict[str, NDArray[np.float32]] = {}
    history: list[dict[str, Any]] = []
    began = time.perf_counter()
    for number in range(settings.networks):
        for epoch, (loss, own) in enumerate(_epochs(data, places, settings, shared, number), 1):
            entry: dict[str, Any] = {"network": number + 1, "epoch": epoch, "loss": loss}
            if epoch % 10 == 0 or epoch == settings.epochs:
                entry |= _figures(TaskNetwork(shared | _named(own, 0), {}), data, parts)
            history.append(entry)
            tell(_progress(entry, settings, time.perf_counter() - began))
        tensors |= _named(own, number)
    network = TaskNetwork(shared | tensors, {})
    history.append({"networks": settings.networks, **_figures(network, data, parts)})
    card = {
        "what": "T* of a layer on an accelerator without a search: log(T* / least guess in closed form)",
        "feature_version": space_kind(DEFAULT_KIND).tasks.VERSION,
        "samples": len(places),
        "split": {name: len(part) for name, part in parts.items()},
        "settings": dataclasses.asdict(settings),
        "labels": {
            "pairs": len(data),
            "picks": float(np.exp(np.log(data.picked).mean())),
            "spread of log(T* / engine bound)": float(data.bound.std()),
        },
        "history": history,
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
    } | origin
    return dataclasses.replace(network, card=card)


def _epochs(
    data: TaskData,
    places: NDArray[np.int64],
    settings: TaskSettings,
    shared: dict[str, NDArray[np.float32]],
    number: int,
) -> Iterator[tuple[float, dict[str, Tensor]]]:
    """Train a network, and after each epoch tell its loss and the average of its weights."""
    torch.manual_seed(settings.seed + number)
    module = TaskModule(settings, shared["mean"], shared["scale"])
    optimizer = torch.optim.AdamW(module.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    features, target = torch.from_numpy(data.features[places]), torch.from_numpy(data.target[places])
    average = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    steps, step = -(-len(places) // settings.batch), 0
    for _ in range(settings.epochs):
        total = 0.0
        for chosen in torch.split(torch.randperm(len(places)), settings.batch):
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * 0.5 * (1 + np.cos(np.pi * step / (steps * settings.epochs)))
            loss = F.smooth_l1_loss(module(features[chosen]), target[chosen], beta=settings.huber)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += float(loss.detach())
            decay = min(settings.average, (1 + step) / (10 + step))
            step += 1
            with torch.no_grad():
                for name, tensor in module.state_dict().items():
                    average[name].lerp_(tensor, 1 - decay)
        yield total / steps, average


def _named(average: dict[str, Tensor], number: int) -> dict[str, NDArray[np.float32]]:
    """A network's tensors as those of a place among several."""
    own = f"{NETWORK}."
    return {
        name.replace(own, f"{NETWORK}{number}.", 1): tensor.numpy().copy()
        for name, tensor in average.items()
        if name.startswith(own)
    }


def _figures(network: TaskNetwork, data: TaskData, parts: dict[str, NDArray[np.int64]]) -> dict[str, dict[str, float]]:
    return {name: figures(network, data, parts[name]) for name in SETS}


def _progress(entry: dict[str, Any], settings: TaskSettings, seconds: float) -> str:
    text = "  ".join(
        f"{name}: {found['mape']:.2%} tau {found['tau']:.4f}" for name in SETS if (found := entry.get(name))
    )
    head = f"network {entry['network']}/{settings.networks} epoch {entry['epoch']}/{settings.epochs}"
    return f"{head} loss {entry['loss']:.5f} {seconds:.0f} s  {text}".rstrip()
