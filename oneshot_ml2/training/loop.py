"""Training the network on corpora: features, losses, checkpoints, the model card.

Corpora are read one task after another; their features go to a file that is mapped, not loaded, so that memory is
bounded whatever their size. Under ``torchrun`` several processes share each batch's tasks.

The loss of a batch, drawn by tasks: cross-entropy of validity over all samples, a Huber loss of log(T / LB) over the
valid ones weighted towards the fast ones, a pairwise ranking loss within each task, and the likelihood of the spread.
"""

from __future__ import annotations

import dataclasses
import datetime
import io
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from oneshot_ml2.common import metrics
from oneshot_ml2.common.errors import CorpusError
from oneshot_ml2.common.files import write_whole
from oneshot_ml2.network.predictor import NETWORKS, Predictor
from oneshot_ml2.network.weights import load_pretrained
from oneshot_ml2.training.checkpoint import commit, fingerprint_of, load_checkpoint, save_checkpoint
from oneshot_ml2.training.data import draw_rows, split_tasks
from oneshot_ml2.training.network import Network, losses, standardisation, start_from, to_predictor
from oneshot_ml2.training.processes import Processes

if TYPE_CHECKING:
    from oneshot_ml2.training.data import Data
    from oneshot_ml2.training.settings import Settings


def _best(data: Data) -> NDArray[np.float32]:
    """log T* of each task's samples, float32 (T,); 0 where none is valid."""
    best = np.zeros(len(data), dtype=np.float32)
    for t in range(len(data)):
        rows = data.rows(t)
        own = (data.log_bound[rows] + data.log_ratio[rows])[data.timed[rows]]
        best[t] = own.min() if len(own) else 0.0
    return best


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


# The loop ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Run:
    """What stays the same over the epochs.

    ``tasks``: those that are trained on, (T,); ``best``: see `_best`; ``model``: the network, or what wraps it where
    several processes share it; ``average``: of its weights, changed in place; ``steps``: of an epoch.
    """

    data: Data
    settings: Settings
    processes: Processes
    tasks: NDArray[np.int64]
    best: NDArray[np.float32]
    network: Network
    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: dict[str, Tensor]
    steps: int


def _tasks_of(data: Data, settings: Settings, among: NDArray[np.int64]) -> NDArray[np.int64]:
    """The tasks that are trained on: those with a valid sample, and of them the share that the settings want.

    Raises:
        CorpusError: none is left.
    """
    usable = np.array([data.timed[data.rows(t)].any() for t in range(len(data))])
    tasks = among[usable[among]]
    if not len(tasks):
        raise CorpusError("no task with a valid sample is left to train on; collect more of them")
    if settings.task_share < 1:
        count = max(1, round(settings.task_share * len(tasks)))
        tasks = np.sort(np.random.default_rng([settings.seed, 4]).permutation(tasks)[:count])
    return tasks


def _rate(settings: Settings, step: int, every: int) -> float:
    """The learning rate of a step of ``every``: it rises linearly, then falls as a cosine."""
    rising = (step + 1) / max(settings.warmup * every, 1.0)
    return settings.learning_rate * min(rising, 0.5 * (1 + math.cos(math.pi * step / every)))


def _train_epoch(run: _Run, epoch: int) -> float:
    """One pass over the tasks; the mean loss."""
    settings, processes = run.settings, run.processes
    rng = np.random.default_rng([settings.seed, 1, epoch])
    order, sum_of_losses = rng.permutation(run.tasks), 0.0
    draws = rng if processes.count == 1 else np.random.default_rng([settings.seed, 3, epoch, processes.rank])
    for number, chosen in enumerate(np.array_split(order, run.steps)):
        step = epoch * run.steps + number
        own = processes.share(chosen)
        features, schedules, *targets = _batch(run.data, run.best, own, settings.samples_per_task, draws)
        for group in run.optimizer.param_groups:
            group["lr"] = _rate(settings, step, run.steps * settings.epochs)
        loss = torch.stack([losses(outputs, targets, settings) for outputs in run.model(features, schedules)]).sum()
        run.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(run.network.parameters(), 1.0)
        run.optimizer.step()
        sum_of_losses += float(loss.detach())
        with torch.no_grad():
            # Early on the average forgets faster, so that the first weights do not linger in it.
            decay = min(settings.average, (1 + step) / (10 + step))
            for name, tensor in run.network.state_dict().items():
                run.average[name].lerp_(tensor, 1 - decay)
    return processes.mean(sum_of_losses / run.steps)


