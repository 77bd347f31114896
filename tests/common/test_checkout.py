"""The commit that measurements name."""

from __future__ import annotations

from pathlib import Path

import pytest

import oneshot_ml2
from oneshot_ml2.common import checkout


def test_a_checkout_names_its_commit_and_a_package_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = Path(oneshot_ml2.__file__).resolve().parent.parent
    if (root / ".git").exists():
        assert len(checkout.commit().removesuffix("-dirty")) == 40
    monkeypatch.setattr(oneshot_ml2, "__file__", str(tmp_path / "oneshot_ml2" / "__init__.py"))
    assert checkout.commit() == ""
    # A folder that is no repository.
    (tmp_path / ".git").mkdir()
    assert checkout.commit() == ""
