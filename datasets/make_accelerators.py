"""Write the training and the held-out accelerators: ``python datasets/make_accelerators.py``.

Seeded: the same files every time. Each set fills the space of what the ISA and the memory system allow; the rules that
make an accelerator "unseen", or one outside of the trained ranges, are asserted before anything is written.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np

from oneshot_ml2.common.errors import AcceleratorError
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.drawn import NEAR as HLS_NEAR
from oneshot_ml2.vta.hls_keys import RATES, TICKS, HlsTiming

FOLDER = Path(__file__).parent / "accelerators"
SEED = 20240
# Presets that belong to the training set; zcu104 is the same VTA as ultra96.
PRESETS = ("pynq", "ultra96", "de10nano", "b8", "b32", "b2x16", "b4x8", "half", "tsim")
TRAINING, HELD_OUT = 64, 15
# Values outside of the trained ranges, and so many accelerators for each combination of one or more of them.
OUTSIDE_BLOCK, OUTSIDE_BUS, OUTSIDE_LATENCY = 64, 512, 400
OUTSIDE_EACH = 2
BLOCKS, BUSES, LONGEST_LATENCY = (8, 16, 32), (64, 128, 256), 200
# (block, batch, bus bits) that no training accelerator has.
RESERVED = ((16, 2, 128), (32, 2, 64), (8, 2, 128), (32, 1, 128), (16, 1, 256))
CANDIDATES = 64

# The HLS design: its own seed, so that the sets above stay as they are. The boards are for evaluation.
HLS_SEED = 20250
BOARDS = ("pynq-hls", "ultra96-hls", "zcu104-hls", "axu5evb-hls")
# Training and held-out accelerators with the boards' VTA, with one of the geometries above, and with any other.
HLS_TRAINING, HLS_HELD_OUT = (14, 18, 8), (3, 7, 2)
# Cycles, log-uniform: over all that is trained, and near the boards'.
HLS_WIDE = {
    "read_row": (4.0, 400.0),
    "store_row": (4.0, 400.0),
    "wgt_beat": (0.5, 8.0),
    "alu_op": (0.5, 8.0),
    "load_start": (0.25, 100.0),
    "compute_start": (1.0, 200.0),
    "store_start": (0.25, 100.0),
    "pad": (0.25, 30.0),
}
HLS_DISTANCES = (1, 2, 2, 2, 3, 4, 6, 8)
OTHER_BLOCKS, OTHER_BATCHES = (2, 4, 8, 16, 32, 64), (1, 2, 4, 8, 16)


def triple(chip: Accelerator) -> tuple[int, int, int]:
    """(block, batch, bus bits)."""
    return chip.block, chip.batch, chip.bus_bits


def differences(one: Accelerator, two: Accelerator) -> int:
    """In how many of block, batch, SRAM sizes, bus, burst and latency two accelerators differ.

    Strict on purpose: the SRAMs count once, and only where one differs both in bytes and in elements; latencies count
    from a ratio of 1.25 on.
    """
    sizes = [
        (
            (chip.log_uop_buff_size, chip.uop_depth),
            (chip.log_inp_buff_size, chip.inp_depth),
            (chip.log_wgt_buff_size, chip.wgt_depth),
            (chip.log_acc_buff_size, chip.acc_depth),
        )
        for chip in (one, two)
    ]
    latencies = sorted((one.memory_latency, two.memory_latency))
    return (
        (one.block != two.block)
        + (one.batch != two.batch)
        + any(a[0] != b[0] and a[1] != b[1] for a, b in zip(*sizes))
        + (one.bus_bits != two.bus_bits)
        + (one.burst_len_bits != two.burst_len_bits)
        + (latencies[1] >= 1.25 * latencies[0])
    )


def draw(
    rng: np.random.Generator, triples: list[tuple[int, int, int]], given_latency: int | None = None
) -> Accelerator:
    """A random accelerator that has one of ``triples`` and obeys the ISA (docs/hardware.md, Configuration).

    ``given_latency``: its memory latency; else one of 1 to ``LONGEST_LATENCY`` cycles.
    """
    while True:
        block, batch, bus = triples[rng.integers(len(triples))]
        log_block, log_batch = block.bit_length() - 1, batch.bit_length() - 1
        uop, inp = int(rng.integers(11, 14)), int(rng.integers(9, 13))
        wgt, acc = int(rng.integers(7, 12)), int(rng.integers(9, 12))
        burst, latency = int(rng.integers(4, 9)), round(float(np.exp(rng.uniform(0, np.log(LONGEST_LATENCY)))))
        latency = latency if given_latency is None else given_latency
        name = (
            f"{batch}x{block}_{uop + 2}_{inp + log_batch + log_block}_{wgt + 2 * log_block}_"
            f"{acc + log_batch + log_block + 2}_bus{bus}_burst{1 << burst}_lat{latency}"
        )
        try:
            return Accelerator(
                log_batch=log_batch,
                log_block=log_block,
                log_uop_buff_size=uop + 2,
                log_inp_buff_size=inp + log_batch + log_block,
                log_wgt_buff_size=wgt + 2 * log_block,
                log_acc_buff_size=acc + log_batch + log_block + 2,
                bus_bits=bus,
                burst_len_bits=burst,
                memory_latency=latency,
                name=name,
                extra=(("TARGET", '"sim"'), ("HW_VER", '"0.0.2"')),
            )
        except AcceleratorError:
            continue


def legal_triples(blocks: tuple[int, ...] = BLOCKS, buses: tuple[int, ...] = BUSES) -> list[tuple[int, int, int]]:
    """Every (block, batch, bus) whose batch rows are whole bus words, or whose elements fit in one."""
    every = [(block, batch, bus) for block in blocks for batch in (1, 2, 4) for bus in buses]
    return [(block, batch, bus) for block, batch, bus in every if block * 8 >= bus or batch * block * 8 <= bus]


def place(chip: Accelerator) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Position in the unit cube of all parameters, in which the sets are spread out."""
    return np.array(
        [
            (chip.log_block - 3) / 2,
            chip.log_batch / 2,
            (np.log2(chip.bus_bits) - 6) / 2,
            (chip.burst_len_bits - 4) / 4,
            np.log(chip.memory_latency) / np.log(LONGEST_LATENCY),
            (np.log2(chip.uop_depth) - 11) / 2,
            (chip.log_inp_depth - 9) / 3,
            (chip.log_wgt_depth - 7) / 4,
            (chip.log_acc_depth - 9) / 2,
        ]
    )


