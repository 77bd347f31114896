"""Files that the package ships: in its own ``data`` folder, or in the checkout that an editable install points to."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.common.names import unknown

# Kind -> its folder in a checkout; a wheel carries each as ``oneshot_ml2/data/<kind>`` (pyproject.toml).
KINDS = {
    "accelerators": "datasets/accelerators",
    "evaluation": "datasets/evaluation",
    "optima": "datasets/optima",
    "pretrained": "pretrained",
    "workloads": "datasets/workloads",
}


def folders(kind: str) -> tuple[Path, ...]:
    """Existing folders that hold files of a kind (a key of ``KINDS``), the package's own first.

    Raises:
        OneShotError: no such kind.
    """
    if kind not in KINDS:
        raise OneShotError(unknown("resources of kind", kind, KINDS))
    package = Path(str(resources.files("oneshot_ml2")))
    places = [package / "data" / kind]
    # Beside an installed package may lie anything; only a checkout has this file.
    if (package.parent / "pyproject.toml").is_file():
        places.append(package.parent / KINDS[kind])
    return tuple(place for place in places if place.is_dir())


def names(kind: str) -> list[str]:
    """Files and folders of a kind, sorted; what :func:`find` accepts (as it does paths below those folders)."""
    return sorted({entry.name for place in folders(kind) for entry in place.iterdir() if entry.name[0] not in "._"})


def find(kind: str, name: str) -> Path:
    """The path of a shipped file or folder, e.g. ``find("pretrained", "default.safetensors")``.

    Raises:
        OneShotError: no such kind or file (names the closest one and those there are).
    """
    for place in folders(kind):
        if (place / name).exists():
            return place / name
    raise OneShotError(unknown(f"shipped {kind} file", name, names(kind)))
