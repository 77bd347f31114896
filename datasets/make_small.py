"""Write the list of small layers that the network is trained on: ``python datasets/make_small.py``.

Of few operations, as there are at the end of networks and in small ones. Seeded: the same file every time. No layer has
the shape of one that is never trained on, nor, on its accelerator, the nest of an evaluation task; that is asserted
before it is written. Run it after ``make_evaluation.py``, whose tasks it reads.
"""

from __future__ import annotations

import numpy as np
from make_evaluation import HERE
from make_operators import between, filling, key, random_epilogue
from make_workloads import named, write

from oneshot_ml2.common.errors import WorkloadError
from oneshot_ml2.evaluation.optimum import read_tasks
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.nest import Nest, make_nest
from oneshot_ml2.workload.base import Workload
from oneshot_ml2.workload.batch_matmul import BatchMatmul
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.conv2d_transpose import Conv2dTranspose
from oneshot_ml2.workload.dense import Dense
from oneshot_ml2.workload.lists import read_workloads

SEED, COUNT = 4103, 320
LEAST_OUTPUTS, MOST_MACS = 16, 3_000_000
EVALUATION = [path for path in (HERE / "evaluation").glob("*.json") if path.stem != "best_known"]
NEVER = ("excluded", "heldout", "operators_excluded", "operators_heldout", "resnet18")
TRAINED = ("train", "operators", "autotvm")


def random_small(rng: np.random.Generator) -> Workload:
    """A layer of few operations, as there are at the end of networks and in small ones: matrix times vector, tiny
    images, few channels. Any kind but max pooling."""
    kind = rng.choice(6, p=(0.25, 0.37, 0.12, 0.08, 0.06, 0.12))
    while True:
        h = between(rng, 1, 28)
        w = h if rng.random() < 0.75 else between(rng, 1, 28)
        c, k = between(rng, 1, 512), between(rng, 1, 512)
        epilogue = random_epilogue(rng)
        kernel, stride = int(rng.choice((1, 1, 3, 3, 5, 7))), int(rng.choice((1, 1, 2)))
        workload: Workload
        try:
            if kind == 0:
                workload = Dense(between(rng, 1, 8) if rng.random() < 0.4 else 1, 4 * c, 2 * k, epilogue)
            elif kind == 1:
                workload = Conv2d(1, c, h, w, k, kernel, kernel, stride, kernel // 2, 1, epilogue)
            elif kind == 2:
                workload = Conv2d(1, c, h, w, c, kernel, kernel, stride, kernel // 2, 1, epilogue, groups=c)
            elif kind == 3:
                plain = random_epilogue(rng, residual=False)
                workload = BatchMatmul(between(rng, 1, 8), 3 * h, between(rng, 8, 128), between(rng, 8, 128), plain)
            elif kind == 4:
                step = int(rng.choice((2, 2, 3)))
                size = step + int(rng.integers(0, 3))
                workload = Conv2dTranspose(1, c, h, w, k, size, size, step, (size - step + 1) // 2, 0, epilogue)
            else:
                size = int(rng.choice((1, 1, 2, 4, 7)))
                workload = Conv2d(1, c, h, w, c, size, size, size, 0, 1, epilogue, groups=c)
        except WorkloadError:
            continue
        if LEAST_OUTPUTS <= int(np.prod(workload.output_shape)) and workload.macs <= MOST_MACS:
            return workload


def main() -> None:
    """Make the list, check it, and write it."""
    lists = [read_workloads(HERE / f"workloads/{name}.toml") for name in NEVER + TRAINED]
    taken = {key(workload) for layers in lists for workload in layers}
    # A shape counts whatever the operator, as in the plans.
    shapes = {workload.shape_key for layers in lists[: len(NEVER)] for workload in layers}
    tasks = [task for path in sorted(EVALUATION) for task in read_tasks(path)]
    evaluated: dict[Accelerator, list[Nest]] = {}
    for task in tasks:
        evaluated.setdefault(task.accelerator, []).append(make_nest(task.workload, task.accelerator))

    def new(workload: Workload) -> bool:
        return workload.shape_key not in shapes and not any(
            make_nest(workload, chip) in nests for chip, nests in evaluated.items()
        )

    small = filling(np.random.default_rng(SEED), COUNT, taken, random_small, new)
    assert not {key(workload) for workload in small} & taken
    assert not {workload.shape_key for workload in small} & shapes
    write("small.toml", "Small layers that the network is trained on.", named("small", small), "make_small.py")


if __name__ == "__main__":
    main()
