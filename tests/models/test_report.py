"""The printed report."""

from __future__ import annotations

from oneshot_ml2.models import report


def test_what_would_help_is_said_once() -> None:
    lines = ["a is rounded; train", "b is cut: clip", "c is rounded; train", "d is uneven; divide"]
    assert report._said_once(lines) == ["a is rounded; train", "b is cut: clip", "c is rounded", "d is uneven; divide"]
