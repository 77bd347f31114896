"""Other published predictors, trained on our corpora and held against the network on the same tasks.

Each gives schedules a score, higher for faster. Validity is not theirs to tell: their training sees valid schedules
alone, and the closed form passes over what would not lower, as it does for the network.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from oneshot_ml2.common.errors import CorpusError, OneShotError
from oneshot_ml2.common.files import write_whole
from oneshot_ml2.common.reading import FIGURES_DECODER, parse_json, read_json
from oneshot_ml2.corpus.read import open_corpus
from oneshot_ml2.network.picking import legal_positions
from oneshot_ml2.spaces.registry import DEFAULT_KIND, space_kind
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.training import checkpoint, data
from oneshot_ml2.workload.registry import Workload

if TYPE_CHECKING:
    from oneshot_ml2.spaces.base import Candidates

# Predictors of others, see `peers`, by the names of their files.
PEERS = {
    "one-shot": "One-Shot Tuner's network",
    "tenset": "TenSet-style MLP",
    "xgboost": "XGBoost",
}

_CHUNK = 1 << 13
# Peers know the default space.
_SPACE = space_kind(DEFAULT_KIND)
_FEATURES = _SPACE.features
_TASKS = len(_FEATURES.TASK_FEATURES)
_OWN = len(_SPACE.schedules.KNOBS) + 8


@dataclass(frozen=True)
class Settings:
    """What the peers' training is decided by; `train/peers.toml` explains each.

    Attributes:
        every: every so-manieth task of the corpora; ``samples``: at most so many valid samples of each.
        one_shot_*: epochs, batch, learning rate of One-Shot Tuner's network.
        tenset_*: epochs, tasks in a batch, samples of each, learning rate of the MLP.
        xgboost_rounds, xgboost_depth, xgboost_rate: trees, their depth, the learning rate.
        seed: of everything random.
    """

    every: int = 8
    samples: int = 96
    one_shot_epochs: int = 12
    one_shot_batch: int = 512
    one_shot_rate: float = 3e-4
    tenset_epochs: int = 40
    tenset_tasks: int = 8
    tenset_samples: int = 64
    tenset_rate: float = 7e-4
    xgboost_rounds: int = 300
    xgboost_depth: int = 8
    xgboost_rate: float = 0.2
    seed: int = 1

    def __post_init__(self) -> None:
        low = {name: value for name, value in dataclasses.asdict(self).items() if name != "seed" and value <= 0}
        if low or self.tenset_samples < 2:
            raise OneShotError(f"peers' settings: {', '.join(low) or 'tenset_samples'}: too small")


# Data ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """Valid samples of tasks. Task t owns the rows offsets[t] to offsets[t + 1].

    ``features``: float32 (n, len(encode.FEATURES)); ``own``: float32 (n, knobs + 8), see `own_inputs`; ``cycles``:
    float64 (n,); ``work``: float64 (T,), operations of each task; ``digests``: of the corpora.
    """

    features: NDArray[np.float32]
    own: NDArray[np.float32]
    offsets: NDArray[np.int64]
    cycles: NDArray[np.float64]
    work: NDArray[np.float64]
    digests: list[str]

    def __len__(self) -> int:
        return len(self.work)

    @property
    def task_of(self) -> NDArray[np.int64]:
        """The task of each row, int64 (n,)."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    @property
    def speed(self) -> NDArray[np.float64]:
        """T* / T of each row, T* the task's best row, float64 (n,)."""
        best = np.minimum.reduceat(self.cycles, self.offsets[:-1])
        return best[self.task_of] / self.cycles


def operations(workload: Workload) -> float:
    """Operations, two for each multiplication; of an operator without any, one for each tap of each output."""
    if workload.macs:
        return 2.0 * workload.macs
    taps = getattr(workload, "r", 1) * getattr(workload, "s", 1)
    return float(np.prod(workload.output_shape) * taps)