def _progress_line(entry: dict[str, Any], epochs: int, seconds: float) -> str:
    """An epoch's figures for people."""
    text = "  ".join(
        f"{name}: " + " ".join(f"{key} {value:.4f}" for key, value in figures.items() if key != "tasks")
        for name, figures in entry.items()
        if isinstance(figures, dict)
    )
    return f"epoch {entry['epoch']}/{epochs} loss {entry['loss']:.4f} {seconds:.0f} s  {text}".rstrip()


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
        OneShotError: a damaged or foreign checkpoint, or weights to start from that do not fit.
        WeightsError: the result cannot be written.
    """
    out, checkpoint = (Path(out).with_suffix(ending) for ending in (".safetensors", ".checkpoint"))
    torch.manual_seed(settings.seed)
    splits = split_tasks(data, settings)
    tasks = _tasks_of(data, settings, splits["train"])
    mean, scale = standardisation(data, tasks)
    network, shadow = Network(settings, mean, scale), Network(settings, mean, scale)
    if settings.start:
        start_from(network, load_pretrained(settings.start), data.seen)
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    average = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    fingerprint = fingerprint_of(data, settings)
    state: dict[str, Any] = {"epoch": 0, "history": [], "seconds": 0.0, "fingerprint": fingerprint}
    if checkpoint.exists():
        state = load_checkpoint(checkpoint, network, average, optimizer, fingerprint)
    processes.wait()
    model, steps = processes.together(network), -(-len(tasks) // settings.tasks_per_batch)
    run = _Run(data, settings, processes, tasks, _best(data), network, model, optimizer, average, steps)
    began, saved = time.monotonic() - state["seconds"], time.monotonic()
    for epoch in range(state["epoch"], settings.epochs):
        last = epoch + 1 == settings.epochs
        entry: dict[str, Any] = {"epoch": epoch + 1, "loss": _train_epoch(run, epoch)}
        if processes.rank == 0 and (last or (epoch + 1) % max(settings.epochs // 20, 1) == 0):
            shadow.load_state_dict(average)
            entry |= {name: validate(shadow, data, splits[name]) for name in ("workload", "both") if len(splits[name])}
        state["history"].append(entry)
        state |= {"epoch": epoch + 1, "seconds": time.monotonic() - began}
        if progress and processes.rank == 0:
            print(_progress_line(entry, settings.epochs, state["seconds"]), flush=True)
        stopping = stop_after and epoch + 1 >= stop_after
        late = time.monotonic() - saved > 60 * settings.checkpoint_minutes
        if processes.rank == 0 and (last or stopping or late):
            save_checkpoint(checkpoint, network, average, optimizer, state)
            saved = time.monotonic()
        if stopping:
            break
    shadow.load_state_dict(average)
    card = _card(data, settings, splits, state) | {"processes": processes.count}
    ranges = (data.tasks[tasks].min(axis=0), data.tasks[tasks].max(axis=0))
    predictor = to_predictor(shadow, *ranges, card, data.kind, data.seen.version)
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
        "feature_version": data.seen.version,
        "designs": sorted({chip.design for chip in data.accelerators}),
        "corpus": sorted(data.digests),
        "samples": int(data.offsets[-1]),
        "invalid_share": float(1 - data.valid.mean()),
        "split": counts | {"rule": "by workload shape and by accelerator, never by sample; 'accelerator' is unused"},
        "validation": final,
        "settings": dataclasses.asdict(settings),
        "history": state["history"],
        "training_seconds": round(state["seconds"], 1),
        "commit": commit(),
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
