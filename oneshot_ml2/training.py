"""Training the network on corpora: features, losses, checkpoints, the model card.

Corpora are read one task after another; their features go to a file that is mapped, not loaded, so that memory is
bounded whatever their size. Under ``torchrun`` several processes share each batch's tasks.

The loss of a batch, drawn by tasks: cross-entropy of validity over all samples, a Huber loss of log(T / LB) over the
valid ones weighted towards the fast ones, a pairwise ranking loss within each task, and the likelihood of the spread.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import io
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from oneshot_ml2 import metrics
from oneshot_ml2.accelerator import Accelerator
from oneshot_ml2.corpus import SAMPLERS, Corpus, TaskSamples, open_corpus
from oneshot_ml2.encoding import encoding
from oneshot_ml2.errors import CorpusError, OneShotError
from oneshot_ml2.files import check_writable, locked, write_whole
from oneshot_ml2.predictor import NETWORKS, OUTPUTS, Predictor, write_weights
from oneshot_ml2.reading import FIGURES_DECODER, parse_json, read_json, read_toml
from oneshot_ml2.schedule import Reason, ScheduleSpace


@dataclass(frozen=True)
class Settings:
    """What a training run is decided by; `train/pretrain.toml` explains each.

    Attributes:
        scan, main: widths of the hidden layers of the small network and of the large one.
        epochs: passes over the tasks.
        tasks_per_batch, samples_per_task: a batch is so many samples of each of so many tasks.
        learning_rate, weight_decay, warmup: AdamW; the rate rises over ``warmup`` (a share of all steps) and falls as
            a cosine.
        average: decay of the exponential average of the weights that is kept and shipped.
        huber: residual in log(T / LB) beyond which the loss grows linearly.
        fast: weight of a valid sample is (T* / T) to this power, T* the task's best sample.
        validity_weight, rank_weight, spread_weight: of these losses beside the Huber loss.
        temperature: scale of log-latency differences in the ranking loss.
        validity_samples: further schedules of each task whose validity, told by lowering them, is trained on: half of
            them uniform, half drawn towards a small closed-form bound, where what looks fast is mostly invalid.
        task_share: share of the tasks that is trained on, drawn at random.
        held_workloads: share of the workload shapes kept for validation.
        held_accelerators: number of accelerators kept for validation.
        checkpoint_minutes: time between checkpoints.
        seed: of everything random.
    """

    scan: tuple[int, ...] = (48, 32)
    main: tuple[int, ...] = (256, 256, 128)
    epochs: int = 70
    tasks_per_batch: int = 16
    samples_per_task: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    warmup: float = 0.02
    average: float = 0.998
    huber: float = 0.1
    fast: float = 2.0
    validity_weight: float = 0.1
    rank_weight: float = 0.1
    spread_weight: float = 0.01
    temperature: float = 0.05
    validity_samples: int = 256
    task_share: float = 1.0
    held_workloads: float = 0.06
    held_accelerators: int = 2
    checkpoint_minutes: float = 2.0
    seed: int = 1

    def __post_init__(self) -> None:
        if not all(widths and min(widths) >= 1 for widths in (self.scan, self.main)) or self.epochs < 1:
            raise OneShotError("training settings: scan and main need widths of at least 1, epochs is at least 1")
        if self.tasks_per_batch < 1 or self.samples_per_task < 2:
            raise OneShotError("training settings: tasks_per_batch is at least 1, samples_per_task at least 2")
        if not 0 < self.task_share <= 1:
            raise OneShotError("training settings: task_share is above 0 and at most 1")


def read_settings(path: str | Path, kind: type[Any] = Settings) -> Any:
    """Settings from a TOML file: a dataclass of plain values that all have defaults, `Settings` unless given.

    Raises:
        OneShotError: an unreadable file, an unknown key or a value of another type.
    """
    table = read_toml(path)
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    for key, value in table.items():
        if key not in defaults:
            raise OneShotError(f"{path}: unknown key {key!r}; allowed: {', '.join(defaults)}")
        expected = type(defaults[key])
        if expected is tuple and isinstance(value, list) and all(type(item) is int for item in value):
            table[key] = tuple(value)
        elif expected is float and type(value) is int:
            table[key] = float(value)
        elif type(value) is not expected:
            raise OneShotError(f"{path}: {key} is {value!r}; allowed: {expected.__name__}")
    return kind(**table)


# Data ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """A corpus as features, in memory or (``schedules``) mapped. Task t owns the samples offsets[t] to offsets[t + 1].

    ``tasks``: float32 (T, task features); ``schedules``: float32 (n, schedule features); ``valid``: bool (n,);
    ``timed``: bool (n,), valid and measured; ``guided``: bool (n,), drawn by exploration;
    ``log_bound``: float32 (n,), log LB; ``log_ratio``: float32 (n,),
    log(T / LB), 0 where not timed; ``shapes`` and
    ``accelerators``: what each task's workload and accelerator are, as hashable keys; ``digests``: of the corpora;
    ``kind``: of the schedule spaces.
    """

    tasks: NDArray[np.float32]
    schedules: NDArray[np.float32]
    offsets: NDArray[np.int64]
    valid: NDArray[np.bool_]
    timed: NDArray[np.bool_]
    guided: NDArray[np.bool_]
    log_bound: NDArray[np.float32]
    log_ratio: NDArray[np.float32]
    shapes: list[Any]
    accelerators: list[Any]
    digests: list[str]
    kind: str = "full"

    def __len__(self) -> int:
        return len(self.tasks)

    def rows(self, t: int) -> slice:
        """The samples of a task."""
        return slice(int(self.offsets[t]), int(self.offsets[t + 1]))


def draw_unmeasured(
    space: ScheduleSpace, n: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Canonical knob values (<= n, knobs) drawn for `Settings.validity_samples`, and whether each lowers (<= n,)."""
    drawn = np.unique(space.canonical(rng.integers(0, len(space), size=8 * n)))
    values, bound = space.values(drawn), encoding(space.kind).candidates_at(space, drawn).bound
    order = np.argsort(bound, kind="stable")
    places = (rng.random(n - n // 2) ** 2 * len(order)).astype(np.int64)
    chosen = np.unique(np.concatenate([rng.choice(len(drawn), size=n // 2), order[places]]))
    return values[chosen], space.validity(drawn[chosen]) == Reason.VALID


# What a task contributes to `Data`: column -> dtype; ``schedules`` is the only large one.
_COLUMNS = {
    "schedules": np.float32,
    "valid": np.bool_,
    "timed": np.bool_,
    "guided": np.bool_,
    "log_bound": np.float32,
    "log_ratio": np.float32,
}


def _columns_of(task: TaskSamples, validity_samples: int, seed: int) -> dict[str, NDArray[Any]]:
    """`_COLUMNS` of a task's samples and of ``validity_samples`` more schedules, and ``task``, its own features."""
    space = task.space()
    values, valid = np.array(task.values, dtype=np.int64, order="C"), task.valid
    timed, cycles, guided = valid, task.cycles, task.sampler == SAMPLERS.index("explore")
    if validity_samples:
        rng = np.random.default_rng([seed, 2, int(task.id, 16)])
        more, lowers = draw_unmeasured(space, validity_samples, rng)
        values, valid = np.concatenate([values, more]), np.concatenate([valid, lowers])
        timed, guided = (np.concatenate([flags, np.zeros(len(more), dtype=bool)]) for flags in (timed, guided))
        cycles = np.concatenate([cycles, np.full(len(more), -1)])
    features = encoding(space.kind)
    block = np.empty((len(values), len(features.SCHEDULE_FEATURES)), dtype=np.float32)
    encoder = features.Encoder.of(space)
    given = encoder.candidates(np.arange(len(values)), values)
    encoder.encode(given, block)
    ratio = np.where(timed, np.log(np.maximum(cycles, 1) / given.bound), 0.0)
    columns = {
        "task": features.task_features(space),
        "schedules": block,
        "valid": valid,
        "timed": timed,
        "guided": guided,
        "log_bound": np.log(given.bound),
        "log_ratio": ratio,
    }
    return {name: column.astype(_COLUMNS.get(name, np.float32)) for name, column in columns.items()}


def make_data(tasks: Iterable[TaskSamples], digests: list[str], validity_samples: int = 0, seed: int = 0) -> Data:
    """Features and targets of measured tasks, and ``validity_samples`` more schedules of each, see `Settings`.

    Raises:
        CorpusError: no task has a sample.
    """
    tables, shapes, chips, kind = [], [], [], "full"
    for task in tasks:
        if len(task):
            kind = task.kind
            tables.append(_columns_of(task, validity_samples, seed))
            shapes.append(task.workload.shape_key)
            chips.append(task.accelerator)
    if not tables:
        raise _no_samples()
    offsets = np.concatenate(([0], np.cumsum([len(table["valid"]) for table in tables]))).astype(np.int64)
    joined = {name: np.concatenate([table[name] for table in tables]) for name in _COLUMNS}
    return Data(
        tasks=np.array([table["task"] for table in tables]),
        offsets=offsets,
        shapes=shapes,
        accelerators=chips,
        digests=digests,
        kind=kind,
        **joined,
    )


def _no_samples() -> CorpusError:
    return CorpusError("no samples to train on; collect some with `oneshot-ml2 collect`")


def _open_all(paths: Sequence[str | Path]) -> list[Corpus]:
    """Corpora of this version's spaces, all of one kind.

    Raises:
        CorpusError: a corpus that is damaged, foreign, or of another space.
    """
    corpora: list[Corpus] = []
    for path in paths:
        corpora.append(open_corpus(path))
        corpora[-1].check_space()
        if corpora[-1].kind != corpora[0].kind:
            kinds = f"{corpora[0].kind!r} and {corpora[-1].kind!r}"
            raise CorpusError(f"{path}: corpora of the spaces {kinds}; train on one kind at a time")
    return corpora


def read_data(paths: Sequence[str | Path], settings: Settings) -> Data:
    """Features of one or several corpora (files or folders of shards), in memory.

    Raises:
        CorpusError: a corpus that is damaged, foreign, or of another space.
    """
    corpora = _open_all(paths)
    tasks = itertools.chain.from_iterable(corpora)
    try:
        return make_data(tasks, [corpus.digest for corpus in corpora], settings.validity_samples, settings.seed)
    finally:
        for corpus in corpora:
            corpus.close()


def write_features(paths: Sequence[str | Path], settings: Settings, folder: str | Path) -> None:
    """Features of corpora as files that `map_features` reads, made one task after another; nothing is done if they are
    there already.

    Raises:
        CorpusError: see `read_data`; or no task has a sample.
    """
    folder = Path(folder)
    corpora = _open_all(paths)
    try:
        digests = [corpus.digest for corpus in corpora]
        kind = corpora[0].kind
        made_of = [kind, encoding(kind).FEATURE_VERSION, digests, settings.validity_samples, settings.seed]
        head = folder / "head.json"
        if _made_of(head) == made_of:
            return
        head.unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        rows, shapes, chips, lengths = [], [], [], []
        with contextlib.ExitStack() as stack:
            files = {name: stack.enter_context((folder / f"{name}.bin").open("wb")) for name in _COLUMNS}
            for task in itertools.chain.from_iterable(corpora):
                if not len(task):
                    continue
                table = _columns_of(task, settings.validity_samples, settings.seed)
                for name, file in files.items():
                    file.write(np.ascontiguousarray(table[name]).data)
                rows.append(table["task"].tolist())
                shapes.append(task.workload.shape_key)
                chips.append(task.accelerator.to_json())
                lengths.append(len(table["valid"]))
            # The head says that they are complete, so they are on the disk before it.
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
        if not lengths:
            raise _no_samples()
    finally:
        for corpus in corpora:
            corpus.close()
    content = {"made_of": made_of, "tasks": rows, "shapes": shapes, "accelerators": chips, "lengths": lengths}
    write_whole(head, json.dumps(content))


def _made_of(head: Path) -> Any:
    """What the features beside ``head`` are made of; None if they are not whole."""
    try:
        return read_json(head)["made_of"]
    except (OneShotError, KeyError, TypeError, IndexError):
        return None


def map_features(folder: str | Path) -> Data:
    """What `write_features` wrote; the features of the schedules stay on the disk until they are used."""
    folder = Path(folder)
    head = json.loads((folder / "head.json").read_text(encoding="utf-8"))
    offsets = np.concatenate(([0], np.cumsum(head["lengths"]))).astype(np.int64)
    small = {name: dtype for name, dtype in _COLUMNS.items() if name != "schedules"}
    columns: dict[str, Any] = {name: np.fromfile(folder / f"{name}.bin", dtype=dtype) for name, dtype in small.items()}
    kind, _, digests, *_ = head["made_of"]
    shape = (int(offsets[-1]), len(encoding(kind).SCHEDULE_FEATURES))
    # Copy on write: torch takes arrays that may be written to.
    mapped = np.memmap(folder / "schedules.bin", dtype=np.float32, mode="c", shape=shape)
    known = {text: Accelerator.from_json(text) for text in set(head["accelerators"])}
    return Data(
        tasks=np.array(head["tasks"], dtype=np.float32),
        schedules=np.asarray(mapped),
        offsets=offsets,
        shapes=[_as_tuple(shape) for shape in head["shapes"]],
        accelerators=[known[text] for text in head["accelerators"]],
        digests=digests,
        kind=kind,
        **columns,
    )


def _as_tuple(value: Any) -> Any:
    """Nested lists as nested tuples."""
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list) else value


def split_tasks(data: Data, settings: Settings) -> dict[str, NDArray[np.int64]]:
    """Tasks for training and for validation, by workload shape and by accelerator, never by sample.

    ``train``: neither is held out; ``workload``: an unseen workload on a seen accelerator; ``both``: both unseen.
    Tasks of seen workloads on unseen accelerators belong to none, so that ``both`` stays unseen by half of its pairs.
    """
    rng = np.random.default_rng([settings.seed, 17])
    shapes = sorted(set(data.shapes))
    chips = sorted({chip.to_json() for chip in data.accelerators})
    held_shapes = {shapes[i] for i in rng.permutation(len(shapes))[: round(settings.held_workloads * len(shapes))]}
    held_chips = {chips[i] for i in rng.permutation(len(chips))[: min(settings.held_accelerators, len(chips) - 1)]}
    new_shape = np.array([shape in held_shapes for shape in data.shapes])
    new_chip = np.array([chip.to_json() in held_chips for chip in data.accelerators])
    return {
        "train": np.flatnonzero(~new_shape & ~new_chip),
        "workload": np.flatnonzero(new_shape & ~new_chip),
        "accelerator": np.flatnonzero(~new_shape & new_chip),
        "both": np.flatnonzero(new_shape & new_chip),
    }


# The network ---------------------------------------------------------------------------------


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


def _best(data: Data) -> NDArray[np.float32]:
    """log T* of each task's samples, float32 (T,); 0 where none is valid."""
    best = np.zeros(len(data), dtype=np.float32)
    for t in range(len(data)):
        rows = data.rows(t)
        own = (data.log_bound[rows] + data.log_ratio[rows])[data.timed[rows]]
        best[t] = own.min() if len(own) else 0.0
    return best


def draw_rows(rng: np.random.Generator, begin: int, end: int, n: int) -> NDArray[np.int64]:
    """``n`` of the rows begin..end, different ones if there are as many."""
    return np.asarray(begin + rng.choice(end - begin, size=n, replace=bool(end - begin < n)))


def _batch(
    data: Data, best: NDArray[np.float32], tasks: NDArray[np.int64], samples: int, rng: np.random.Generator
) -> list[Tensor]:
    """Task features (B, T), schedule features (B, M, S), then what `losses` takes after the outputs."""
    rows = np.empty((len(tasks), samples), dtype=np.int64)
    for i, t in enumerate(tasks):
        rows[i] = draw_rows(rng, data.offsets[t], data.offsets[t + 1], samples)
    arrays = (
        data.tasks[tasks],
        data.schedules[rows],
        data.valid[rows].astype(np.float32),
        data.timed[rows].astype(np.float32),
        data.log_bound[rows],
        data.log_ratio[rows],
        best[tasks],
    )
    return [torch.from_numpy(array) for array in arrays]


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


def to_predictor(
    network: Network, low: NDArray[np.float32], high: NDArray[np.float32], card: dict[str, Any], kind: str = "full"
) -> Predictor:
    """The network's weights as they are shipped."""
    tensors = {name: tensor.detach().numpy().copy() for name, tensor in network.state_dict().items()}
    return Predictor(tensors | {"low": low, "high": high}, card, kind)


# Validation ----------------------------------------------------------------------------------


def validate(network: Network, data: Data, tasks: NDArray[np.int64]) -> dict[str, float]:
    """Figures over tasks, each averaged over tasks: see `metrics`. ``pick``: T* / T of the pick among the samples."""
    truths, logits, errors, taus, picks = [], [], [], [], []
    network.eval()
    with torch.inference_mode():
        for t in tasks:
            rows = data.rows(int(t))
            outputs = network(torch.from_numpy(data.tasks[t : t + 1]), torch.from_numpy(data.schedules[rows])[None])
            logit, ratio, _ = outputs[NETWORKS.index("main")][0].numpy().T
            valid = data.timed[rows]
            truths.append(data.valid[rows])
            logits.append(logit)
            if not valid.any():
                continue
            truth, guess = data.log_bound[rows] + data.log_ratio[rows], data.log_bound[rows] + ratio
            errors.append(float(np.abs(truth - guess)[valid].mean()))
            tau = metrics.kendall_tau(truth[valid], guess[valid])
            if not math.isnan(tau):
                taus.append(tau)
            trusted = valid & (logit >= 0)
            if trusted.any():
                first = np.flatnonzero(trusted)[guess[trusted].argmin()]
                picks.append(float(np.exp(truth[valid].min() - truth[first])))
    network.train()
    if not len(tasks):
        return {}
    truth_all, logit_all = np.concatenate(truths), np.concatenate(logits)
    validity = metrics.validity_scores(truth_all, logit_all, threshold=0.0)
    figures = {
        "tasks": float(len(tasks)),
        "error": float(np.mean(errors)) if errors else float("nan"),
        "tau": float(np.mean(taus)) if taus else float("nan"),
        "pick": metrics.geometric_mean(picks) if picks else float("nan"),
    }
    return figures | {name: validity[name] for name in ("f1", "auroc")}


# Checkpoints ---------------------------------------------------------------------------------


_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def save_checkpoint(
    path: Path, network: nn.Module, average: dict[str, Tensor], optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """Everything that the next epoch depends on, as safetensors: written whole or not at all."""
    tensors = {f"network.{name}": tensor.contiguous() for name, tensor in network.state_dict().items()}
    tensors |= {f"average.{name}": tensor.contiguous() for name, tensor in average.items()}
    for name, parameter in network.named_parameters():
        moments = optimizer.state[parameter]
        tensors |= {f"optimizer.{name}.{key}": moments[key].contiguous() for key in _MOMENTS}
    write_weights(path, save(tensors, metadata={"state": json.dumps(state)}))


def load_checkpoint(
    path: Path, network: nn.Module, average: dict[str, Tensor], optimizer: torch.optim.Optimizer, fingerprint: str
) -> dict[str, Any]:
    """Restore what `save_checkpoint` wrote; returns its state.

    Raises:
        OneShotError: a damaged checkpoint, or one of another run.
    """
    from safetensors import safe_open

    advice = "delete it to start anew"
    try:
        tensors = load_file(str(path))
        with safe_open(str(path), framework="pt") as file:
            state = parse_json(file.metadata()["state"], "its state", decoder=FIGURES_DECODER)
        if not isinstance(state, dict):
            raise ValueError("its state is no object")
        if state.get("fingerprint") == fingerprint:
            _check_checkpoint(tensors, network, average)
    except (OneShotError, OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise OneShotError(f"{path}: damaged checkpoint ({error}); {advice}") from error
    if state.get("fingerprint") != fingerprint:
        raise OneShotError(f"{path}: checkpoint of another corpus or other settings; {advice}, or give another --out")
    network.load_state_dict({k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")})
    for name, tensor in average.items():
        tensor.copy_(tensors[f"average.{name}"])
    for name, parameter in network.named_parameters():
        optimizer.state[parameter] = {key: tensors[f"optimizer.{name}.{key}"] for key in _MOMENTS}
    return state


def _check_checkpoint(tensors: dict[str, Tensor], network: nn.Module, average: dict[str, Tensor]) -> None:
    """Raise ValueError unless a checkpoint has every tensor of a run, and no other."""
    expected = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    expected |= {f"average.{name}": tensor for name, tensor in average.items()}
    for name, parameter in network.named_parameters():
        expected |= {f"optimizer.{name}.{key}": parameter for key in _MOMENTS[:2]}
        expected[f"optimizer.{name}.{_MOMENTS[2]}"] = torch.zeros(())
    for name in set(expected) | set(tensors):
        if name not in expected or name not in tensors:
            raise ValueError(f"tensor {name!r} is missing or unknown")
        if tensors[name].shape != expected[name].shape or tensors[name].dtype != expected[name].dtype:
            raise ValueError(f"tensor {name!r} has another shape or type")


def _fingerprint(data: Data, settings: Settings) -> str:
    decided = {key: value for key, value in dataclasses.asdict(settings).items() if key != "checkpoint_minutes"}
    return json.dumps([encoding(data.kind).FEATURE_VERSION, sorted(data.digests), decided], sort_keys=True)


def _commit() -> str:
    """The checkout's commit, or ``unknown``."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"


# Several processes ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Processes:
    """Processes that train together, each on its part of a batch's tasks; by default just this one."""

    rank: int = 0
    count: int = 1

    @classmethod
    def joined(cls) -> Processes:
        """Those that ``torchrun`` started, over gloo."""
        if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
            return cls()
        # While one makes features or validates, the others wait.
        distributed.init_process_group("gloo", timeout=datetime.timedelta(hours=4))
        return cls(distributed.get_rank(), distributed.get_world_size())

    def leave(self) -> None:
        """End what `joined` began."""
        if self.count > 1:
            distributed.destroy_process_group()

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            distributed.barrier()

    def mean(self, value: float) -> float:
        """The mean of each one's value."""
        if self.count == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64)
        distributed.all_reduce(tensor)
        return float(tensor[0]) / self.count

    def share(self, tasks: NDArray[np.int64]) -> NDArray[np.int64]:
        """This one's part of a batch's tasks; all of them if there are fewer than processes."""
        return tasks[self.rank :: self.count] if len(tasks) >= self.count else tasks

    def together(self, network: nn.Module) -> nn.Module:
        """The network, its gradients averaged over the processes."""
        if self.count == 1:
            return network
        return nn.parallel.DistributedDataParallel(network, broadcast_buffers=False)


# The loop ------------------------------------------------------------------------------------


def train(
    data: Data,
    settings: Settings,
    out: str | Path,
    progress: bool = False,
    stop_after: int = 0,
    processes: Processes = Processes(),
) -> Predictor:
    """Train on a corpus and write ``out`` (.safetensors), its card (.json) and its loss curves (.png).

    Progress is kept in ``<out>.checkpoint`` and taken up from there by the next call with the same arguments: a run
    that was killed gives the same weights as one that was not. ``stop_after``: leave after so many epochs (a test
    of that). Of several ``processes`` all call this, and the first one writes.

    Raises:
        CorpusError: no task is left to train on.
        OneShotError: a damaged or foreign checkpoint.
        WeightsError: the result cannot be written.
    """
    out = Path(out).with_suffix(".safetensors")
    checkpoint = out.with_suffix(".checkpoint")
    torch.manual_seed(settings.seed)
    splits = split_tasks(data, settings)
    best = _best(data)
    usable = np.array([data.timed[data.rows(t)].any() for t in range(len(data))])
    tasks = splits["train"][usable[splits["train"]]]
    if not len(tasks):
        raise CorpusError("no task with a valid sample is left to train on; collect more of them")
    if settings.task_share < 1:
        count = max(1, round(settings.task_share * len(tasks)))
        tasks = np.sort(np.random.default_rng([settings.seed, 4]).permutation(tasks)[:count])
    mean, scale = standardisation(data, tasks)
    network = Network(settings, mean, scale)
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    average = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    fingerprint = _fingerprint(data, settings)
    state: dict[str, Any] = {"epoch": 0, "history": [], "seconds": 0.0, "fingerprint": fingerprint}
    if checkpoint.exists():
        state = load_checkpoint(checkpoint, network, average, optimizer, fingerprint)
    processes.wait()
    model = processes.together(network)

    steps = -(-len(tasks) // settings.tasks_per_batch)
    every = steps * settings.epochs

    def rate(step: int) -> float:
        rising = (step + 1) / max(settings.warmup * every, 1.0)
        return settings.learning_rate * min(rising, 0.5 * (1 + math.cos(math.pi * step / every)))

    began, saved = time.monotonic() - state["seconds"], time.monotonic()
    shadow = Network(settings, mean, scale)
    for epoch in range(state["epoch"], settings.epochs):
        rng = np.random.default_rng([settings.seed, 1, epoch])
        order, sum_of_losses = rng.permutation(tasks), 0.0
        draws = rng if processes.count == 1 else np.random.default_rng([settings.seed, 3, epoch, processes.rank])
        for step, chosen in enumerate(np.array_split(order, steps)):
            own = processes.share(chosen)
            features, schedules, *targets = _batch(data, best, own, settings.samples_per_task, draws)
            for group in optimizer.param_groups:
                group["lr"] = rate(epoch * steps + step)
            loss = torch.stack([losses(outputs, targets, settings) for outputs in model(features, schedules)]).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            sum_of_losses += float(loss.detach())
            with torch.no_grad():
                # Early on the average forgets faster, so that the first weights do not linger in it.
                decay = min(settings.average, (1 + epoch * steps + step) / (10 + epoch * steps + step))
                for name, tensor in network.state_dict().items():
                    average[name].lerp_(tensor, 1 - decay)
        last = epoch + 1 == settings.epochs
        entry: dict[str, Any] = {"epoch": epoch + 1, "loss": processes.mean(sum_of_losses / steps)}
        if processes.rank == 0 and (last or (epoch + 1) % max(settings.epochs // 20, 1) == 0):
            shadow.load_state_dict(average)
            entry |= {name: validate(shadow, data, splits[name]) for name in ("workload", "both") if len(splits[name])}
        state["history"].append(entry)
        state["epoch"] = epoch + 1
        state["seconds"] = time.monotonic() - began
        if progress and processes.rank == 0:
            text = "  ".join(
                f"{name}: " + " ".join(f"{key} {value:.4f}" for key, value in figures.items() if key != "tasks")
                for name, figures in entry.items()
                if isinstance(figures, dict)
            )
            head = f"epoch {epoch + 1}/{settings.epochs} loss {entry['loss']:.4f} {state['seconds']:.0f} s"
            print(f"{head}  {text}".rstrip(), flush=True)
        stopping = stop_after and epoch + 1 >= stop_after
        due = last or stopping or time.monotonic() - saved > 60 * settings.checkpoint_minutes
        if due and processes.rank == 0:
            save_checkpoint(checkpoint, network, average, optimizer, state)
            saved = time.monotonic()
        if stopping:
            break
    shadow.load_state_dict(average)
    predictor = to_predictor(shadow, data.tasks[tasks].min(axis=0), data.tasks[tasks].max(axis=0), {}, data.kind)
    card = _card(data, settings, splits, state) | {"processes": processes.count}
    predictor = dataclasses.replace(predictor, card=card)
    if state["epoch"] == settings.epochs and processes.rank == 0:
        predictor.save(out)
        plot_losses(state["history"], out.with_suffix(".png"))
        checkpoint.unlink(missing_ok=True)
    return predictor


def _card(
    data: Data, settings: Settings, splits: dict[str, NDArray[np.int64]], state: dict[str, Any]
) -> dict[str, Any]:
    """The model card: what the weights come from and how good they were on tasks kept out of training."""
    counts = {name: len(tasks) for name, tasks in splits.items()}
    final = {name: figures for name, figures in state["history"][-1].items() if isinstance(figures, dict)}
    return {
        "space": data.kind,
        "feature_version": encoding(data.kind).FEATURE_VERSION,
        "corpus": sorted(data.digests),
        "samples": int(data.offsets[-1]),
        "invalid_share": float(1 - data.valid.mean()),
        "split": counts | {"rule": "by workload shape and by accelerator, never by sample; 'accelerator' is unused"},
        "validation": final,
        "settings": dataclasses.asdict(settings),
        "history": state["history"],
        "training_seconds": round(state["seconds"], 1),
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "torch": torch.__version__,
    }


def plot_losses(history: list[dict[str, Any]], path: Path) -> None:
    """Loss curve and validation figures as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    left.plot([entry["epoch"] for entry in history], [entry["loss"] for entry in history])
    left.set(xlabel="epoch", ylabel="training loss", yscale="log")
    for name, label in (("workload", "unseen workload"), ("both", "unseen workload and accelerator")):
        points = [(entry["epoch"], entry[name]["error"]) for entry in history if name in entry]
        if points:
            right.plot(*zip(*points, strict=True), marker="o", label=label)
    right.set(xlabel="epoch", ylabel="mean |error of log T|", yscale="log")
    if right.lines:
        right.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    pyplot.close(figure)
    write_whole(path, picture.getvalue())


# Command line --------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``oneshot-ml2 train``."""
    parser.add_argument("--corpus", metavar="CORPUS", nargs="+", required=True, help="files or folders of shards")
    parser.add_argument("--out", metavar="PATH", required=True, help="weights to write, e.g. pretrained/default@1")
    parser.add_argument("--settings", metavar="FILE", help="TOML settings; default: those of train/pretrain.toml")
    parser.add_argument("--epochs", type=int, metavar="N", help="replaces the settings' number of epochs")
    parser.add_argument("--seed", type=int, metavar="N", help="replaces the settings' seed")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads; default: all")


def run(args: argparse.Namespace) -> int:
    """Train; raises OneShotError for what the user can mend."""
    settings = read_settings(args.settings) if args.settings else Settings()
    given = {key: getattr(args, key) for key in ("epochs", "seed") if getattr(args, key) is not None}
    if args.threads:
        torch.set_num_threads(args.threads)
    settings = dataclasses.replace(settings, **given)
    out = Path(args.out).with_suffix(".safetensors")
    check_writable(out.parent, "--out")
    features = out.with_suffix(".features")
    processes = Processes.joined()
    busy = f"{out}: another training writes it; wait for it, or give another --out"
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with locked(out, busy) if processes.rank == 0 else contextlib.nullcontext():
            if processes.rank == 0:
                write_features(args.corpus, settings, features)
            processes.wait()
            data = map_features(features)
            if processes.rank == 0:
                valid = float(data.valid.mean())
                print(f"{len(data)} tasks, {len(data.valid)} samples, {valid:.1%} valid", flush=True)
            predictor = train(data, settings, out, progress=True, processes=processes)
            if processes.rank == 0:
                shutil.rmtree(features)
                print(f"{out}: trained in {predictor.card['training_seconds']:.0f} s; card and curves beside it")
    finally:
        processes.leave()
    return 0


if __name__ == "__main__":
    # For torchrun, which starts modules; everything is that of `oneshot-ml2 train`.
    from oneshot_ml2.cli import main

    sys.argv.insert(1, "train")
    sys.exit(main())
