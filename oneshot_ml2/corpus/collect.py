"""Collecting a corpus: a plan draws tasks, samplers draw schedules, a device measures them, shards keep them.

The samplers are One-Shot Tuner's (CC'22): tasks from the prior that networks give, and schedules explored towards
the fast ones, beside uniform ones. Every task has its own seed, so that results do not depend on the workers.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json
import multiprocessing
import time
from collections.abc import Callable, Generator, Sequence
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

import oneshot_ml2
from oneshot_ml2.common.checkout import commit
from oneshot_ml2.common.children import end_with_parent
from oneshot_ml2.common.errors import CorpusError, OneShotError
from oneshot_ml2.common.files import locked
from oneshot_ml2.common.reading import read_json
from oneshot_ml2.corpus import cluster
from oneshot_ml2.corpus.format import TaskSamples, task_id
from oneshot_ml2.corpus.read import open_corpus
from oneshot_ml2.corpus.sampling import attempt
from oneshot_ml2.corpus.write import atomic_write, write_corpus
from oneshot_ml2.devices.base import Device, close, is_exclusive, measurable, notes
from oneshot_ml2.devices.registry import open_device
from oneshot_ml2.spaces.space import ScheduleSpace

if TYPE_CHECKING:
    from oneshot_ml2.corpus.plan import Plan, Task

MANIFEST = "manifest.json"

# Workers -------------------------------------------------------------------------------------

_worker: tuple[Plan, Device] | None = None


def _start_worker(plan: Plan, device: str) -> None:
    """Initialise a worker process."""
    global _worker
    end_with_parent()
    _worker = (plan, open_device(device))
    _warm_up(*_worker)


def _work(task: Task) -> TaskSamples | OneShotError:
    assert _worker is not None
    return attempt(task, *_worker)


def _warm_up(plan: Plan, device: Device) -> tuple[str, ...]:
    """Have the hot paths compiled (the cache on disk serves the workers); returns the space's knob names."""
    problem = OneShotError("no tasks")
    for workload, accelerator in plan.drawn:
        space = ScheduleSpace(workload, accelerator, plan.space)
        try:
            among = measurable(device, space)
            first = space.canonical(np.zeros(1, dtype=np.int64)) if among is None else among[:1]
            device.measure_schedules(space, first)
            return tuple(knob.name for knob in space.knobs)
        except OneShotError as error:
            problem = error
    raise problem