def spread(
    rng: np.random.Generator,
    chosen: list[Accelerator],
    count: int,
    triples: list[tuple[int, int, int]],
    away: list[Accelerator],
    latency: int | None = None,
) -> list[Accelerator]:
    """``chosen`` filled up to ``count``: each time the candidate that lies farthest from those there are.

    Candidates differ from each of ``away`` in at least two parameters, and have ``latency`` if one is given.
    """
    chosen = list(chosen)
    while len(chosen) < count:
        candidates = [draw(rng, triples, latency) for _ in range(CANDIDATES)]
        candidates = [chip for chip in candidates if all(differences(chip, other) >= 2 for other in away)]
        if not candidates:
            continue
        there = np.array([place(chip) for chip in chosen]) if chosen else np.full((1, 9), 0.5)
        gaps = [np.abs(there - place(chip)).sum(axis=1).min() for chip in candidates]
        chosen.append(candidates[int(np.argmax(gaps))])
    return chosen


def beyond(chip: Accelerator) -> tuple[bool, bool, bool]:
    """Whether block, bus and latency lie outside of the trained ranges."""
    return chip.block > max(BLOCKS), chip.bus_bits > max(BUSES), chip.memory_latency > LONGEST_LATENCY


def outside(rng: np.random.Generator, training: list[Accelerator]) -> list[Accelerator]:
    """``OUTSIDE_EACH`` accelerators for every combination of block, bus and latency that has one outside."""
    chosen: list[Accelerator] = []
    for block, bus, latency in itertools.product((False, True), repeat=3):
        if block or bus or latency:
            triples = legal_triples((OUTSIDE_BLOCK,) if block else BLOCKS, (OUTSIDE_BUS,) if bus else BUSES)
            count = len(chosen) + OUTSIDE_EACH
            chosen = spread(rng, chosen, count, triples, training, OUTSIDE_LATENCY if latency else None)
    return chosen


def hls_timings(rng: np.random.Generator, count: int, near: bool) -> list[HlsTiming]:
    """Timings whose rates are a Latin hypercube, log-uniform in their ranges; ``near``: like the boards'."""
    ranges = HLS_NEAR if near else HLS_WIDE
    columns = {}
    for name in RATES:
        low, high = np.log(ranges[name])
        places = (rng.permutation(count) + rng.random(count)) / count
        columns[name] = [round(TICKS * float(rate)) for rate in np.exp(low + (high - low) * places)]
    distances = [2 if near else int(rng.choice(HLS_DISTANCES)) for _ in range(count)]
    return [
        HlsTiming(**{name: column[i] for name, column in columns.items()}, acc_distance=distances[i])
        for i in range(count)
    ]


def other_memories(rng: np.random.Generator, chip: Accelerator) -> Accelerator:
    """An accelerator with any queue, and with any micro-op memory from 128 micro-ops on."""
    queue = round(float(np.exp(rng.uniform(np.log(2), np.log(65536)))))
    log_uop = int(rng.integers(9, 16))
    return dataclasses.replace(chip, log_uop_buff_size=log_uop, uop_depth=0, isa_uop_bits=0, instruction_queue=queue)


