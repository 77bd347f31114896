"""Run a compiled model on an input.

The process needs neither PyTorch nor the network.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oneshot_ml2.commands.options import add_device, finish
from oneshot_ml2.common.errors import ModelError
from oneshot_ml2.common.files import check_output, write_whole
from oneshot_ml2.common.reading import read_json, read_text
from oneshot_ml2.devices.registry import open_device
from oneshot_ml2.models import executable, page, samples
from oneshot_ml2.models.folder import REPORT, REPORT_PAGE
from oneshot_ml2.models.measured import measured
from oneshot_ml2.vta.accelerator import Accelerator

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from oneshot_ml2.models.executable import Executable

# How many of the largest elements of a row of scores are shown, and of how many rows.
_SHOWN = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``oneshot-ml2 run``."""
    parser.add_argument("model", help="folder that `oneshot-ml2 compile MODEL -o DIR` wrote")
    parser.add_argument(
        "--input",
        action="append",
        metavar="[NAME=]FILE",
        help=".npy, or .npz with the inputs by name, of one sample or many; repeat it for several inputs",
    )
    parser.add_argument("--output", metavar="FILE", help="write the result here: .npy, or .npz with outputs by name")
    parser.add_argument("--accelerator", metavar="NAME", help="refuse a model that is compiled for another one")
    add_device(parser, "what runs the programs")
    parser.add_argument(
        "--html", metavar="FILE", help="write the report's page here, with what each submission took on the device"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Load, run, print and write."""
    device = open_device(args.device)
    output = None if args.output is None else Path(args.output)
    if output is not None and output.suffix not in (".npy", ".npz"):
        raise ModelError(f"--output is {args.output}; allowed: a file ending in .npy or .npz")
    if output is not None:
        check_output(output, "--output")
    if args.html is not None:
        check_output(args.html, "--html")
        if not hasattr(device, "session"):
            raise ModelError("--html is for what a device takes; name it with --device driver:PATH")
    chip = None if args.accelerator is None else Accelerator.load(args.accelerator)
    begin = time.perf_counter()
    model = executable.load(args.model, chip)
    model.device = device
    loaded = time.perf_counter()
    inputs = _inputs(model, args.input or [])
    if output is not None and output.suffix == ".npy" and len(model.outputs) > 1:
        names = ", ".join(tensor.name for tensor in model.outputs)
        raise ModelError(f"the model's outputs are {names}; give --output a file ending in .npz")
    results = _run(model, inputs)
    done = time.perf_counter()
    if output is not None:
        write_whole(output, _as_file(results, output.suffix))
    finish(device)
    took = measured(model, read_json(Path(args.model) / REPORT, ModelError))
    if args.html is not None and took is not None:
        before = read_text(Path(args.model) / REPORT_PAGE, ModelError)
        write_whole(args.html, page.with_measured(before, dataclasses.asdict(took)))
    if args.json:
        content: dict[str, Any] = {"outputs": {name: array.tolist() for name, array in results.items()}}
        if took is not None:
            content["measured"] = dataclasses.asdict(took)
        print(json.dumps(content))
        return 0
    for name, array in results.items():
        print(f"{name}: {'x'.join(map(str, array.shape))} {array.dtype}, {array.min():.4g} to {array.max():.4g}")
        if array.ndim == 2:
            for row, scores in enumerate(array[:_SHOWN]):
                best = scores.argsort(kind="stable")[::-1][:_SHOWN]
                print(f"  row {row}, largest: " + ", ".join(f"[{index}] {scores[index]:.4g}" for index in best))
            if len(array) > _SHOWN:
                print(f"  and {len(array) - _SHOWN} more rows")
    many = f"{len(inputs)} samples " if len(inputs) > 1 else ""
    times = f"loaded in {loaded - begin:.2f} s, ran {many}in {done - loaded:.2f} s"
    where = f"; written to {output}" if output is not None else ""
    who = device.name if hasattr(device, "session") else "simulated"
    print(f"{model.name} on {model.accelerator.name} ({who}): {times}{where}")
    if took is not None:
        print(took.line())
    return 0


def _run(model: Executable, inputs: Sequence[samples.Sample]) -> dict[str, NDArray[Any]]:
    """The outputs of all samples in the model's order, one after another along their first axis."""
    import numpy as np
    from tqdm import tqdm

    hidden = None if len(inputs) > 1 else True
    shown = tqdm(inputs, unit="sample", file=sys.stderr, leave=False, disable=hidden)
    results = [model.run(sample) for sample in shown]
    if len(results) == 1:
        return dict(results[0])
    # An output that is a single number has no axis.
    return {name: np.concatenate([np.atleast_1d(result[name]) for result in results]) for name in results[0]}


def _inputs(model: Executable, given: list[str]) -> list[dict[str, NDArray[Any]]]:
    """The samples that ``--input`` names.

    Raises:
        ModelError: a file that cannot be read, a missing name, or arrays that are not what the model takes.
    """
    takes = ", ".join(f"{tensor.name} {'x'.join(map(str, tensor.shape))}" for tensor in model.inputs)
    if not given:
        raise ModelError(f"give the model's inputs with --input FILE; it takes {takes} (float32)")
    arrays: dict[str, NDArray[Any]] = {}
    names = {tensor.name for tensor in model.inputs}
    for text in given:
        name, equals, path = text.partition("=")
        if not (equals and name in names):
            name, path = "", text
        content = samples.read_tensors(path)
        if isinstance(content, dict):
            arrays |= content
        elif name or len(model.inputs) == 1:
            arrays[name or model.inputs[0].name] = content
        else:
            raise ModelError(f"the model takes {takes}; say which one {path} is: --input NAME={path}")
    try:
        return samples.split(arrays, samples.expected_of(model.inputs))
    except ModelError as error:
        raise ModelError(f"--input: {error}") from error


def _as_file(results: dict[str, NDArray[Any]], suffix: str) -> bytes:
    import numpy as np

    buffer = io.BytesIO()
    if suffix == ".npy":
        np.save(buffer, next(iter(results.values())), allow_pickle=False)
        return buffer.getvalue()
    # numpy's own writer takes no array by the name of its first argument.
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in results.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    return buffer.getvalue()
