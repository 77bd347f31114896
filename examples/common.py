"""What the examples share: options, the folder of a compiled model, running it on many samples, and a table."""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import oneshot_ml2 as o2
from oneshot_ml2.common import tables

Array = NDArray[Any]
Sample = Mapping[str, Array]

# The folder that a worker process has loaded.
_loaded: dict[str, Any] = {}


def one_thread() -> None:
    """Train on one core: networks this small gain nothing of more, and threads that wait for each other lose."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)


def options(description: str | None, name: str) -> argparse.Namespace:
    """The command line that every example has."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--accelerator", metavar="NAME", default="pynq", help="preset or VTA JSON (default pynq)")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", default=Path("examples_output") / name,
        help=f"where the compiled folders and the picture go (default examples_output/{name})",
    )  # fmt: skip
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    return args


def compiled(model: Any, accelerator: str, folder: Path, **given: Any) -> o2.CompiledModel:
    """Compile a model into a folder, and say what int8 costs."""
    begin, cpu = time.perf_counter(), time.process_time()
    result = o2.compile(model, accelerator, progress=True, **given)
    result.save(folder)
    vta, host = result.macs()
    print(
        f"{folder.name}: {result.milliseconds:.2f} ms on {result.accelerator.name}, {vta / max(vta + host, 1):.1%} of "
        f"the MACs on the VTA; compiled into {folder} in {time.perf_counter() - begin:.0f} s "
        f"({time.process_time() - cpu:.0f} s of this process's CPU)"
    )
    for hurt in result.to_dict()["hurt"][:1]:
        print(f"  hurts most: {hurt['layer']}, {hurt['outputs']:.1%} of the outputs alone; {hurt['advice']}")
    return result


def run_all(folder: Path, samples: Sequence[Sample]) -> list[dict[str, Array]]:
    """The outputs of a compiled folder for every sample, by the exact simulator, in processes of their own."""
    return in_processes(_load, (str(folder),), _run, samples, "samples")


def in_processes(
    begin: Callable[..., None], given: tuple[Any, ...], function: Callable[[Any], Any], items: Sequence[Any], what: str
) -> list[Any]:
    """``function`` of every item, in two processes, each of which calls ``begin`` with what is given first."""
    # Forking after TVM and numba have started threads may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, context, begin, given) as pool:
        results = pool.map(function, items, chunksize=max(1, min(8, len(items) // 8)))
        return list(tqdm(results, total=len(items), desc=what, leave=False))


def _load(folder: str) -> None:
    _loaded["model"] = o2.load(folder)


def _run(sample: Sample) -> dict[str, Array]:
    result: dict[str, Array] = _loaded["model"].run(sample)
    return result


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print(tables.table(header, rows, left=(header[0],)))


def verdict(what: str, met: bool) -> int:
    """Print whether the example's bar is met; the exit code."""
    print(f"{what}: {'met' if met else 'MISSED'}")
    return 0 if met else 1


def stacked(samples: Sequence[Sample]) -> dict[str, Array]:
    """Samples as `compile` takes many: arrays by name along the first axis."""
    return {name: np.concatenate([sample[name] for sample in samples]) for name in samples[0]}
