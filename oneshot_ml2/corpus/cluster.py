"""Collecting on a Ray cluster: tasks go to whichever node is free, what they yield comes back to the one that writes.

Workers get all that they need with a task and keep nothing, so that the nodes share no storage, and any of them may
die: its tasks are given to others. A task's samples depend on the plan's seed and on the task alone, so that it does
not matter where, or how often, it was measured; the first outcome is the one that counts.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import oneshot_ml2
from oneshot_ml2.common.errors import CorpusError, OneShotError
from oneshot_ml2.corpus.format import TaskSamples
from oneshot_ml2.corpus.plan import Plan, Task
from oneshot_ml2.corpus.sampling import attempt
from oneshot_ml2.devices.base import Device
from oneshot_ml2.devices.registry import open_device
from oneshot_ml2.spaces.registry import backend
from oneshot_ml2.workload.lists import Layer

# A task whose worker dies this often is taken for the cause.
_LOSSES = 5
# Seconds, and multiples of the longest task so far, after which a worker may hang, and a second one gets the task.
_LATE, _LATE_FACTOR = 120.0, 10.0
# Seconds that a cluster may be without any node.
_EMPTY = 60.0
# Seconds between looks at the cluster, and for a node's or an address's first answer.
_POLL, _ANSWER = 1.0, 60.0
# Bytes of shared memory of a cluster of our own: results are small and are fetched at once.
_OBJECTS = 128 << 20


class WorkerLost(Exception):
    """A task's worker or node died before its samples were here."""


class Pool(Protocol):
    """Where tasks are measured; ``Any`` is the pool's own, hashable name for one submission."""

    def slots(self) -> int:
        """How many submissions to keep under way; 0 while there is no node."""

    def submit(self, task: Task) -> Any:
        """Have a task measured."""

    def wait(self, calls: Sequence[Any], seconds: float) -> Sequence[Any]:
        """Those of the submissions that have ended, as soon as there are any, or after ``seconds``."""

    def result(self, call: Any) -> TaskSamples | OneShotError:
        """The outcome of a submission that has ended.

        Raises:
            WorkerLost: give the task to another worker.
        """

    def drop(self, call: Any) -> None:
        """End a submission that nobody waits for any more."""


def distribute(
    tasks: Sequence[Task], pool: Pool, warn: Callable[[str], None] | None = None
) -> Generator[tuple[Task, TaskSamples | OneShotError], None, None]:
    """Each task (all different) with its outcome, exactly once, as they come, whatever happens to the workers.

    Raises:
        CorpusError: a task whose workers die again and again, or no node for a minute.
    """
    queue = deque(tasks)
    unfinished = set(tasks)
    running: dict[Any, tuple[Task, float]] = {}
    losses: Counter[Task] = Counter()
    longest, seen = 0.0, time.monotonic()

    def submit(task: Task) -> None:
        running[pool.submit(task)] = (task, time.monotonic())

    try:
        while unfinished:
            slots, now = pool.slots(), time.monotonic()
            if slots:
                seen = now
            elif now - seen > _EMPTY:
                raise CorpusError("the cluster has no nodes any more: add some and run the same command again")
            while queue and len(running) < slots:
                submit(queue.popleft())
            copies = Counter(task for task, _ in running.values())
            late = now - max(_LATE, _LATE_FACTOR * longest)
            for task in [task for task, begin in running.values() if begin < late and copies[task] == 1]:
                submit(task)
            for call in pool.wait(list(running), _POLL):
                if call not in running:
                    continue
                task, begin = running.pop(call)
                try:
                    outcome = pool.result(call)
                except WorkerLost as error:
                    losses[task] += 1
                    what = f"{task[0]} on {task[1].name}"
                    if losses[task] == _LOSSES:
                        raise CorpusError(
                            f"{what}: {_LOSSES} workers died of it, perhaps for want of memory ({error}); what is "
                            "finished is kept: mend the nodes and run the same command again"
                        ) from error
                    if all(task != other for other, _ in running.values()):
                        queue.appendleft(task)
                    if warn is not None:
                        warn(f"{what}: measured again, since its worker was lost ({error})")
                    continue
                longest = max(longest, time.monotonic() - begin)
                for other in [other for other, (same, _) in running.items() if same == task]:
                    del running[other]
                    pool.drop(other)
                unfinished.remove(task)
                yield task, outcome
    finally:
        for call in running:
            pool.drop(call)


