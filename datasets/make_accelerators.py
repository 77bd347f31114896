"""Write the training and the held-out accelerators: ``python datasets/make_accelerators.py``.

Seeded: the same files every time. Each set fills the space of what the ISA and the memory system allow; the rules that
make an accelerator "unseen", or one outside of the trained ranges, are asserted before anything is written.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from oneshot_ml2.common.errors import AcceleratorError
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.drawn import NEAR as HLS_NEAR
from oneshot_ml2.vta.hls_keys import KEYS, RATES, TICKS, HlsTiming, field_of

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


# Every parameter of the training accelerators but the wide ones, as powers of two but for the latency: lowest, highest.
TRAINED = {
    "block": (3, 5), "batch": (0, 2), "bus": (6, 8), "burst": (4, 8), "latency": (1, 200), "queue": (9, 9),
    "uop": (13, 15), "inp": (9, 12), "wgt": (7, 11), "acc": (9, 11),
}  # fmt: skip
# The same of what JSON allows; an SRAM's is that of its elements, and of micro-ops that of their bytes.
LEGAL = {
    "block": (1, 6), "batch": (0, 6), "bus": (6, 9), "burst": (1, 8), "latency": (1, 65535), "queue": (1, 16),
    "uop": (4, 15), "inp": (1, 16), "wgt": (1, 16), "acc": (1, 11),
}  # fmt: skip
# How often a parameter is of all that is legal, not of what is trained on.
_WIDE = 0.5

# The wide sets, which cover what a JSON may say: their own seed; how many; candidates for each.
WIDE_SEED = 20262
WIDE, WIDE_HLS = 96, 60
WIDE_CANDIDATES = 24
# Cycles, log-uniform: what a JSON may say, up to 500 cycles; and how often a rate is the least that is allowed.
HLS_LEGAL = {name: (0.01, 100.0 if name in ("wgt_beat", "alu_op") else 500.0) for name in RATES}
HLS_LEAST = 0.1


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


def draw_beyond(rng: np.random.Generator) -> Accelerator:
    """A random accelerator with a parameter or more outside of `TRAINED`, and within `LEGAL`."""
    while True:
        value = {}
        for name, trained in TRAINED.items():
            low, high = LEGAL[name] if rng.random() < _WIDE else trained
            if name == "latency":
                value[name] = round(float(np.exp(rng.uniform(np.log(low), np.log(high)))))
            else:
                value[name] = int(rng.integers(low, high, endpoint=True))
        block, batch = value["block"], value["batch"]
        fields = {
            "log_batch": batch,
            "log_block": block,
            "log_uop_buff_size": value["uop"],
            "log_inp_buff_size": value["inp"] + batch + block,
            "log_wgt_buff_size": value["wgt"] + 2 * block,
            "log_acc_buff_size": value["acc"] + batch + block + 2,
            "bus_bits": 1 << value["bus"],
            "burst_len_bits": value["burst"],
            "memory_latency": value["latency"],
            "instruction_queue": 1 << value["queue"],
        }
        if all(low <= value[name] <= high for name, (low, high) in TRAINED.items()):
            continue
        text = "_".join(f"{name}{value[name]}" for name in value)
        try:
            return Accelerator(**fields, name=text)
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


def hls_timings(
    rng: np.random.Generator, count: int, ranges: dict[str, tuple[float, float]], near: bool = False
) -> list[HlsTiming]:
    """Timings whose rates are a Latin hypercube, log-uniform in ``ranges`` of cycles; ``near``: updates of an
    accumulator are as far apart as on the boards."""
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
        for chip, timing in zip(
            chips, hls_timings(rng, len(chips), HLS_NEAR if kind == 0 else HLS_WIDE, near=kind == 0), strict=True
        )
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


def wide_place(chip: Accelerator) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Position in the unit cube of `LEGAL`; the latency's logarithm counts as the others do."""
    depths = {
        "uop": chip.log_uop_buff_size, "inp": chip.log_inp_depth, "wgt": chip.log_wgt_depth, "acc": chip.log_acc_depth
    }  # fmt: skip
    own = depths | {
        "block": chip.log_block,
        "batch": chip.log_batch,
        "bus": np.log2(chip.bus_bits),
        "burst": chip.burst_len_bits,
        "latency": np.log(chip.memory_latency),
        "queue": np.log2(chip.instruction_queue),
    }
    ranges = LEGAL | {"latency": (0, np.log(LEGAL["latency"][1]))}
    return np.array([(own[name] - low) / (high - low) for name, (low, high) in ranges.items()])


