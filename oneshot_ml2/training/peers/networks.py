"""What the peers that are torch networks share: standardised inputs, training, files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from torch import Tensor, nn

from oneshot_ml2.training import checkpoint

if TYPE_CHECKING:
    from oneshot_ml2.training.peers.base import Progress

_CHUNK = 1 << 13


class Standardised(nn.Module):
    """Inputs less their mean, over their deviation."""

    mean: Tensor
    scale: Tensor

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("scale", torch.ones(inputs))

    def fit(self, table: NDArray[np.float32]) -> None:
        """Take mean and deviation of a table (n, inputs); constants get 1."""
        deviation = table.std(axis=0, dtype=np.float64)
        self.mean.copy_(torch.from_numpy(table.mean(axis=0, dtype=np.float64)))
        self.scale.copy_(torch.from_numpy(np.where(deviation > 1e-4, deviation, 1.0)))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.scale


@dataclass(frozen=True)
class NetworkPeer:
    """A torch network as a `Peer`."""

    module: nn.Module

    def score(self, features: NDArray[np.float32], own: NDArray[np.float32]) -> NDArray[np.float32]:
        self.module.eval()
        out = np.empty(len(features), dtype=np.float32)
        with torch.inference_mode():
            for begin in range(0, len(features), _CHUNK):
                rows = slice(begin, begin + _CHUNK)
                out[rows] = self.module(torch.from_numpy(features[rows]), torch.from_numpy(own[rows])).numpy()
        return out

    def content(self) -> bytes:
        """The weights as safetensors."""
        return save({name: tensor.contiguous() for name, tensor in self.module.state_dict().items()})


def load(make: Callable[[], nn.Module], path: Path) -> NetworkPeer:
    """A network from its weights."""
    module = make()
    module.load_state_dict(load_file(str(path)))
    return NetworkPeer(module)


def fit(
    name: str,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    seed: int,
    batches: Callable[[np.random.Generator], Iterator[Tensor]],
    steps: int,
    clip: float,
    progress: Progress,
) -> None:
    """Train for ``epochs`` of ``steps`` losses that ``batches`` yields, the rate falling as a cosine from the
    optimizer's; goes on from a checkpoint of the same run.
    """
    state: dict[str, Any] = {"epoch": 0, "fingerprint": progress.run}
    if progress.path.exists():
        state = checkpoint.load_checkpoint(progress.path, network, {}, optimizer, progress.run)
    rates = [group["lr"] for group in optimizer.param_groups]
    for epoch in range(state["epoch"], epochs):
        # Dropout draws from torch's own generator.
        torch.manual_seed(1000 * seed + epoch)
        network.train()
        total = 0.0
        for step, loss in enumerate(batches(np.random.default_rng([seed, epoch]))):
            for group, rate in zip(optimizer.param_groups, rates):
                group["lr"] = rate * 0.5 * (1 + np.cos(np.pi * (epoch * steps + step) / (epochs * steps)))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), clip)
            optimizer.step()
            total += float(loss.detach())
        progress.report(f"{name}: epoch {epoch + 1}/{epochs} loss {total / steps:.4f}")
        checkpoint.save_checkpoint(progress.path, network, {}, optimizer, state | {"epoch": epoch + 1})
