"""Run as a program: work that is killed at many moments and gone on with, and parents of processes that hang.

``python killing.py WORK FOLDER KILLS``: does the work undisturbed, then in forks that are killed with SIGKILL at random
moments, each going on with what the one before left; says in one line how often it came to an end, and fails unless
every end is the undisturbed one. ``python killing.py hang-KIND FOLDER``: starts children that hang.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_space
import networks
import numpy as np

from oneshot_ml2.corpus import collect
from oneshot_ml2.corpus.manage import verify_corpus
from oneshot_ml2.corpus.plan import Plan
from oneshot_ml2.devices.boards import Differences
from oneshot_ml2.devices.perturbed import PerturbedDevice
from oneshot_ml2.devices.simulated import SimulatorDevice
from oneshot_ml2.evaluation import evaluate, optimum
from oneshot_ml2.spaces.base import BatchResult
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.tuning import finetune, refine
from oneshot_ml2.tuning.calibrate import Board
from oneshot_ml2.tuning.measure import Limits, Measurer
from oneshot_ml2.vta.accelerator import DESIGNS, Accelerator
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.dense import Dense
from oneshot_ml2.workload.lists import Layer

CHIP = Accelerator.load("pynq")
NETWORK = networks.random_network(trusting=2.0)
TASKS = [optimum.Task(Layer(f"t{c}", Conv2d(1, c, 4, 3, 16, 1, 1), 1), CHIP, "accelerators/pynq.json") for c in
         (16, 32, 48, 64, 80, 96)]  # fmt: skip


def liar() -> PerturbedDevice:
    return PerturbedDevice("noisy", 3, Differences(lies=0.2, noise=0.01, failures=0.1))


def do_refine(folder: Path) -> Any:
    layers = [Layer("a", Conv2d(1, 16, 6, 6, 32, 3, 3, padding=1), 2), Layer("b", Dense(1, 64, 48), 1)]
    limits = Limits(checked=True, batch=4)
    options: dict[str, Any] = {"tuner": "random", "network": NETWORK, "limits": limits, "logs": folder}
    refine.refine(layers, CHIP, liar(), 60, **options)
    return {path.name: path.read_text() for path in folder.iterdir()}


def do_finetune(folder: Path) -> Any:
    spaces = [ScheduleSpace(layer.workload, CHIP) for layer in networks.LAYERS]
    finetune.collect(Board(spaces, NETWORK), liar(), 20, 0, folder / "log.jsonl")
    return {path.name: path.read_text() for path in folder.iterdir()}


def do_optimum(folder: Path) -> Any:
    list(optimum.search_all(TASKS, folder / "t.jsonl", 60, 1))
    rows = [json.loads(line) for line in (folder / "t.jsonl").read_text().splitlines()]
    return sorted(path.name for path in folder.iterdir()), [row | {"seconds": 0} for row in rows]


def do_evaluate(folder: Path) -> Any:
    known = [(task, optimum.find_optimum(task, 60)) for task in TASKS[:4]]
    evaluate.known_tasks = lambda name, limit=0: known
    found = evaluate.evaluate_set("resnet18", dict.fromkeys(DESIGNS, NETWORK), log=folder / "e.part")
    timed = ("seconds", "wall", "simulated")
    rows = [{key: row[key] for key in row if not any(word in key for word in timed)} for row in found["rows"]]
    return sorted(path.name for path in folder.iterdir()), [(row["cycles"], row["quality"]) for row in rows]


def do_collect(folder: Path) -> Any:
    layers = (Layer("small", Conv2d(1, 16, 8, 8, 32, 3, 3, padding=1), 3), Layer("dense", Dense(1, 64, 16), 1))
    chips = tuple(Accelerator.load(name) for name in ("pynq", "b8", "b32", "lat1"))
    assert fake_space.SPACE_VERSION
    plan = Plan(layers, chips, tasks=8, samples=60, space="fake", shard_tasks=1)
    collect.collect(plan, folder, progress=False)
    return sorted(path.name for path in folder.iterdir()), verify_corpus(folder)["digest"]


WORKS: dict[str, Callable[[Path], Any]] = {
    "refine": do_refine,
    "finetune": do_finetune,
    "optimum": do_optimum,
    "evaluate": do_evaluate,
    "collect": do_collect,
}


def survive(name: str, folder: Path, kills: int) -> int:
    """How often the work came to its end; raises AssertionError where that is another one than the undisturbed."""
    work = WORKS[name]
    places = (folder / f"{number}" for number in range(10_000))
    parts = (place for place in places if not place.mkdir())
    whole = work(next(parts))
    began = time.perf_counter()
    assert work(next(parts)) == whole, "not even undisturbed is it the same twice"
    length = time.perf_counter() - began
    draw, part, ends = random.Random(name), next(parts), 0
    for _ in range(kills):
        pid = os.fork()
        if not pid:
            try:
                work(part)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(3)
        time.sleep(draw.uniform(0.0, length))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "what was left cannot be gone on with"
        if os.WIFEXITED(status):
            assert work(part) == whole
            part, ends = next(parts), ends + 1
    assert work(part) == whole
    return ends + 1


# Children that hang ----------------------------------------------------------------------------
class Hanging(SimulatorDevice):
    """A device that never answers; it leaves a file when it is asked."""

    name = "hanging"

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def measure_schedules(self, space: ScheduleSpace, indices: Any) -> BatchResult:
        self.marker.touch()
        time.sleep(600)
        raise AssertionError


def hang(job: tuple[optimum.Task, float, str | None]) -> optimum.Optimum:
    """In place of a search; it leaves a file when it begins."""
    Path(f"{job[2]}").touch()
    time.sleep(600)
    raise AssertionError


def parent(kind: str, folder: Path) -> None:
    """Have children that hang, until this process is told to end."""
    marker = folder / "hangs"
    if kind == "measure":
        measurer = Measurer(Hanging(marker), ScheduleSpace(TASKS[0].workload, CHIP), Limits(timeout=500.0))
        try:
            list(measurer(np.arange(1)))
        finally:
            measurer.close()
    else:
        # By the module's name, as the children import it.
        import killing

        optimum._find = killing.hang
        list(optimum.search_all(TASKS, folder / "t.jsonl", 1.0, 2, str(marker)))


def alive(session: int) -> bool:
    """Whether a process of the session still runs (zombies do not)."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            return True
    return False


if __name__ == "__main__":
    name, place = sys.argv[1], Path(sys.argv[2])
    if name.startswith("hang-"):
        parent(name.removeprefix("hang-"), place)
    else:
        print(survive(name, place, int(sys.argv[3])))
