"""Random programs of every operator, and running them through a driver library against the functional simulator."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from programs import random_workload

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.devices.driver import DriverDevice
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta import image, simulator
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.program import Program
from oneshot_ml2.vta.reasons import Reason
from oneshot_ml2.workload.base import Workload
from oneshot_ml2.workload.conv2d import Conv2d

_DRAWN = 64


def random_layer(rng: np.random.Generator, chip: Accelerator) -> tuple[Workload, Program]:
    """A random operator and a program of a random legal schedule of it, of either space."""
    while True:
        kind = "autotvm" if rng.integers(6) == 0 else "full"
        workload = random_workload(rng) if kind == "full" else _template(rng, chip)
        try:
            space = ScheduleSpace(workload, chip, kind)
            drawn = space.canonical(rng.integers(0, len(space), _DRAWN))
            drawn = drawn[space.validity(drawn) == Reason.VALID]
        except OneShotError:
            continue
        if len(drawn):
            return workload, space.lower(int(drawn[0]))


def _template(rng: np.random.Generator, chip: Accelerator) -> Workload:
    """A convolution that TVM's template takes: whole blocks."""
    c, k = (chip.block * int(rng.integers(1, 5)) for _ in range(2))
    size, taps = int(rng.integers(4, 16)), int(rng.choice([1, 3]))
    return Conv2d(chip.batch, c, size, size, k, taps, taps, int(rng.integers(1, 3)), taps // 2)


def differs(device: DriverDevice, workload: Workload, program: Program, rng: np.random.Generator) -> bool:
    """Whether a program's result on a device is another than on the functional simulator, all of its bytes."""
    dram = image.dram_image(program, workload, workload.random_inputs(rng))
    output = (program.buffer("output").address, program.buffer_bytes("output"))
    (found,) = device.session([program], dram).run(0, (), [output])
    simulator.run(program, dram)
    return not np.array_equal(found, dram[output[0] : sum(output)])


def compare(
    device_of: Callable[[Accelerator], DriverDevice], chips: tuple[Accelerator, ...], count: int, seed: int
) -> list[str]:
    """Run ``count`` random programs: those whose results differ."""
    wrong = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        chip = chips[number % len(chips)]
        workload, program = random_layer(rng, chip)
        if differs(device_of(chip), workload, program, rng):
            wrong.append(f"{number}: {workload} on {chip}")
    return wrong