def as_hls(chip: Accelerator, timing: HlsTiming) -> Accelerator:
    """An accelerator of the HLS design; what plays no part on it is at its default."""
    rates = "_".join(str(getattr(timing, name)) for name in RATES[:4])
    name = f"{chip.bitstream.replace('_i8w8a32', '')}_bus{chip.bus_bits}_rates_{rates}"
    extra = (("TARGET", '"sim"'), ("HW_VER", '"0.0.2"'))
    return dataclasses.replace(
        chip, hls=timing, burst_len_bits=8, memory_latency=16, clock_mhz=100, name=name, extra=extra
    )


def hls_set(
    rng: np.random.Generator, counts: tuple[int, int, int], triples: list[tuple[int, int, int]], away: list[Accelerator]
) -> list[Accelerator]:
    """Accelerators of the HLS design, so many of each kind: the boards' VTA, ``triples``, and any other (block, batch,
    bus bits) with any queue and micro-op memory. Geometries that the RTL's sets have, too, differ from ``away``."""
    boards = [Accelerator.load(name) for name in BOARDS]
    every = [(block, batch, bus) for block in OTHER_BLOCKS for batch in OTHER_BATCHES for bus in BUSES]
    others = [
        (block, batch, bus)
        for block, batch, bus in every
        if (block not in BLOCKS or batch > 4) and (block * 8 >= bus or batch * block * 8 <= bus)
    ]
    geometries = (
        [boards[i % len(boards)] for i in range(counts[0])],
        spread(rng, [], counts[1], triples, away),
        [other_memories(rng, chip) for chip in spread(rng, [], counts[2], others, away)],
    )
    return [
        as_hls(chip, timing)
        for kind, chips in enumerate(geometries)
        for chip, timing in zip(chips, hls_timings(rng, len(chips), near=kind == 0), strict=True)
    ]


def hls_sets() -> tuple[list[Accelerator], list[Accelerator]]:
    """Training and held-out accelerators of the HLS design."""
    rng = np.random.default_rng(HLS_SEED)
    ordinary = [item for item in legal_triples() if item not in RESERVED]
    training = hls_set(rng, HLS_TRAINING, ordinary, [])
    return training, hls_set(rng, HLS_HELD_OUT, ordinary + 3 * list(RESERVED), training)


def hls_differences(one: Accelerator, two: Accelerator) -> int:
    """`differences`, and in how many rates two accelerators of the HLS design differ: from a ratio of 1.25 on."""
    pairs = [sorted((getattr(one.hls, name), getattr(two.hls, name))) for name in RATES]
    return differences(one, two) + sum(high >= 1.25 * low for low, high in pairs)


def check_hls(training: list[Accelerator], held_out: list[Accelerator]) -> None:
    """The rules of an unseen accelerator of the HLS design."""
    boards = [Accelerator.load(name) for name in BOARDS]
    assert len(set(training)) == len(training) == sum(HLS_TRAINING)
    assert len(set(held_out)) == len(held_out) == sum(HLS_HELD_OUT)
    assert len({chip.name for chip in training + held_out}) == len(training + held_out)
    assert all(hls_differences(chip, other) >= 3 for chip in held_out for other in training)
    assert all(hls_differences(chip, board) >= 3 for chip in training for board in boards)
    trained = {triple(chip) for chip in training}
    assert 3 * sum(triple(chip) not in trained for chip in held_out) >= len(held_out)


def check(training: list[Accelerator], held_out: list[Accelerator], out: list[Accelerator]) -> None:
    """The rules of an unseen accelerator (docs/evaluation.md), and of one outside of the trained ranges."""
    assert len(set(training)) == len(training) >= 64
    assert len(set(held_out)) == len(held_out) >= 8
    assert all(differences(chip, other) >= 2 for chip in held_out for other in training)
    trained = {triple(chip) for chip in training}
    assert 3 * sum(triple(chip) not in trained for chip in held_out) >= len(held_out)
    assert not any(any(beyond(chip)) for chip in training + held_out)
    assert all(any(beyond(chip)) for chip in out)
    assert len({beyond(chip) for chip in out}) == 7 and len(set(out)) == len(out) >= 8


def main() -> None:
    """Make the sets, check them, and replace the files."""
    rng = np.random.default_rng(SEED)
    ordinary = [item for item in legal_triples() if item not in RESERVED]
    training = spread(rng, [Accelerator.load(name) for name in PRESETS], TRAINING, ordinary, [])
    new = spread(rng, [], len(RESERVED), list(RESERVED), training)
    held_out = spread(rng, new, HELD_OUT, sorted({triple(chip) for chip in training}), training)
    out = outside(rng, training)
    check(training, held_out, out)
    hls_training, hls_held_out = hls_sets()
    check_hls(hls_training, hls_held_out)
    for folder, chips in (
        ("train", training),
        ("heldout", held_out),
        ("outside", out),
        ("hls", hls_training),
        ("heldout-hls", hls_held_out),
    ):
        path = FOLDER / folder
        path.mkdir(parents=True, exist_ok=True)
        for old in path.glob("*.json"):
            old.unlink()
        for chip in chips:
            data = json.loads(chip.to_json())
            (path / f"{chip.name}.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