def own_inputs(space: ScheduleSpace, values: NDArray[np.int64]) -> NDArray[np.float32]:
    """What One-Shot Tuner takes beside loop features: knob values, shapes of weight and output, float32 (n, knobs + 8).

    Shapes are filled with zeros on the left to four sizes each; an operator without weights has zeros.
    """
    specs = space.workload.tensor_specs
    weight = specs["weight"][0] if "weight" in specs else ()
    shape = [*(0,) * (4 - len(weight)), *weight]
    output = space.workload.output_shape
    shape += [*(0,) * (4 - len(output)), *output]
    row = np.broadcast_to(np.array(shape, dtype=np.float32), (len(values), 8))
    return np.concatenate([values.astype(np.float32), row], axis=1)


def _features(space: ScheduleSpace, given: Candidates) -> NDArray[np.float32]:
    """All features of candidates of a space, float32 (n, F)."""
    out = np.empty((len(given), len(_FEATURES.FEATURES)), dtype=np.float32)
    out[:, :_TASKS] = _FEATURES.task_features(space)
    _FEATURES.Encoder.of(space).encode(given, out[:, _TASKS:])
    return out


def read_rows(paths: Sequence[str | Path], settings: Settings) -> Rows:
    """A subsample of corpora (files or folders of shards): every ``settings.every``-th task, of each at most
    ``settings.samples`` valid samples.

    Raises:
        CorpusError: a damaged or foreign corpus, or no valid sample.
    """
    features, own, cycles, work, lengths, digests = [], [], [], [], [], []
    number = itertools.count()
    for path in paths:
        with open_corpus(path) as corpus:
            corpus.check_space()
            digests.append(corpus.digest)
            for t in range(len(corpus)):
                if next(number) % settings.every:
                    continue
                task = corpus[t]
                places = np.flatnonzero(task.valid)
                if len(places) < 2:
                    continue
                rng = np.random.default_rng([settings.seed, int(task.id, 16)])
                places = np.sort(rng.permutation(places)[: settings.samples])
                space = task.space()
                values = np.array(task.values[places], dtype=np.int64, order="C")
                features.append(_features(space, _FEATURES.candidates_at(space, space.index(values))))
                own.append(own_inputs(space, values))
                cycles.append(task.cycles[places].astype(np.float64))
                work.append(operations(task.workload))
                lengths.append(len(places))
    if not lengths:
        raise CorpusError("no task with two valid samples to train on; collect some with `oneshot-ml2 collect`")
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    return Rows(np.concatenate(features), np.concatenate(own), offsets, np.concatenate(cycles), np.array(work), digests)


# The predictors ------------------------------------------------------------------------------


