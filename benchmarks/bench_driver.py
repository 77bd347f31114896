"""Speed of the C simulator behind VTA's driver interface, beside the compiled one in Python.

    python benchmarks/bench_driver.py

Seconds of a run of ResNet-18's layers, each by the schedule of the least closed-form estimate among some; the runs
take turns, and the fastest of each counts.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
from resnet18_layers import LAYERS

from oneshot_ml2.devices.build import build
from oneshot_ml2.devices.driver import DriverDevice
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta import image, simulator
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.reasons import Reason

DRAWN, TURNS = 2000, 7


def main() -> None:
    """Print a line for each layer, and one for all."""
    chip = Accelerator.load("pynq")
    with tempfile.TemporaryDirectory() as folder:
        device = DriverDevice(build("sim", chip, Path(folder) / "libvta.so"))
        total = np.zeros(2)
        for name, workload in LAYERS.items():
            space = ScheduleSpace(workload, chip)
            drawn = space.canonical(np.random.default_rng(0).integers(0, len(space), DRAWN))
            drawn = drawn[space.validity(drawn) == Reason.VALID]
            program = space.lower(int(drawn[np.argmin(space.estimate(drawn))]))
            dram = image.dram_image(program, workload, workload.random_inputs(np.random.default_rng(0)))
            session, after = device.session([program], dram), dram.copy()
            insns, params = np.ascontiguousarray(program.insns), simulator.params(chip)
            simulator.run(program, after)
            output = program.buffer("output").address, program.buffer_bytes("output")
            best = np.full(2, np.inf)
            for _ in range(TURNS):
                begin = time.perf_counter()
                simulator.execute(insns, params, after)
                took = time.perf_counter() - begin
                ran = session.attempt(0, (), [output])
                best = np.minimum(best, (took, ran.seconds))
                assert np.array_equal(ran.contents[0], after[output[0] : sum(output)])
            total += best
            print(f"{name:12} Python {best[0] * 1e3:8.1f} ms, C {best[1] * 1e3:8.1f} ms: {best[0] / best[1]:.2f}x")
        print(f"{'all':12} Python {total[0] * 1e3:8.1f} ms, C {total[1] * 1e3:8.1f} ms: {total[0] / total[1]:.2f}x")
        device.close()


if __name__ == "__main__":
    main()