# What every node must have -------------------------------------------------------------------


@functools.cache
def identity(kind: str) -> dict[str, str]:
    """What must be equal on all nodes for a space's samples to be: versions, and a digest of the package's code."""
    folder = Path(oneshot_ml2.__file__).parent
    hasher = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        hasher.update(path.relative_to(folder).as_posix().encode() + b"\0")
        hasher.update(path.read_bytes() + b"\0")
    return {
        "oneshot-ml2": oneshot_ml2.__version__,
        f"space {kind}": str(backend(kind).SPACE_VERSION),
        # Its random streams may change with a minor version.
        "numpy": ".".join(np.__version__.split(".")[:2]),
        "code": hasher.hexdigest()[:12],
    }


def compare(node: str, found: dict[str, str] | str, expected: dict[str, str]) -> None:
    """Refuse a node that is not what the collecting process is; ``found`` is its identity, or why it has none.

    Raises:
        CorpusError: says what differs.
    """
    if found == expected:
        return
    if isinstance(found, str):
        what = found
    else:
        what = ", ".join(
            f"{name} is {found.get(name, 'missing')} there and {value} here"
            for name, value in expected.items()
            if found.get(name) != value
        )
    raise CorpusError(f"node {node}: {what}; install the same oneshot-ml2[cluster] on every node")


# On the workers ------------------------------------------------------------------------------


@functools.cache
def _device(name: str) -> Device:
    return open_device(name)


def _measure(task: Task, plan: Plan, device: str, expected: dict[str, str]) -> TaskSamples | OneShotError:
    """One task on a worker. Nodes that joined after the start are met here for the first time."""
    compare(socket.gethostname(), identity(plan.space), expected)
    return attempt(task, plan, _device(device))


# Ray -----------------------------------------------------------------------------------------


