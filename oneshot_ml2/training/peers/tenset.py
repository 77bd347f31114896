"""TenSet's MLP."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oneshot_ml2.training import data
from oneshot_ml2.training.peers.base import PeerKind
from oneshot_ml2.training.peers.inputs import ALL
from oneshot_ml2.training.peers.networks import NetworkPeer, Standardised, fit, load

if TYPE_CHECKING:
    from oneshot_ml2.training.peers.base import Progress, Rows, Settings


class TenSet(nn.Module):
    """TenSet's MLP (mlp_model.py): an encoder of two layers of 256, the sum over a program's statements, two residual
    layers of 256, and a linear one. A schedule here is one statement, with all features.
    """

    def __init__(self) -> None:
        super().__init__()
        inputs, width = ALL, 256
        self.standard = Standardised(inputs)
        self.encoder = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.first = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        self.second = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        self.out = nn.Linear(width, 1)

    def forward(self, features: Tensor, own: Tensor) -> Tensor:
        """Scores (n,) of features (n, F); ``own`` is not used."""
        x = self.encoder(self.standard(features))
        x = self.first(x) + x
        x = self.second(x) + x
        return self.out(x)[:, 0]


def lambda_rank(guess: Tensor, label: Tensor) -> Tensor:
    """TenSet's LambdaRank loss of scores (B, M) against labels in [0, 1] (B, M): over the pairs of a task with
    label_i > label_j the mean of -log2 sigmoid(s_i - s_j), each weighted by how much swapping i and j in the order of
    the scores would change the NDCG, with gains 2^label - 1.
    """
    size = guess.shape[1]
    order = guess.detach().argsort(dim=1, descending=True)
    guess, label = guess.gather(1, order), label.gather(1, order)
    discount = torch.log2(2.0 + torch.arange(size, dtype=guess.dtype))
    ideal = ((2.0 ** label.sort(dim=1, descending=True).values - 1) / discount).sum(dim=1, keepdim=True)
    gain = (2.0**label - 1) / ideal.clamp(min=1e-10)
    weight = (1 / discount[:, None] - 1 / discount[None, :]).abs() * (gain[:, :, None] - gain[:, None, :]).abs()
    above = label[:, :, None] > label[:, None, :]
    pair = -F.logsigmoid(guess[:, :, None] - guess[:, None, :]) / np.log(2.0)
    return (weight * pair)[above].sum() / len(guess)


def train(rows: Rows, s: Settings, progress: Progress) -> NetworkPeer:
    """As its mlp_model.py: LambdaRank within tasks on throughput over the task's best, Adam with weight decay 1e-6,
    gradients clipped to 0.5; the rate falls as a cosine.
    """
    torch.manual_seed(s.seed)
    network = TenSet()
    network.standard.fit(rows.features)
    label = rows.speed.astype(np.float32)
    own = torch.zeros(0)
    steps = -(-len(rows) // s.tenset_tasks)

    def batches(rng: np.random.Generator) -> Iterator[Tensor]:
        for tasks in np.array_split(rng.permutation(len(rows)), steps):
            bounds = ((rows.offsets[t], rows.offsets[t + 1]) for t in tasks)
            chosen = np.stack([data.draw_rows(rng, begin, end, s.tenset_samples) for begin, end in bounds])
            guess = network(torch.from_numpy(rows.features[chosen.ravel()]), own).view(chosen.shape)
            yield lambda_rank(guess, torch.from_numpy(label[chosen]))

    optimizer = torch.optim.Adam(network.parameters(), lr=s.tenset_rate, weight_decay=1e-6)
    fit("tenset", network, optimizer, s.tenset_epochs, s.seed, batches, steps, 0.5, progress)
    return NetworkPeer(network)


TENSET = PeerKind("tenset", "TenSet-style MLP", "safetensors", train, NetworkPeer.content, partial(load, TenSet))
