"""Random programs of every operator, and running them through a driver library against the functional simulator."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from oneshot_ml2.devices.driver import DriverDevice
from oneshot_ml2.spaces.drawn import random_layer
from oneshot_ml2.vta import image, simulator
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.program import Program
from oneshot_ml2.workload.base import Workload


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
