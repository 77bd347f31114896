"""Kills a writer at random moments: a script, so that what is forked has no threads of other tests.

``python kills.py KIND FOLDER MOMENTS``: after each kill what is there is whole, after the next write nothing else is;
prints how many of the kills left something.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from oneshot_ml2.common import files


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def kill_often(
    write: Callable[[int], None], check: Callable[[], None], folder: Path, moments: int, seed: int = 3
) -> int:
    """``write`` in forked processes that are killed anywhere within twice the time of a write; ``check`` after each."""
    write(0)
    begin = time.perf_counter()
    write(1)
    whole = time.perf_counter() - begin
    rng, left = random.Random(seed), 0
    for moment in range(moments):
        child = os.fork()
        if child == 0:
            while True:
                write(moment % 2)
        time.sleep(rng.uniform(0, 2 * whole))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        check()
        left += bool(leftovers(folder))
    write(0)
    check()
    assert leftovers(folder) == [], leftovers(folder)
    return left


def single_file(folder: Path, moments: int) -> int:
    contents = [bytes([number]) * 3_000_000 for number in (1, 2)]

    def check() -> None:
        assert (folder / "x").read_bytes() in contents

    return kill_often(lambda number: files.write_whole(folder / "x", contents[number]), check, folder, moments)


def weights(folder: Path, moments: int) -> int:
    import networks

    from oneshot_ml2.network.predictor import Predictor

    network = networks.random_network(0, (400, 400))

    def check() -> None:
        Predictor.load(folder / "w.safetensors")

    return kill_often(lambda number: network.save(folder / "w"), check, folder, moments)


def training(folder: Path, moments: int) -> int:
    """A training that is killed again and again ends with the weights of one that was not."""
    import networks
    import numpy as np
    import torch

    from oneshot_ml2.network.predictor import Predictor
    from oneshot_ml2.training import loop
    from oneshot_ml2.training.data import read_data
    from oneshot_ml2.training.settings import Settings

    torch.set_num_threads(1)
    corpus = networks.small_corpus(folder / "corpus")
    settings = Settings(
        scan=(8,), main=(16, 8), epochs=20, tasks_per_batch=4, samples_per_task=32, validity_samples=40,
        held_workloads=0.25, held_accelerators=1, checkpoint_minutes=0.0,
    )  # fmt: skip
    data = read_data([corpus], settings)
    (folder / "out").mkdir()
    # It also imports what draws the curves, so that the children do not.
    begin = time.perf_counter()
    whole = loop.train(data, settings, folder / "whole")
    lasts = time.perf_counter() - begin
    rng, killed = random.Random(5), 0
    while killed < moments:
        child = os.fork()
        if child == 0:
            loop.train(data, settings, folder / "out" / "r1")
            os._exit(0)
        # Each goes on where the one before was killed, so parts of a run reach all of it.
        time.sleep(rng.uniform(0, 0.3 * lasts))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        killed += 1
        if (folder / "out" / "r1.safetensors").exists():
            Predictor.load(folder / "out" / "r1.safetensors")
    resumed = loop.train(data, settings, folder / "out" / "r1")
    assert all(np.array_equal(whole.tensors[name], resumed.tensors[name]) for name in whole.tensors)
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["r1.json", "r1.png", "r1.safetensors"]
    return killed


if __name__ == "__main__":
    kinds = {"file": single_file, "weights": weights, "training": training}
    print(kinds[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3])))
