"""Options behind the question mark of a device's specification: ``driver:PATH?limit=5&flush=1``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl

from oneshot_ml2.common.errors import DeviceError
from oneshot_ml2.common.names import unknown
from oneshot_ml2.devices.raw import Options
from oneshot_ml2.vta.program import PAGE

NUMBERS = {
    # Name in a specification -> field, lowest, highest.
    "address": ("bits", 32, 64),
    "wait": ("wait", 1, (1 << 32) - 1),
    "cached": ("cached", 0, 1),
    "flush": ("flush", 0, 1),
    "largest": ("largest", PAGE, 1 << 40),
    "repeats": ("repeats", 1, 1000),
    "retries": ("retries", 0, 1000),
    "check": ("check", 0, 1),
}


def read_options(spec: str, texts: Sequence[str] = ()) -> tuple[Options, dict[str, str]]:
    """The options of a specification; and those of them, of the names ``texts``, that are the kind's own, as they are.

    Raises:
        DeviceError: no such option, or a value that it does not take.
    """
    fields: dict[str, Any] = {}
    own: dict[str, str] = {}
    for name, text in parse_qsl(spec.partition("?")[2], keep_blank_values=True):
        if name in texts:
            own[name] = text
        elif name == "limit":
            fields[name] = seconds(spec, name, text)
        elif name in NUMBERS:
            field, low, high = NUMBERS[name]
            value = int(text) if text.isdecimal() else -1
            if not low <= value <= high or (name == "address" and value not in (32, 64)):
                allowed = "32 or 64" if name == "address" else f"{low} to {high}"
                raise DeviceError(f"{spec}: {name} is {text!r}; allowed: {allowed}")
            fields[field] = bool(value) if field in ("flush", "check") else value
        else:
            raise DeviceError(unknown(f"option of {spec.partition(':')[0]}:", name, ["limit", *texts, *NUMBERS]))
    return Options(**fields), own


def seconds(spec: str, name: str, text: str) -> float:
    """Seconds, above 0.

    Raises:
        DeviceError: something else.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise DeviceError(f"{spec}: {name} is {text!r}; allowed: seconds, above 0")
    return value
