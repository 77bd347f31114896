"""Write a trace of a layer or a compiled model, cycle by cycle, that Perfetto opens."""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from oneshot_ml2.commands.inspect import read_program
from oneshot_ml2.common import tables
from oneshot_ml2.common.errors import ModelError, OneShotError
from oneshot_ml2.common.files import check_output, write_whole
from oneshot_ml2.models import executable
from oneshot_ml2.models.folder import REPORT
from oneshot_ml2.models.frontend import traced
from oneshot_ml2.models.selecting import matching, select_layers
from oneshot_ml2.models.trace import Part, document, part
from oneshot_ml2.models.unfold import over_patches
from oneshot_ml2.network import picking
from oneshot_ml2.spaces.base import Schedule
from oneshot_ml2.spaces.registry import DEFAULT_KIND
from oneshot_ml2.spaces.space import ScheduleSpace
from oneshot_ml2.vta import work
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.program import MICRO_OP, Program
from oneshot_ml2.vta.timeline import ROWS, WAIT, WAIT_PORT, WORK, Row, timeline
from oneshot_ml2.workload.lists import read_layers

if TYPE_CHECKING:
    from oneshot_ml2.vta.timeline import Timeline
    from oneshot_ml2.workload.lists import Layer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``oneshot-ml2 trace``."""
    parser.add_argument(
        "source",
        nargs="?",
        help="folder of a compiled model, or a model's name (an unknown one lists them), or a program as for `inspect`",
    )
    parser.add_argument("--layer", nargs="+", default=[], metavar="NAME", help="only these; shell patterns work")
    parser.add_argument("--workload", metavar="FILE", help="a workload list (.toml) instead of a model")
    parser.add_argument("--accelerator", metavar="NAME", help="preset or VTA JSON (default: the folder's, or pynq)")
    parser.add_argument("--size", type=int, default=224, metavar="N", help="height and width of the images of a model")
    parser.add_argument("--weights", metavar="NAME", help="shipped weights, or a .safetensors file (default: default)")
    parser.add_argument(
        "--schedule", metavar="KNOBS", help="of the one chosen layer, instead of a pick: 'tile_co=4 tile_h=56 ...'"
    )
    parser.add_argument("--run", type=int, dest="run_index", metavar="I", help="which run of a .h5 file")
    parser.add_argument("--address", type=int, default=4096, help="byte address of a raw stream (default 4096)")
    parser.add_argument(
        "-o", "--output", default="trace.json", metavar="FILE", help="default trace.json; .json.gz works, too"
    )
    parser.add_argument("--json", action="store_true", help="print where the cycles go as JSON")


def run(args: argparse.Namespace) -> int:
    """Write the trace, and print where the cycles go."""
    output = Path(args.output)
    if not output.name.endswith((".json", ".json.gz")):
        raise OneShotError(f"--output is {args.output}; allowed: a file ending in .json or .json.gz")
    check_output(output, "--output")
    name, chip, parts = _parts(args)
    text = document(name, chip, parts)
    write_whole(output, gzip.compress(text.encode(), mtime=0) if output.suffix == ".gz" else text)
    layers = [(title, entry.timeline.cut(begin, end)) for entry in parts for title, begin, end in entry.layers]
    if args.json:
        rows = [
            {
                "layer": title,
                "cycles": line.cycles,
                "hang": line.hang,
                "rows": line.totals(),
                WAIT_PORT: line.port_waits(),
            }
            for title, line in layers
        ]
        print(json.dumps({"file": str(output), "accelerator": chip.name, "layers": rows}, indent=2))
        return 0
    print(_table(layers))
    cycles = sum(line.cycles for _, line in layers)
    print(
        f"\n{name} on {chip.name}: {cycles:,} cycles, {cycles / chip.clock_mhz / 1e3:.2f} ms at {chip.clock_mhz} MHz. "
        f"Written to {output}; open it at https://ui.perfetto.dev"
    )
    return 0


def _table(layers: Sequence[tuple[str, Timeline]]) -> str:
    rows = []
    for title, line in layers:
        totals, share = line.totals(), 1 / max(line.cycles, 1)
        kinds = {piece.name: piece.kind for piece in line.slices}
        compute = totals[ROWS[Row.COMPUTE]]
        waits = sorted(((n, name) for name, n in compute.items() if kinds[name] == WAIT), reverse=True)
        rows.append(
            (
                title,
                f"{line.cycles:,}{' (hangs)' if line.hang else ''}",
                *(
                    tables.percent(share * sum(n for name, n in totals[ROWS[row]].items() if kinds[name] == WORK))
                    for row in (Row.LOAD, Row.COMPUTE, Row.STORE, Row.READ, Row.WRITE)
                ),
                ", ".join(f"{name.removeprefix('waits for ')} {tables.percent(share * n)}" for n, name in waits[:2]),
            )
        )
    header = ("layer", "cycles", "load", "compute", "store", "read", "write", "compute waits for")
    return tables.table(header, rows, left=("layer", "compute waits for"))


def _parts(args: argparse.Namespace) -> tuple[str, Accelerator, list[Part]]:
    """What to trace: a name for all of it, the accelerator, and the chosen layers, or all, in what runs them.

    Raises:
        OneShotError: as `_programs`, or no such layer.
    """
    name, chip, programs = _programs(args)
    known: dict[bytes, Timeline] = {}
    parts = []
    chosen = set(matching([layer for layers, _ in programs for layer in layers], args.layer))
    for layers, program in programs:
        if not chosen & set(layers):
            continue
        # Equal layers share their program, and so its cycles.
        key = program.insns.tobytes() + program.insn_address.to_bytes(8, "little")
        known[key] = known.get(key) or timeline(program)
        entry = part(known[key], program, layers)
        if chosen >= set(layers):
            parts.append(entry)
        else:
            spans = [span for span in entry.layers if span[0] in chosen]
            parts += [Part(entry.timeline.cut(begin, end), ((title, begin, end),)) for title, begin, end in spans]
    return name, chip, parts


def _programs(args: argparse.Namespace) -> tuple[str, Accelerator, list[tuple[Sequence[str], Program]]]:
    """A name for what is given, the accelerator, and its programs in order, with the layers that each of them runs.

    Raises:
        OneShotError: nothing or too much is named, or it cannot be read, picked or lowered.
    """
    if (args.source is None) == (args.workload is None):
        raise OneShotError("give the folder of a compiled model, a model's name, or --workload FILE, and one of them")
    chip = None if args.accelerator is None else Accelerator.load(args.accelerator)
    if args.workload is not None:
        chip = chip or Accelerator.load("pynq")
        return Path(args.workload).stem, chip, _picked(args, chip, read_layers(args.workload))
    source = Path(args.source)
    if source.is_dir():
        if args.schedule is not None:
            raise OneShotError("a compiled model has its schedules; --schedule is for layers of a model or a list")
        model = executable.read(source, chip)
        programs = [segment.program for segment in model.segments]
        try:
            names = [tuple(map(str, entry["layers"])) for entry in model.report["submissions"]]
            return model.name, model.accelerator, list(zip(names, programs, strict=True))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            where = source / REPORT
            raise ModelError(f"{where} does not fit the programs ({error}); compile the model again") from error
    if source.is_file():
        chip, insns, _ = read_program(source, chip, args.run_index)
        work.check(insns, chip, str(source))
        uops = np.zeros(0, MICRO_OP)
        return source.name, chip, [((source.name,), Program(chip, insns, uops, args.address, 0, ()))]

    chip = chip or Accelerator.load("pynq")
    return args.source, chip, _picked(args, chip, over_patches(traced.trace(args.source, args.size), chip))


def _picked(
    args: argparse.Namespace, chip: Accelerator, layers: Sequence[Layer]
) -> list[tuple[Sequence[str], Program]]:
    """The chosen layers' programs, by the pick or by ``--schedule``."""
    chosen = select_layers(layers, args.layer)
    if args.schedule is None:
        return [((layer.name,), picking.pick(layer.workload, chip, args.weights).program) for layer in chosen]
    if len(chosen) != 1:
        raise OneShotError(
            f"--schedule is for one layer; choose it with --layer: {', '.join(layer.name for layer in chosen)}"
        )
    try:
        knobs = tuple((k, int(v)) for k, _, v in (word.partition("=") for word in args.schedule.split()))
    except ValueError as error:
        raise OneShotError(f"--schedule is {args.schedule!r}; write it as 'tile_co=4 tile_h=56 ...'") from error
    return [((chosen[0].name,), ScheduleSpace(chosen[0].workload, chip).lower(Schedule(DEFAULT_KIND, knobs)))]