class _RayPool:
    """The CPUs of the cluster that this process is connected to, or at most ``limit`` tasks at a time."""

    def __init__(self, plan: Plan, device: str, limit: int | None) -> None:
        import ray

        self.ray, self.plan, self.device, self.limit = ray, plan, device, limit
        self.expected = identity(plan.space)
        # No retries by Ray: all losses are handled, and counted, in one place.
        self.remote = ray.remote(num_cpus=1, max_retries=0)(_measure)
        self.cpus, self.looked = 0, float("-inf")

    def greet(self) -> None:
        """Refuse a cluster without nodes, or with one that does not have what this process has."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        kind = self.plan.space

        # Not a function of this module: Ray sends it as it is, also to nodes where the package is missing or old.
        def inspect() -> dict[str, str] | str:
            try:
                return identity(kind)
            except Exception as error:
                return f"{type(error).__name__}: {error}"

        nodes = [node for node in self.ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
        if not nodes:
            raise CorpusError(
                "the cluster has no node with a CPU: run `ray start --address=HOST:PORT` on some machines"
            )
        answers = []
        for node in nodes:
            here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            # No CPU, since another job may hold them all.
            remote = self.ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=here)(inspect)
            answers.append(remote.remote())
        self.ray.wait(answers, num_returns=len(answers), timeout=_ANSWER)
        silent = []
        for node, answer in zip(nodes, answers):
            name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
            try:
                found = self.ray.get(answer, timeout=0)
            except self.ray.exceptions.RayError as error:
                # It may have died just now, and what it is given goes to others.
                silent.append(f"{name}: {_line(error)}")
            else:
                compare(name, found, self.expected)
        if len(silent) == len(nodes):
            raise CorpusError(f"no node of the cluster answers: {silent[0]}")

    def slots(self) -> int:
        if time.monotonic() - self.looked >= _POLL:
            self.cpus, self.looked = int(self.ray.cluster_resources().get("CPU", 0)), time.monotonic()
        # One waits for each that runs, so that no CPU waits for this process.
        return 2 * self.cpus if self.limit is None else min(2 * self.cpus, self.limit)

    def submit(self, task: Task) -> Any:
        # The rest of the plan plays no part in a task, and would travel with each.
        plan = dataclasses.replace(self.plan, layers=(Layer("", task[0], 1),), accelerators=(task[1],), tasks=1)
        return self.remote.remote(task, plan, self.device, self.expected)

    def wait(self, calls: Sequence[Any], seconds: float) -> Sequence[Any]:
        if not calls:
            time.sleep(seconds)
            return []
        done, waiting = self.ray.wait(list(calls), num_returns=1, timeout=seconds)
        more, _ = self.ray.wait(waiting, num_returns=len(waiting), timeout=0) if waiting else ([], [])
        return [*done, *more]

    def result(self, call: Any) -> TaskSamples | OneShotError:
        try:
            outcome: TaskSamples | OneShotError = self.ray.get(call)
        except self.ray.exceptions.RayTaskError as error:
            # The task itself failed, and would elsewhere.
            if isinstance(error.cause, OneShotError):
                raise error.cause from error
            raise
        except self.ray.exceptions.RayError as error:
            raise WorkerLost(_line(error)) from error
        return outcome

    def drop(self, call: Any) -> None:
        self.ray.cancel(call, force=True)


def _line(error: Exception) -> str:
    """Ray's messages go on for paragraphs."""
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextmanager
def _connected(address: str, workers: int | None) -> Iterator[None]:
    """Be a driver of the cluster; a ``local`` one lives as long as that."""
    import ray

    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    ending = signal.getsignal(signal.SIGTERM)
    # Ray prints what it has to say about dead workers; standard output is for results.
    with redirect_stdout(sys.stderr):
        try:
            if address == "local":
                os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
                cpus = workers or len(os.sched_getaffinity(0))
                ray.init("local", num_cpus=cpus, object_store_memory=_OBJECTS, include_dashboard=False, **quiet)
            else:
                ray.init(address, **quiet)
        except Exception as error:
            # Ray raises many kinds here, and plain ones, too.
            hint = "" if address == "local" else "; is `ray start` done on this machine, too?"
            raise CorpusError(f"--cluster {address}: {_line(error)}{hint}") from error
        if threading.current_thread() is threading.main_thread():
            # Ray's own handler ends the process without a word.
            signal.signal(signal.SIGTERM, ending)
        try:
            yield
        finally:
            ray.shutdown()


def _check(address: str) -> None:
    """Refuse what is no address, and where nobody listens (Ray would try for minutes).

    Raises:
        CorpusError: says which are allowed.
    """
    if address in ("local", "auto"):
        return
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        raise CorpusError(f"--cluster is {address!r}; allowed: local, auto or HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise CorpusError(
            f"--cluster {address}: no Ray there ({error}); `ray start --head` prints its address"
        ) from error


def results(
    tasks: Sequence[Task],
    plan: Plan,
    device: str,
    address: str,
    workers: int | None = None,
    warn: Callable[[str], None] | None = None,
) -> Generator[tuple[Task, TaskSamples | OneShotError], None, None]:
    """Each task with its outcome, exactly once, as they come, measured on the Ray cluster at ``address``.

    ``address``: ``local`` starts one on this machine with ``workers`` CPUs (default: all); ``auto`` is the cluster
    that this machine belongs to; HOST:PORT is that of its head. There, ``workers`` is the most tasks at a time.

    Raises:
        CorpusError: not an address, no cluster, no nodes, a node with another version, or see :func:`distribute`.
        ModuleNotFoundError: Ray is not installed.
    """
    _check(address)
    with _connected(address, workers):
        pool = _RayPool(plan, device, None if address == "local" else workers)
        pool.greet()
        yield from distribute(tasks, pool, warn)
