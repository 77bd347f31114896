"""Weights in files: safetensors with a model card beside them, written whole, and read as data of others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneshot_ml2.common.errors import WeightsError
from oneshot_ml2.common.files import write_whole


def write_weights(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, in a folder that is made if need be.

    Raises:
        WeightsError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    except OSError as error:
        raise WeightsError(f"cannot write {path}: {error.strerror or error}") from error


def save_tensors(
    path: Path, tensors: Mapping[str, NDArray[np.float32]], head: Mapping[str, str], card: Mapping[str, Any]
) -> None:
    """Write ``path`` (safetensors) and its card beside it (``.json``), each whole or not at all.

    Raises:
        WeightsError: the files cannot be written.
    """
    from safetensors.numpy import save

    path = path.with_suffix(".safetensors")
    content = save({name: np.ascontiguousarray(t) for name, t in tensors.items()}, metadata=dict(head))
    text = json.dumps(card, indent=1, sort_keys=True) + "\n"
    for target, data in ((path, content), (path.with_suffix(".json"), text.encode())):
        write_weights(target, data)


def read_tensors(path: Path, form: str, advice: str) -> tuple[dict[str, str], dict[str, NDArray[Any]]]:
    """The head and the tensors of a safetensors file whose ``format`` is ``form``.

    Raises:
        WeightsError: no such file, a truncated or foreign one.
    """
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors":
        raise WeightsError(f"{path}: not weights (*.safetensors); {advice}")
    try:
        with safe_open(str(path), framework="numpy") as file:
            head = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError, ValueError) as error:
        raise WeightsError(f"cannot read weights {path}: {error}; {advice}") from error
    if head.get("format") != form:
        found = head.get("format", "")
        what = f"{found}, not {form}" if found.startswith("oneshot-ml2") else "no weights of oneshot-ml2"
        raise WeightsError(f"{path}: {what}; {advice}")
    return head, tensors


def check_tensors(
    path: Path, tensors: Mapping[str, NDArray[Any]], shapes: Mapping[str, tuple[int, ...]], advice: str
) -> None:
    """Raise WeightsError unless the tensors are of these names and shapes, float32, and finite."""
    for name in set(shapes) | set(tensors):
        tensor = tensors.get(name)
        if tensor is None or tensor.shape != shapes.get(name) or tensor.dtype != np.float32:
            raise WeightsError(f"{path}: tensor {name!r} does not fit the network; {advice}")
        if not np.isfinite(tensor).all():
            raise WeightsError(f"{path}: tensor {name!r} holds values that are not finite; {advice}")
