"""Better schedules by a few measurements on a device: ML2Tuner, and other tuners."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from oneshot_ml2.commands.options import add_device, add_listing, finish
from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.common.files import check_output, write_whole
from oneshot_ml2.devices.registry import open_device
from oneshot_ml2.models.executable import SCHEDULES_SCHEMA
from oneshot_ml2.models.frontend import traced
from oneshot_ml2.models.selecting import select_layers
from oneshot_ml2.network.picking import predictor_of
from oneshot_ml2.spaces.base import Schedule
from oneshot_ml2.spaces.registry import DEFAULT_KIND, listing, space_kind
from oneshot_ml2.tuning.measure import Limits
from oneshot_ml2.tuning.refine import read_compiled, refine, table
from oneshot_ml2.tuning.registry import find_tuner, initializations, tuner_kinds
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.workload.lists import Layer, read_layers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``oneshot-ml2 refine``."""
    parser.add_argument("source", nargs="?", help="folder of a compiled model, or a model's name")
    parser.add_argument("--workload", metavar="FILE", help="a workload list (.toml) instead")
    parser.add_argument("--layers", nargs="+", default=[], metavar="NAME", help="only these; shell patterns work")
    parser.add_argument("--accelerator", metavar="NAME", help="preset or VTA JSON (default: the folder's, or pynq)")
    parser.add_argument("--size", type=int, default=224, metavar="N", help="height and width of a model's images")
    add_device(parser, "what measures")
    parser.add_argument("--trials", type=int, default=64, metavar="N", help="of all layers together (default 64)")
    parser.add_argument(
        "--tuner",
        default="ml2-warm",
        metavar="NAME",
        help="how to search, see below (default ml2-warm)",
    )
    by_trees = ", ".join(name for name, kind in tuner_kinds().items() if kind.needs_xgboost)
    title = f"tuners (with xgboost: {by_trees})"
    add_listing(parser, title, {name: kind.help for name, kind in tuner_kinds().items()})
    add_listing(parser, "in front of any tuner", {prefix: first.help for prefix, first in initializations().items()})
    parser.add_argument("--space", default=DEFAULT_KIND, metavar="NAME", help=listing())
    parser.add_argument("--no-check", action="store_true", help="spend trials on schedules that do not lower, too")
    parser.add_argument("--batch", type=int, default=10, metavar="N", help="trials between two fits (default 10)")
    parser.add_argument("--retries", type=int, default=2, metavar="N", help="after failures of the device (default 2)")
    parser.add_argument(
        "--failures", type=int, default=10, metavar="N", help="stop when the device fails on N schedules in a row"
        " (default 10; 0: never)",
    )  # fmt: skip
    parser.add_argument(
        "--timeout", type=float, metavar="SECONDS", help="measure in a process that is ended after so long a program"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the tuner (default 0)")
    parser.add_argument(
        "--weights", metavar="NAME", help="shipped weights, or a .safetensors file (default: those of the space)"
    )
    parser.add_argument("--logs", metavar="DIR", help="a log for each layer; the same command then goes on from there")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="write the schedules there, as `compile --schedules` reads"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Refine, print and save; an error at the end if a layer has no valid schedule."""
    for name, least in (("trials", 1), ("batch", 1), ("retries", 0), ("failures", 0)):
        value = getattr(args, name)
        if value < least:
            raise OneShotError(f"--{name} is {value}; allowed: {least} or more")
    if args.timeout is not None and args.timeout <= 0:
        raise OneShotError(f"--timeout is {args.timeout}; allowed: more than 0 seconds")
    space_kind(args.space)
    if args.output:
        check_output(args.output, "--output")
    began = time.perf_counter()
    device = open_device(args.device)
    layers, chip, starts = _sources(args)
    network = None
    if args.space == DEFAULT_KIND or find_tuner(args.tuner)[1].needs_network:
        network = predictor_of(args.weights, args.space, chip.design)
    results = refine(
        layers,
        chip,
        device,
        args.trials,
        tuner=args.tuner,
        kind=args.space,
        seed=args.seed,
        limits=Limits(args.batch, args.retries, args.timeout, checked=not args.no_check, failures=args.failures),
        network=network,
        starts=starts,
        logs=None if args.logs is None else Path(args.logs),
        progress=True,
    )
    finish(device)
    if args.output:
        named = {name: result for result in results for name in result.names if result.best or result.start}
        entries = [named[layer.name].entry(layer.name) for layer in layers if layer.name in named]
        write_whole(args.output, json.dumps({"schema": SCHEDULES_SCHEMA, "layers": entries}, indent=2) + "\n")
    if args.json:
        print(json.dumps([result.to_dict() for result in results], indent=2))
    else:
        print(f"{table(results)}\nWall time: {time.perf_counter() - began:.1f} s.")
        if args.output:
            print(f"Written to {args.output}; use it with: oneshot-ml2 compile ... --schedules {args.output}")
    missing = [name for result in results if result.best is None for name in result.names]
    if missing:
        raise OneShotError(f"no trial of {', '.join(missing)} was valid; give more --trials, or look at the device")
    return 0


def _sources(args: argparse.Namespace) -> tuple[list[Layer], Accelerator, dict[str, Schedule]]:
    """Layers, their accelerator, and the schedules that they have, by layer."""
    if (args.source is None) == (args.workload is None):
        raise OneShotError("give the folder of a compiled model, a model's name, or --workload FILE, and one of them")
    chip = None if args.accelerator is None else Accelerator.load(args.accelerator)
    starts: dict[str, Schedule] = {}
    if args.workload is not None:
        layers = read_layers(args.workload)
    elif Path(args.source).is_dir():
        layers, made_for, starts = read_compiled(Path(args.source))
        if args.space != DEFAULT_KIND:
            raise OneShotError(f"the schedules of compiled models are of the space {DEFAULT_KIND!r}; leave --space out")
        chip = chip or made_for
        if chip != made_for:
            raise OneShotError(f"{args.source} is compiled for {made_for.name!r}, not for {chip.name!r}")
    else:
        layers = traced.trace(args.source, args.size)
    return select_layers(layers, args.layers), chip or Accelerator.load("pynq"), starts