def wide_spread(
    rng: np.random.Generator, count: int, allowed: Callable[[Accelerator], bool], prefix: str = ""
) -> list[Accelerator]:
    """``count`` accelerators of `draw_beyond` that are ``allowed``, each the farthest of some from those before it."""
    chosen: list[Accelerator] = []
    places = np.full((1, len(LEGAL)), 0.5)
    while len(chosen) < count:
        candidates = [chip for chip in (draw_beyond(rng) for _ in range(WIDE_CANDIDATES)) if allowed(chip)]
        if not candidates:
            continue
        gaps = [np.abs(places - wide_place(chip)).sum(axis=1).min() for chip in candidates]
        best = candidates[int(np.argmax(gaps))]
        chosen.append(dataclasses.replace(best, name=f"{prefix}{len(chosen):02d}_{best.name}"))
        places = np.array([wide_place(chip) for chip in chosen])
    return chosen


def wide_sets(away: list[Accelerator], hls_away: list[Accelerator]) -> tuple[list[Accelerator], list[Accelerator]]:
    """Training accelerators of all that a JSON may say, of the RTL and of the HLS design.

    None is near one of those of evaluation: ``away``, and ``hls_away`` of the HLS design; nor has one a (block, batch,
    bus) that only accelerators of evaluation have.
    """
    rng = np.random.default_rng(WIDE_SEED)
    reserved = set(RESERVED) | {triple(chip) for chip in hls_away}

    def allowed(chip: Accelerator) -> bool:
        return triple(chip) not in RESERVED and all(differences(chip, other) >= 2 for other in away)

    def hls_allowed(chip: Accelerator) -> bool:
        return triple(chip) not in reserved

    wide = wide_spread(rng, WIDE, allowed)
    timings = hls_timings(rng, WIDE_HLS, HLS_LEGAL)
    hls = []
    for chip, timing in zip(wide_spread(rng, WIDE_HLS, hls_allowed, "hls_"), timings, strict=True):
        least = {
            field_of(name): key.low
            for name, key in KEYS.items()
            if field_of(name) in RATES and rng.random() < HLS_LEAST
        }
        least["acc_distance"] = 1 << int(rng.integers(0, 7))
        hls.append(dataclasses.replace(chip, hls=dataclasses.replace(timing, **least)))
    return wide, hls


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


def check_wide(
    wide: list[Accelerator], hls: list[Accelerator], away: list[Accelerator], hls_away: list[Accelerator]
) -> None:
    """No accelerator of the wide sets is equal to, or near, one of evaluation."""
    assert len(set(wide)) == len(wide) == WIDE and len(set(hls)) == len(hls) == WIDE_HLS
    assert len({chip.name for chip in wide + hls}) == len(wide + hls)
    assert all(differences(chip, other) >= 2 for chip in wide for other in away)
    assert all(hls_differences(chip, other) >= 3 for chip in hls for other in hls_away)
    assert not {triple(chip) for chip in wide} & set(RESERVED)


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
    away, hls_away = held_out + out, hls_held_out + [Accelerator.load(name) for name in BOARDS]
    wide, wide_hls = wide_sets(away, hls_held_out)
    check_wide(wide, wide_hls, away, hls_away)
    for folder, chips in (
        ("train", training),
        ("heldout", held_out),
        ("outside", out),
        ("hls", hls_training),
        ("heldout-hls", hls_held_out),
        ("wide", wide),
        ("wide-hls", wide_hls),
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
