"""One-Shot Tuner's network."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oneshot_ml2.training.peers.base import PeerKind
from oneshot_ml2.training.peers.inputs import ALL, OWN, TASKS
from oneshot_ml2.training.peers.networks import NetworkPeer, Standardised, fit, load

if TYPE_CHECKING:
    from oneshot_ml2.training.peers.base import Progress, Rows, Settings


class OneShot(nn.Module):
    """One-Shot Tuner's network (its model.py): a transformer encoder of 3 layers, 4 heads, feed-forward 1024, dropout
    0.25, then a linear layer, over a sequence of length one.

    Its inputs were 720 curve features of the lowered loop nest, 20 knob values and 8 sizes of shapes; ours are the
    features of schedules in place of the first, and `inputs.own_inputs`, filled with zeros on the left to a multiple
    of the heads. Theirs are not standardised, ours are.
    """

    def __init__(self) -> None:
        super().__init__()
        inputs = OWN + ALL - TASKS
        self.fill = -inputs % 4
        self.standard = Standardised(inputs)
        layer = nn.TransformerEncoderLayer(inputs + self.fill, nhead=4, dim_feedforward=1024, dropout=0.25)
        self.encoder = nn.TransformerEncoder(layer, num_layers=3, enable_nested_tensor=False)
        self.out = nn.Linear(inputs + self.fill, 1)

    def forward(self, features: Tensor, own: Tensor) -> Tensor:
        """Standardised throughput (n,) of features (n, F) and own inputs (n, knobs + 8)."""
        x = self.standard(torch.cat([features[:, TASKS:], own], dim=1))
        return self.out(self.encoder(F.pad(x, (self.fill, 0))[None])[0])[:, 0]


def train(rows: Rows, s: Settings, progress: Progress) -> NetworkPeer:
    """As its train.py: mean square error of FLOP/s, z-scored over the whole set; samples are drawn with replacement, by
    the inverse of how many share their bin of 100 of the label's histogram; Adam with weight decay 2e-4, cosine.
    """
    torch.manual_seed(s.seed)
    network = OneShot()
    network.standard.fit(np.concatenate([rows.features[:, TASKS:], rows.own], axis=1))
    speed = rows.work[rows.task_of] / rows.cycles
    label = ((speed - speed.mean()) / speed.std()).astype(np.float32)
    edges = np.linspace(label.min(), label.max(), 101)
    place = np.clip(np.searchsorted(edges, label, side="right") - 1, 0, 99)
    heap = np.cumsum(1.0 / np.bincount(place, minlength=100)[place])
    steps = -(-len(label) // s.one_shot_batch)

    def batches(rng: np.random.Generator) -> Iterator[Tensor]:
        for _ in range(steps):
            chosen = np.searchsorted(heap, rng.random(s.one_shot_batch) * heap[-1])
            guess = network(torch.from_numpy(rows.features[chosen]), torch.from_numpy(rows.own[chosen]))
            yield F.mse_loss(guess, torch.from_numpy(label[chosen]))

    optimizer = torch.optim.Adam(network.parameters(), lr=s.one_shot_rate, weight_decay=2e-4)
    fit("one-shot", network, optimizer, s.one_shot_epochs, s.seed, batches, steps, float("inf"), progress)
    return NetworkPeer(network)


ONE_SHOT = PeerKind(
    "one-shot", "One-Shot Tuner's network", "safetensors", train, NetworkPeer.content, partial(load, OneShot)
)
