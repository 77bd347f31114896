"""Pick a schedule for every layer of a model with zero measurements, lower and run them."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oneshot_ml2.common.errors import DeviceError, ModelError, OneShotError
from oneshot_ml2.common.files import check_output, check_writable, write_whole
from oneshot_ml2.devices.registry import open_device
from oneshot_ml2.models import linking, samples, several
from oneshot_ml2.models.folder import check_parent, check_target
from oneshot_ml2.models.frontend import onnx_file
from oneshot_ml2.models.frontend.importer import is_list, is_onnx
from oneshot_ml2.network.picking import predictor_of
from oneshot_ml2.vta.accelerator import Accelerator

if TYPE_CHECKING:
    from oneshot_ml2.models.compiled import CompiledModel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``oneshot-ml2 compile``."""
    parser.add_argument(
        "model",
        nargs="+",
        help="resnet18, or another model (an unknown name lists them), an ONNX file, or a list of layers (.toml); "
        "several files of one model: a folder for each in that of -o",
    )
    parser.add_argument("--accelerator", metavar="NAME", default="pynq", help="preset or VTA JSON (default pynq)")
    parser.add_argument(
        "--size", type=int, metavar="N", help="height and width of the images, or tokens (default: 224, or 128 tokens)"
    )
    parser.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="INPUT=N,N,...",
        help="of an input of an ONNX file whose dimensions are free, once for each such input; of several files: "
        "FILE:INPUT=N,N,...",
    )
    parser.add_argument(
        "--layers", nargs="+", default=[], metavar="NAME", help="only these, one by one; shell patterns work"
    )
    parser.add_argument("--weights", metavar="NAME", help="shipped weights, or a .safetensors file (default: default)")
    # Without the list of devices, whose files load numba: what is wrong at first sight need not wait for it.
    parser.add_argument(
        "--device", default="sim", metavar="SPEC", help="what runs the programs (default sim; see `refine --help`)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the tensors that the programs run on (default 0)")
    parser.add_argument(
        "-o",
        "--output",
        metavar="PATH",
        help="a folder: also write what `run` takes there; a .json file: also write the result there",
    )
    parser.add_argument("--build", metavar="DIR", help="as -o DIR, whatever the folder is called")
    parser.add_argument(
        "--calibration",
        action="append",
        metavar="PATH",
        help="inputs that a float model's scales follow from: .npy, .npz, or a folder of these or of images; of "
        "several files: FILE:PATH, once for each",
    )
    parser.add_argument(
        "--mean", nargs="+", type=float, metavar="R", help="of a folder of images, 1 or 3 numbers of 0..1 (default 0)"
    )
    parser.add_argument(
        "--std", nargs="+", type=float, metavar="R", help="what they are divided by then, 1 or 3 numbers (default 1)"
    )
    parser.add_argument(
        "--resize", type=int, metavar="N", help="scale the shorter side of images to N, and take the middle"
    )
    parser.add_argument(
        "--evaluate",
        metavar="PATH",
        help="judge the result beside the float model: as --calibration, a .npz also with labels or outputs",
    )
    parser.add_argument(
        "--schedules", metavar="FILE", help="schedules.json of a compiled model: its layers keep theirs"
    )
    parser.add_argument("--html", metavar="FILE", help="also write the report as a page there")
    parser.add_argument(
        "--rounding",
        choices=("shift", "half_even"),
        default="shift",
        help="of a model: half up by VTA's shift (default), or ties to even as onnxruntime, for more cycles",
    )
    parser.add_argument(
        "--no-check", action="store_true", help="do not run the result once against the integer reference"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Compile, print and save; 1 if a result differs from the reference."""
    chip = Accelerator.load(args.accelerator)
    if args.seed < 0:
        raise OneShotError(f"--seed is {args.seed}; allowed: 0 or more")
    jobs = _each(args) if len(args.model) > 1 else [_only(args)]
    # What is wrong with any of them comes before the work.
    known = [(job, _shapes(job), *_outputs(job)) for job in jobs]
    for job in jobs:
        if is_onnx(job.model):
            onnx_file.check_onnx_file(job.model)
    total = Total()
    code = 0
    for job, shapes, folder, table in known:
        if len(jobs) > 1 and not args.json:
            print(f"{job.model}:")
        model = _compile(job, chip, shapes, folder)
        code = max(code, _tell(job, model, folder, table))
        total.add(model)
    if len(jobs) > 1:
        if args.json:
            print(json.dumps(total.models, indent=2))
        else:
            print(f"\n{total.line()}")
    return code


def _only(args: argparse.Namespace) -> argparse.Namespace:
    """The options of a single model.

    Raises:
        OneShotError: it has two calibration sets.
    """
    given = args.calibration or [None]
    if len(given) > 1:
        raise OneShotError("--calibration is given twice; put the samples into one folder, and give that")
    return argparse.Namespace(
        **{**vars(args), "model": args.model[0], "calibration": given[0], "several": False, "inputs": None}
    )


def _each(args: argparse.Namespace) -> list[argparse.Namespace]:
    """The options of each of several models.

    Raises:
        OneShotError: they cannot go together, or one of the options is for a single model.
    """
    single = {
        "--layers": args.layers,
        "--schedules": args.schedules,
        "--html": args.html,
        "--evaluate": args.evaluate,
    }
    given = next((option for option, value in single.items() if value), None)
    if given is not None:
        raise OneShotError(f"{given} is for one model; compile that alone")
    if (args.output or "").endswith(".json") and not args.build:
        raise OneShotError("-o of several models is a folder, which gets one for each; their tables: --json > FILE")
    models = several.titles(args.model)
    lists = [model for model in models.values() if is_list(model)]
    if lists:
        raise OneShotError(
            f"{lists[0]} is a list of layers, and several files are those of one model; compile it alone"
        )
    inputs = {title: onnx_file.input_names(model) if is_onnx(model) else [] for title, model in models.items()}
    shapes = several.shapes_of(args.shape, models, inputs)
    calibration = several.assigned(args.calibration or [], models)
    parent = args.build or args.output
    if parent is not None:
        check_parent(Path(parent), list(models))
    jobs = []
    for title, model in models.items():
        if len(calibration[title]) > 1:
            raise OneShotError(f"--calibration is given twice for {title}; put the samples into one folder")
        place = None if parent is None else str(Path(parent) / title)
        own: dict[str, Any] = {
            "model": model,
            "shape": shapes[title],
            "build": place,
            "output": None,
            "inputs": inputs[title] or None,
        }
        own |= {"calibration": next(iter(calibration[title]), None), "several": True}
        jobs.append(argparse.Namespace(**{**vars(args), **own}))
    return jobs


class Total:
    """What several models take together."""

    def __init__(self) -> None:
        self.models: list[dict[str, Any]] = []
        self._workloads: list[Any] = []

    def add(self, model: CompiledModel) -> None:
        self.models.append(model.to_dict())
        self._workloads += [layer.workload for layer in model.on_vta]

    def line(self) -> str:
        cycles, milliseconds = (sum(of[key] for of in self.models) for key in ("cycles", "milliseconds"))
        dram = sum(of["dram"]["total"] for of in self.models)
        different = len(set(self._workloads))
        return (
            f"All {len(self.models)} models: {cycles:,} cycles, {milliseconds:.2f} ms; {dram / 2**20:,.2f} MiB of "
            f"DRAM; {len(self._workloads)} layers on the VTA, of which {different} are different and were picked."
        )


def _compile(
    args: argparse.Namespace, chip: Accelerator, shapes: Mapping[str, tuple[int, ...]], folder: Path | None
) -> CompiledModel:
    """One model, compiled and written."""
    # With numba, which takes a second that what is wrong at first sight need not wait for.
    from oneshot_ml2.models import executable
    from oneshot_ml2.models.compile import compile as compile_model
    from oneshot_ml2.models.schedules import read_schedules

    if hasattr(open_device(args.device), "session"):
        raise DeviceError(
            f"compile runs programs on the simulator; run the folder that it writes on the device: "
            f"oneshot-ml2 run DIR --device {args.device}"
        )
    calibration, evaluate = _images(args)
    if calibration is not None and args.inputs is not None:
        calibration = calibration.of(args.inputs)
    schedules = () if args.schedules is None else read_schedules(args.schedules)
    if args.weights is not None:
        predictor_of(args.weights)
    with contextlib.nullcontext() if folder is None else executable.writing(folder) as place:
        with warnings.catch_warnings():
            # The table and the exit code say it.
            warnings.filterwarnings("ignore", message="results differ", category=RuntimeWarning)
            model = compile_model(
                args.model,
                chip,
                calibration=calibration,
                size=args.size,
                shapes=shapes,
                layers=args.layers,
                weights=args.weights,
                seed=args.seed,
                schedules=schedules,
                rounding=args.rounding,
                check=not args.no_check,
                evaluate=evaluate,
                progress=True,
            )
        if place is not None:
            model.write(place)
    return model


def _images(args: argparse.Namespace) -> tuple[samples.Found | None, samples.Found | None]:
    """What ``--calibration`` and ``--evaluate`` name; None: it is not given.

    Raises:
        ModelError: one cannot be read, or the options for images go with neither.
    """
    images = {"mean": args.mean, "std": args.std, "resize": args.resize}
    given = {name: value for name, value in images.items() if value is not None}
    paths = (args.calibration, args.evaluate)
    if given and not any(paths):
        raise ModelError(f"--{next(iter(given))} is for a folder of images; name it with --calibration DIR")
    folders = [path is not None and Path(path).is_dir() for path in paths]
    # One may be images and the other arrays; of neither being a folder, `find` says what is wrong.
    own = [given if folder or not any(folders) else {} for folder in folders]
    found = [None if path is None else samples.find(samples.Images(path, **of)) for path, of in zip(paths, own)]
    return found[0], found[1]


def _shapes(args: argparse.Namespace) -> dict[str, tuple[int, ...]]:
    """Input -> its shape, as the options say.

    Raises:
        OneShotError: one of them is none, or an input has two.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for given in args.shape:
        # Names may have an equals sign, too.
        name, equals, sizes = given.rpartition("=")
        numbers = sizes.split(",")
        if not name or not equals or not all(number.isascii() and number.isdigit() for number in numbers):
            raise OneShotError(f"--shape is {given!r}; allowed: an input and its sizes, for example x=1,3,224,224")
        if name in shapes:
            raise OneShotError(f"--shape is given twice for input {name!r}; give it once")
        shapes[name] = tuple(int(number) for number in numbers)
    return shapes


def _outputs(args: argparse.Namespace) -> tuple[Path | None, str | None]:
    """The folder of the compiled model, and the file of the table, as far as they are asked for.

    Whatever can be known to be wrong with them comes before the work.

    Raises:
        OneShotError: one of them cannot be written, or layers alone would go into a folder.
    """
    table = args.output if args.output and (args.build or args.output.endswith(".json")) else None
    given = args.build or (args.output if table is None else None)
    folder = None if given is None else Path(given)
    if folder is not None:
        if args.layers or is_list(args.model):
            what = "--layers chooses rows of a table" if args.layers else "a list of layers is no model that runs"
            raise OneShotError(f"{what}, and -o DIR writes a whole model; give -o a .json file, or a model without it")
        check_target(folder)
        check_writable(folder, "-o")
    for path, option in ((args.html, "--html"), (table, "--output")):
        if path:
            check_output(path, option)
    if folder is not None:
        linking.check_compiler()
    return folder, table


def _tell(args: argparse.Namespace, model: CompiledModel, folder: Path | None, table: str | None) -> int:
    """Print the result, and write the files beside the folder; 1 if it is wrong."""
    if args.html:
        write_whole(args.html, model.html().encode())
    for warning in model.warnings():
        print(f"oneshot-ml2: warning: {warning}", file=sys.stderr)
    text = json.dumps(model.to_dict(), indent=2)
    if table:
        write_whole(table, text + "\n")
    written = "" if folder is None else f"\nWritten to {folder}; run it with: oneshot-ml2 run {folder}"
    # Of several models there is one JSON, after the last of them.
    if not (args.json and args.several):
        print(text if args.json else f"{model.report()}{written}")
    if model.ok:
        return 0
    wrong = ", ".join(layer.name for layer in model.layers if not layer.ok) or "the whole model"
    print(f"oneshot-ml2: WRONG RESULT in {wrong}: this is a bug, please report it", file=sys.stderr)
    return 1
