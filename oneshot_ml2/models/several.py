"""Several files of one model, as an encoder and a decoder: what each is called, and which options are whose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.common.names import unknown
from oneshot_ml2.models.folder import check_parent
from oneshot_ml2.models.frontend import onnx_file
from oneshot_ml2.models.frontend.importer import is_list, is_onnx
from oneshot_ml2.vta.spread import spread_words

if TYPE_CHECKING:
    from oneshot_ml2.models.compiled import CompiledModel
    from oneshot_ml2.workload.base import Workload


@dataclass(frozen=True)
class Job:
    """One of the models, and what the options say of it.

    Attributes:
        model: as it was named.
        shapes: input -> its shape.
        calibration: path of its samples; None: random ones.
        folder: where the compiled model goes; None: nowhere.
        inputs: names of an ONNX file's inputs, which the samples of several models are chosen by; None: all are its.
    """

    model: str
    shapes: Mapping[str, tuple[int, ...]]
    calibration: str | None
    folder: Path | None
    inputs: Sequence[str] | None = None


def jobs_of(models: Sequence[str], shapes: Sequence[str], calibration: Sequence[str], folder: Path | None) -> list[Job]:
    """What is to be done for one model, or for each of several.

    Args:
        shapes: ``INPUT=N,N,...`` each, and of several models also ``NAME:INPUT=N,N,...``.
        calibration: paths of samples, and of several models also ``NAME:PATH``.
        folder: of the compiled model, or of the folders of several.

    Raises:
        OneShotError: names, shapes or samples do not go together, or the folder is none for them.
    """
    if len(models) == 1:
        return [Job(models[0], parsed_shapes(shapes), _only(calibration), folder)]
    named = titles(models)
    lists = [model for model in named.values() if is_list(model)]
    if lists:
        raise OneShotError(
            f"{lists[0]} is a list of layers, and several files are those of one model; compile it alone"
        )
    inputs = {title: onnx_file.input_names(model) if is_onnx(model) else [] for title, model in named.items()}
    own_shapes, samples = shapes_of(shapes, named, inputs), assigned(calibration, named)
    if folder is not None:
        check_parent(folder, list(named))
    return [
        Job(
            model,
            parsed_shapes(own_shapes[title]),
            _only(samples[title], f" for {title}"),
            None if folder is None else folder / title,
            inputs[title] or None,
        )
        for title, model in named.items()
    ]


def _only(calibration: Sequence[str], whose: str = "") -> str | None:
    if len(calibration) > 1:
        raise OneShotError(f"--calibration is given twice{whose}; put the samples into one folder, and give that")
    return calibration[0] if calibration else None


def parsed_shapes(values: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Input -> its shape, of ``INPUT=N,N,...`` each.

    Raises:
        OneShotError: one of them is none, or an input has two.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for given in values:
        # Names may have an equals sign, too.
        name, equals, sizes = given.rpartition("=")
        numbers = sizes.split(",")
        if not name or not equals or not all(number.isascii() and number.isdigit() for number in numbers):
            raise OneShotError(f"--shape is {given!r}; allowed: an input and its sizes, for example x=1,3,224,224")
        if name in shapes:
            raise OneShotError(f"--shape is given twice for input {name!r}; give it once")
        shapes[name] = tuple(int(number) for number in numbers)
    return shapes


class Total:
    """What several models take together; the models themselves are not kept.

    ``results``: of each, as `CompiledModel.to_dict` gives it.
    """

    def __init__(self) -> None:
        self.results: list[dict[str, Any]] = []
        self._workloads: list[Workload | None] = []

    def add(self, model: CompiledModel) -> None:
        """One more model."""
        self.results.append(model.to_dict())
        self._workloads += [layer.workload for layer in model.on_vta]

    def line(self) -> str:
        """For people."""
        cycles, milliseconds = (sum(of[key] for of in self.results) for key in ("cycles", "milliseconds"))
        around = spread_words(self.results[0]["milliseconds_spread"])
        dram = sum(of["dram"]["total"] for of in self.results)
        different = len(set(self._workloads))
        return (
            f"All {len(self.results)} models: {cycles:,} cycles, {milliseconds:.2f} ms{around}; "
            f"{dram / 2**20:,.2f} MiB of DRAM; {len(self._workloads)} layers on the VTA, of which {different} are "
            "different and were picked."
        )


def titles(models: Sequence[str]) -> dict[str, str]:
    """Name of each model, its file's without the ending, -> the model.

    Raises:
        OneShotError: two have one name.
    """
    found: dict[str, str] = {}
    for model in models:
        title = Path(model).stem if model.lower().endswith(".onnx") else model
        if title in found:
            raise OneShotError(
                f"{found[title]} and {model} would both be called {title}; rename one, or compile it alone"
            )
        found[title] = model
    return found


def assigned(values: Sequence[str], models: Mapping[str, str]) -> dict[str, list[str]]:
    """What an option says of each model, by its name: values with ``NAME:`` or ``FILE:`` in front are that model's,
    those without anything are everyone's, and come first.
    """
    found: dict[str, list[str]] = {title: [] for title in models}
    own: dict[str, list[str]] = {title: [] for title in models}
    for value in values:
        fronts = {f"{front}:": title for title, model in models.items() for front in (title, model, Path(model).name)}
        front = next((front for front in fronts if value.startswith(front)), None)
        if front is not None:
            own[fronts[front]].append(value[len(front) :])
            continue
        for title in models:
            found[title].append(value)
    return {title: found[title] + own[title] for title in models}


def shapes_of(
    values: Sequence[str], models: Mapping[str, str], inputs: Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
    """As `assigned`, of ``INPUT=N,N,...``: what is everyone's goes to the models that have such an input.

    Args:
        inputs: name of a model -> its inputs' names.

    Raises:
        OneShotError: no model has it.
    """
    every = sorted({name for names in inputs.values() for name in names})
    found = assigned(values, models)
    common = [value for value in values if all(value in of for of in found.values())]
    for value in common:
        name = value.rpartition("=")[0]
        if name not in every:
            raise OneShotError(f"--shape {value}: {unknown('input', name, every)}")
        for title, names in inputs.items():
            if name not in names:
                found[title].remove(value)
    return found
