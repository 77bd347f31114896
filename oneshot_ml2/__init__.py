"""Zero-measurement schedules for VTA accelerators."""

from __future__ import annotations

__version__ = "0.1.0"