class Peer(Protocol):
    """A trained predictor."""

    def score(self, features: NDArray[np.float32], own: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scores (n,), higher for faster, of `encode.FEATURES` (n, F) and `own_inputs` (n, knobs + 8)."""
        ...


class _Standardised(nn.Module):
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


class OneShot(nn.Module):
    """One-Shot Tuner's network (its model.py): a transformer encoder of 3 layers, 4 heads, feed-forward 1024, dropout
    0.25, then a linear layer, over a sequence of length one.

    Its inputs were 720 curve features of the lowered loop nest, 20 knob values and 8 sizes of shapes; ours are
    `encode.SCHEDULE_FEATURES` in place of the first, and `own_inputs`, filled with zeros on the left to a multiple of
    the heads. Theirs are not standardised, ours are.
    """

    def __init__(self) -> None:
        super().__init__()
        inputs = _OWN + len(_FEATURES.SCHEDULE_FEATURES)
        self.fill = -inputs % 4
        self.standard = _Standardised(inputs)
        layer = nn.TransformerEncoderLayer(inputs + self.fill, nhead=4, dim_feedforward=1024, dropout=0.25)
        self.encoder = nn.TransformerEncoder(layer, num_layers=3, enable_nested_tensor=False)
        self.out = nn.Linear(inputs + self.fill, 1)

    def forward(self, features: Tensor, own: Tensor) -> Tensor:
        """Standardised throughput (n,) of features (n, F) and own inputs (n, knobs + 8)."""
        x = self.standard(torch.cat([features[:, _TASKS:], own], dim=1))
        return self.out(self.encoder(F.pad(x, (self.fill, 0))[None])[0])[:, 0]


class TenSet(nn.Module):
    """TenSet's MLP (mlp_model.py): an encoder of two layers of 256, the sum over a program's statements, two residual
    layers of 256, and a linear one. A schedule here is one statement, with all of `encode.FEATURES`.
    """

    def __init__(self) -> None:
        super().__init__()
        inputs, width = len(_FEATURES.FEATURES), 256
        self.standard = _Standardised(inputs)
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


@dataclass(frozen=True)
class _Network:
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


@dataclass(frozen=True)
class _Trees:
    """XGBoost's trees as a `Peer`."""

    booster: Any

    def score(self, features: NDArray[np.float32], own: NDArray[np.float32]) -> NDArray[np.float32]:
        return self.booster.inplace_predict(features).astype(np.float32)


# Training ------------------------------------------------------------------------------------

Report = Callable[[str], None]


@dataclass(frozen=True)
class Progress:
    """Where a network's training is kept between epochs (``path``), of which run (``run``), and who hears of it."""

    path: Path
    run: str
    report: Report


def _fit(
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


def train_one_shot(rows: Rows, s: Settings, progress: Progress) -> _Network:
    """As its train.py: mean square error of FLOP/s, z-scored over the whole set; samples are drawn with replacement, by
    the inverse of how many share their bin of 100 of the label's histogram; Adam with weight decay 2e-4, cosine.
    """
    torch.manual_seed(s.seed)
    network = OneShot()
    network.standard.fit(np.concatenate([rows.features[:, _TASKS:], rows.own], axis=1))
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
    _fit("one-shot", network, optimizer, s.one_shot_epochs, s.seed, batches, steps, float("inf"), progress)
    return _Network(network)


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


def train_tenset(rows: Rows, s: Settings, progress: Progress) -> _Network:
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
    _fit("tenset", network, optimizer, s.tenset_epochs, s.seed, batches, steps, 0.5, progress)
    return _Network(network)


def train_xgboost(rows: Rows, s: Settings, progress: Progress) -> _Trees:
    """As TenSet's xgb_model.py: squared error of throughput over the task's best, weighted by it."""
    import xgboost

    label = rows.speed.astype(np.float32)
    table = xgboost.QuantileDMatrix(rows.features, label, weight=label)
    parameters = {
        "objective": "reg:squarederror",
        "tree_method": "hist",
        "max_depth": s.xgboost_depth,
        "eta": s.xgboost_rate,
        "gamma": 0.003,
        "min_child_weight": 2,
        "seed": s.seed,
    }
    booster = xgboost.train(parameters, table, num_boost_round=s.xgboost_rounds)
    progress.report(f"xgboost: {s.xgboost_rounds} rounds")
    return _Trees(booster)


_TRAINERS: dict[str, Callable[[Rows, Settings, Progress], Any]] = {
    "one-shot": train_one_shot,
    "tenset": train_tenset,
    "xgboost": train_xgboost,
}
_MODULES: dict[str, Callable[[], nn.Module]] = {"one-shot": OneShot, "tenset": TenSet}


# Files ---------------------------------------------------------------------------------------


def _weights_path(folder: Path, name: str) -> Path:
    return folder / (f"{name}.safetensors" if name in _MODULES else f"{name}.trees.json")


def _save(folder: Path, name: str, peer: Any, card: dict[str, Any]) -> None:
    """The weights, then the card that says that they are complete."""
    path = _weights_path(folder, name)
    if name in _MODULES:
        write_whole(path, save({key: value.contiguous() for key, value in peer.module.state_dict().items()}))
    else:
        write_whole(path, bytes(peer.booster.save_raw("json")))
    write_whole(folder / f"{name}.json", json.dumps(card, indent=1) + "\n")


def _card(folder: Path, name: str) -> dict[str, Any] | None:
    """A peer's card; None if there is none.

    Raises:
        OneShotError: an unreadable one.
    """
    path = folder / f"{name}.json"
    if not path.exists():
        return None
    try:
        card = read_json(path, decoder=FIGURES_DECODER)
        if not isinstance(card, dict):
            raise ValueError("not an object")
        return card
    except (OneShotError, ValueError) as error:
        raise OneShotError(f"{path}: not a peer's card ({error}); delete it and train the peers anew") from error


def train_peers(
    corpora: Sequence[str | Path], settings: Settings, folder: str | Path, report: Report = print
) -> Iterator[str]:
    """Train those of `baselines.PEERS` that ``folder`` lacks of these corpora and settings; save each when it is done.

    A network's training goes on from its last epoch; ``seconds`` in its card are those of the last call.

    Yields:
        The name of each that is in the folder now.

    Raises:
        CorpusError: see `read_rows`.
        OneShotError: a damaged checkpoint, or one of other corpora or settings.
        ModuleNotFoundError: xgboost is not installed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = read_rows(corpora, settings)
    report(f"{len(rows)} tasks, {len(rows.cycles)} valid samples")
    run = {
        "feature_version": _FEATURES.FEATURE_VERSION,
        "corpus": sorted(rows.digests),
        "settings": dataclasses.asdict(settings),
        "tasks": len(rows),
        "samples": len(rows.cycles),
    }
    for name, train in _TRAINERS.items():
        card = _card(folder, name)
        if card is None or {key: card.get(key) for key in run} != run:
            began = time.monotonic()
            checkpoint = folder / f"{name}.checkpoint"
            peer = train(rows, settings, Progress(checkpoint, json.dumps(run, sort_keys=True), report))
            _save(folder, name, peer, run | {"seconds": round(time.monotonic() - began, 1)})
            checkpoint.unlink(missing_ok=True)
        yield name


def load_peers(folder: str | Path) -> dict[str, Peer]:
    """The peers of a folder that `train_peers` filled, by name.

    Raises:
        OneShotError: one is missing, damaged or of another feature version.
        ModuleNotFoundError: xgboost is not installed.
    """
    folder = Path(folder)
    advice = "train them with `python train/peers.py`"
    peers: dict[str, Peer] = {}
    for name in PEERS:
        card, path = _card(folder, name), _weights_path(folder, name)
        if card is None:
            raise OneShotError(f"{folder}: no peer {name!r}; {advice}")
        if card.get("feature_version") != _FEATURES.FEATURE_VERSION:
            version = card.get("feature_version")
            raise OneShotError(f"{path}: of feature version {version}, this is {_FEATURES.FEATURE_VERSION}; {advice}")
        try:
            if name in _MODULES:
                module = _MODULES[name]()
                module.load_state_dict(load_file(str(path)))
                peers[name] = _Network(module)
            else:
                peers[name] = _load_trees(path)
        except (OneShotError, OSError, SafetensorError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise OneShotError(f"{path}: damaged or foreign ({reason}); {advice}") from error
    return peers


def _load_trees(path: Path) -> _Trees:
    import xgboost

    content = path.read_bytes()
    # XGBoost's own parser ends the process on some broken texts.
    parse_json(content, "its trees")
    booster = xgboost.Booster()
    try:
        booster.load_model(bytearray(content))
    except xgboost.core.XGBoostError as error:
        raise ValueError(str(error)) from error
    if booster.num_features() != len(_FEATURES.FEATURES):
        raise ValueError("of other features")
    return _Trees(booster)


# Use -----------------------------------------------------------------------------------------


def score(peer: Peer, space: ScheduleSpace, given: Candidates) -> NDArray[np.float32]:
    """A peer's scores (n,) of candidates of a space, higher for faster."""
    out = np.empty(len(given), dtype=np.float32)
    for begin in range(0, len(given), _CHUNK):
        part = given.take(slice(begin, begin + _CHUNK))
        out[begin : begin + _CHUNK] = peer.score(_features(space, part), own_inputs(space, part.values))
    return out


def first_legal(space: ScheduleSpace, given: Candidates, scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Indices of the ``k`` legal schedules of the highest scores, highest first, int64 (<= k,)."""
    order = given.indices[np.argsort(-scores, kind="stable")]
    return order[legal_positions(space, order, k)]
