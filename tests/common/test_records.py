"""Records are found by the files that hold them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from oneshot_ml2.common import records


@dataclass(frozen=True)
class Animal:
    name: str


def test_a_new_file_registers_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a_folder_of_animals"
    (folder / "within").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "within" / "__init__.py").write_text("raise RuntimeError('not looked into')")
    head = "from test_records import Animal\n"
    (folder / "b.py").write_text(
        f"{head}from a_folder_of_animals.c import CAT\nCOW = Animal('cow')\nAPE = Animal('ape')"
    )
    (folder / "c.py").write_text(f"{head}CAT = Animal('cat')\nOTHER = 'dog'")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    from test_records import Animal as Found

    found = records.records("a_folder_of_animals", Found)
    assert sorted(animal.name for animal in found) == ["ape", "cat", "cow"]
