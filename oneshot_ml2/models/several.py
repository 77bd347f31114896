"""Several files of one model, as an encoder and a decoder: what each is called, and which options are whose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.common.names import unknown


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