def _results(
    tasks: Sequence[Task], plan: Plan, device_name: str, device: Device, workers: int
) -> Generator[tuple[Task, TaskSamples | OneShotError], None, None]:
    """Each task with its outcome, as they come."""
    if workers == 1:
        for task in tasks:
            yield task, attempt(task, plan, device)
        return
    # Not fork: numba and HDF5 have threads and locks that a forked child would inherit.
    context = multiprocessing.get_context("spawn")
    pool = futures.ProcessPoolExecutor(workers, context, _start_worker, (plan, device_name))
    try:
        waiting = iter(tasks)
        running: dict[futures.Future[TaskSamples | OneShotError], Task] = {}
        while True:
            for task in itertools.islice(waiting, 2 * workers - len(running)):
                running[pool.submit(_work, task)] = task
            if not running:
                return
            done, _ = futures.wait(running, return_when=futures.FIRST_COMPLETED)
            for future in done:
                yield running.pop(future), future.result()
    except BrokenProcessPool as error:
        raise CorpusError(
            "a worker process died, perhaps for want of memory: run the same command again with fewer --workers"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _cluster_results(
    tasks: Sequence[Task],
    plan: Plan,
    device: str,
    address: str,
    workers: int | None,
    warn: Callable[[str], None] | None,
) -> Generator[tuple[Task, TaskSamples | OneShotError], None, None]:
    """Each task with its outcome, as they come; a cluster is only looked for if there are any."""
    if tasks:
        yield from cluster.results(tasks, plan, device, address, workers, warn)


# Collecting ----------------------------------------------------------------------------------


def _prepare(folder: Path, plan: Plan, device: str) -> set[str]:
    """Check or write the manifest, and return the ids of the tasks that are done."""
    path = folder / MANIFEST
    digest = plan.digest(device)
    shards = sorted(folder.glob("*.h5"))
    if path.exists():
        try:
            known = read_json(path)["plan_digest"]
        except (OneShotError, KeyError, TypeError, IndexError) as error:
            raise CorpusError(f"{path}: not a manifest ({error}); give another --out") from error
        if known != digest:
            raise CorpusError(
                f"{folder} was begun with another plan (or seed, workload list, space version or device); "
                "go on with that one, or give another --out"
            )
    elif shards:
        raise CorpusError(f"{folder} holds {shards[0].name} but no {MANIFEST}; give another --out")
    else:
        manifest = {
            "format": "oneshot-ml2 collection",
            "plan_digest": digest,
            "device": device,
            "space_version": plan.space_version,
            "plan": plan.settings(),
            "workloads": len(plan.layers),
            "accelerators": [chip.name for chip in plan.accelerators],
        }
        atomic_write(path, (json.dumps(manifest, indent=2) + "\n").encode())
    if not shards:
        return set()
    with open_corpus(folder) as corpus:
        return set(corpus.ids)


class _Shards:
    """Gathers finished tasks and writes them as shards."""

    def __init__(self, folder: Path, plan: Plan, device: str) -> None:
        self.folder, self.size = folder, plan.shard_tasks
        self.tasks: list[TaskSamples] = []
        numbers = [int(path.stem[6:]) for path in folder.glob("shard-*.h5") if path.stem[6:].isdigit()]
        self.next = max(numbers, default=-1) + 1
        self.origin = {
            "package": oneshot_ml2.__version__,
            "commit": commit(),
            "device": device,
            "seed": plan.seed,
            "plan": plan.digest(device),
            "samplers": {
                key: plan.settings()[key]
                for key in ("prior", "explore", "rounds", "parents", "seeded", "crossover", "invalid_share")
            },
        }

    def add(self, task: TaskSamples) -> None:
        self.tasks.append(task)
        if len(self.tasks) >= self.size:
            self.flush()

    def flush(self) -> None:
        """Write what has been gathered."""
        if not self.tasks:
            return
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        origin = self.origin | {"time": now}
        tasks, self.tasks = self.tasks, []
        write_corpus(
            self.folder / f"shard-{self.next:05d}.h5", [dataclasses.replace(task, provenance=origin) for task in tasks]
        )
        self.next += 1


def collect(
    plan: Plan,
    out: str | Path,
    *,
    workers: int | None = None,
    device: str = "sim",
    cluster: str | None = None,
    progress: bool = True,
    warn: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Collect a plan's corpus into a folder of shards, going on from what is there.

    ``workers`` processes measure (default: this one), or a Ray ``cluster``: see `cluster.results`.
    Only this process writes.

    Ctrl-C (KeyboardInterrupt) writes what has been finished and is raised again. A pair for which the space cannot
    be made gets no samples, and ``warn`` is told.

    Returns:
        JSON-able: the folder, tasks (all and done before), samples and invalid ones of this run, seconds, and the
        device's `notes`.

    Raises:
        CorpusError: another plan's folder, a damaged shard, a full disk, a dead worker, no cluster.
        DeviceError: an unknown device, or one that fails on one schedule after another; what is finished is kept.
        ModuleNotFoundError: a cluster is asked for, and Ray is not installed.
    """
    begin = time.perf_counter()
    opened = open_device(device)
    if is_exclusive(opened):
        workers = 1
    out = Path(out)
    if workers is not None and workers < 1:
        raise CorpusError(f"--workers is {workers}; allowed: at least 1")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CorpusError(f"cannot write to {out}: {error.strerror}") from error
    busy = f"{out}: another collector is at work there; wait for it or give another --out"
    with locked(out / MANIFEST, busy, CorpusError):
        done = _prepare(out, plan, device)
        todo = [task for task in plan.drawn if task_id(*task, plan.space) not in done]
        knobs = _warm_up(plan, opened) if todo else ()
        if cluster is None:
            stream = _results(todo, plan, device, opened, min(workers or 1, max(len(todo), 1)))
        else:
            stream = _cluster_results(todo, plan, device, cluster, workers, warn)
        with tqdm(
            total=len(todo) * plan.samples, unit="schedule", unit_scale=True, disable=not progress, desc="collect"
        ) as bar:
            samples, invalid = _keep(stream, _Shards(out, plan, device), plan, knobs, bar, warn)
    said = notes(opened)
    close(opened)
    return {
        "out": str(out),
        "tasks": len(plan.drawn),
        "tasks_before": len(done),
        "samples": samples,
        "invalid": invalid,
        "seconds": round(time.perf_counter() - begin, 3),
        "notes": said,
    }


def _keep(
    stream: Generator[tuple[Task, TaskSamples | OneShotError], None, None],
    shards: _Shards,
    plan: Plan,
    knobs: tuple[str, ...],
    bar: tqdm[Any],
    warn: Callable[[str], None] | None,
) -> tuple[int, int]:
    """Write each outcome as it comes; how many samples there were, and how many invalid ones."""
    samples = invalid = 0
    try:
        for task, outcome in stream:
            if isinstance(outcome, OneShotError):
                if warn is not None:
                    warn(f"{task[0]} on {task[1].name}: no samples: {outcome}")
                outcome = _empty(task, plan, knobs)
            samples += len(outcome)
            invalid += int((~outcome.valid).sum())
            bar.total -= plan.samples - len(outcome)
            bar.update(len(outcome))
            bar.set_postfix_str(f"invalid {invalid / max(samples, 1):.1%}", refresh=False)
            shards.add(outcome)
    finally:
        # Also after Ctrl-C or a dead worker: what has been finished is kept.
        shards.flush()
        stream.close()
    return samples, invalid


def _empty(task: Task, plan: Plan, knobs: tuple[str, ...]) -> TaskSamples:
    """A task without samples, which marks it as done."""
    return TaskSamples(
        workload=task[0],
        accelerator=task[1],
        kind=plan.space,
        space_version=plan.space_version,
        knobs=knobs,
        values=np.empty((0, len(knobs)), dtype=np.int32),
        reason=np.empty(0, dtype=np.uint8),
        cycles=np.empty(0, dtype=np.int64),
        busy=np.empty((0, 3), dtype=np.int64),
        sampler=np.empty(0, dtype=np.uint8),
        split=plan.split,
        provenance={},
    )
