"""What the board server costs: time beside a run, programs a second, sizes, and ten of them of which some are killed.

    python benchmarks/bench_server.py [--minutes M] [--cc CC ...]

- Of runs in a row on loopback, of a small program with its input and result: microseconds of each beyond what the
  driver itself took, and runs a second; whole measurements, four runs that are checked, a second.
- Bytes of the stripped server for each compiler of ``--cc`` beside this machine's (static with glibc, and as it is by
  default; ``musl-gcc`` makes small ones); memory of the server's processes beyond the pool while it works.
- Measurements a second over one, two, ... ten servers of this machine whose runs take 40 ms without its processor, as
  boards' do; then of ten for M minutes (1), one of which is killed every ten seconds and started again: measurements
  that were lost.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from oneshot_ml2.devices.build import build_server
from oneshot_ml2.devices.driver import DriverDevice
from oneshot_ml2.devices.registry import open_device
from oneshot_ml2.devices.several import Boards
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta import image
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.reasons import Reason
from oneshot_ml2.workload.dense import Dense

CHIP = Accelerator.load("pynq")
LAYER = Dense(1, 64, 32)
RUNS, MEASUREMENTS, BOARDS, KILL_SECONDS = 2000, 200, 10, 10.0


# A driver that says after so many ms that it is done.
SLOW = {"VTA_FAULT": "late/1", "VTA_LATE_MS": "40"}


def _start(server: Path, port: int = 0, name: str = "vta", **more: str) -> tuple[subprocess.Popen[str], int]:
    command = [str(server), "--listen", f"127.0.0.1:{port}", "--name", name]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ | more
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline().split()[-1])


def _schedules(count: int) -> tuple[ScheduleSpace, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    space = ScheduleSpace(LAYER, CHIP)
    drawn = space.canonical(np.random.default_rng(5).integers(0, len(space), 20 * count))
    return space, np.resize(drawn[space.validity(drawn) == Reason.VALID], count)


def _memory(process: subprocess.Popen[str]) -> int:
    """Bytes of the private and shared pages of a server and its worker, each page counted once for each process."""
    total, tree = 0, [str(process.pid)]
    while tree:
        one = tree.pop()
        tree += Path(f"/proc/{one}/task/{one}/children").read_text().split()
        rows = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
        total += sum(int(row.split()[1]) << 10 for row in rows if row.startswith("Pss:"))
    return total


def rates(server: Path) -> None:
    """Overhead and rates of one server, and its memory."""
    process, port = _start(server)
    device = open_device(f"tcp:127.0.0.1:{port}")
    assert isinstance(device, DriverDevice)
    space, indices = _schedules(MEASUREMENTS)
    device.warm_up(space)
    program = space.lower(int(indices[0]))
    dram = image.dram_image(program, LAYER, LAYER.random_inputs(np.random.default_rng(0)))
    session, output = device.session([program], dram), program.buffer("output")
    reads, beyond = [(output.address, program.buffer_bytes("output"))], []
    session.attempt(0, (), reads)
    begin = time.perf_counter()
    for _ in range(RUNS):
        before = time.perf_counter()
        ran = session.attempt(0, (), reads)
        beyond.append(time.perf_counter() - before - ran.seconds)
    rate = RUNS / (time.perf_counter() - begin)
    print(f"beyond a run: median {np.median(beyond) * 1e6:.0f} us, 95 % {np.quantile(beyond, 0.95) * 1e6:.0f} us")
    print(f"runs: {rate:,.0f}/s; memory of the server's processes: {_memory(process) / 2**20:.2f} MiB, pool included")
    begin = time.perf_counter()
    device.measure_schedules(space, indices)
    print(f"measurements, each of {device.options.repeats + 1} checked runs: "
          f"{MEASUREMENTS / (time.perf_counter() - begin):,.0f}/s")  # fmt: skip
    device.close()
    process.kill()


def sizes(folder: Path, compilers: list[str]) -> None:
    """Bytes of stripped servers."""
    for cc in [None, *compilers]:
        for static in (True, False):
            path = build_server("sim", CHIP, folder / "sized", cc, None, ("-s",), static)
            print(f"{cc or 'cc'}, {'static' if static else 'not static'}: {path.stat().st_size / 1024:.0f} KiB")


def farm(server: Path, minutes: float) -> None:
    """Measurements over several servers, and with some that are killed."""
    started = [_start(server, 0, f"b{i}", **SLOW) for i in range(BOARDS)]
    device = open_device(",".join(f"tcp:127.0.0.1:{port}?repeats=1" for _, port in started))
    assert isinstance(device, Boards)
    space, indices = _schedules(MEASUREMENTS)
    device.warm_up(space)
    for count in (1, 2, 4, BOARDS):
        part = Boards("part", [member.device for member in device.members[:count]])
        begin = time.perf_counter()
        part.measure_schedules(space, indices[: 20 * count])
        print(f"{count} servers: {20 * count / (time.perf_counter() - begin):,.0f} measurements/s")
    stop, kills = threading.Event(), 0

    def killing() -> None:
        nonlocal kills
        while not stop.wait(KILL_SECONDS / 2):
            number = kills % BOARDS
            started[number][0].kill()
            started[number][0].wait()
            kills += 1
            stop.wait(KILL_SECONDS / 2)
            started[number] = _start(server, started[number][1], f"b{number}", **SLOW)

    thread, end = threading.Thread(target=killing), time.monotonic() + 60 * minutes
    thread.start()
    done = failed = 0
    begin = time.perf_counter()
    while time.monotonic() < end:
        result = device.measure_schedules(space, indices)
        done, failed = done + len(indices), failed + int((result.reason != Reason.VALID).sum())
    rate = done / (time.perf_counter() - begin)
    stop.set()
    thread.join()
    again = sum(member.losses for member in device.members)
    print(f"{BOARDS} servers, {kills} killed: {done:,} measurements, {rate:,.0f}/s, {failed} lost, {again} boards left "
          "out for a while")  # fmt: skip
    device.close()
    for process, _ in started:
        process.kill()


def main() -> None:
    """Print all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--cc", nargs="*", default=[])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = build_server("sim", CHIP, Path(folder) / "vta-server")
        rates(server)
        farm(server, args.minutes)
        sizes(Path(folder), args.cc)


if __name__ == "__main__":
    main()
