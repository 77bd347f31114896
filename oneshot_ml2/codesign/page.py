"""One self-contained HTML page about a search for an accelerator: the front, what sizes buy, where the cycles go."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import numpy as np

from oneshot_ml2.codesign.design import Codesign, Member
from oneshot_ml2.common.html_page import rendered
from oneshot_ml2.common.version import __version__
from oneshot_ml2.vta.breakdown import PARTS

_TEMPLATE = "page.html"
# Members that are drawn beside the front: more are no help to the eye.
_DRAWN = 2500
_SIZES = {"uop": "micro-ops", "inp": "inputs", "wgt": "weights", "acc": "accumulators", "bus": "bus",
          "inp+acc": "inputs and accumulators"}  # fmt: skip


def page(found: Codesign) -> str:
    """The page of a search."""
    template = (resources.files("oneshot_ml2.codesign") / _TEMPLATE).read_text(encoding="utf-8")
    names = ", ".join(model.name for model in found.models)
    return rendered(template, f"{names} on {found.fpga.name}: which VTA to build", _data(found))


def _data(found: Codesign) -> dict[str, Any]:
    first = found.best[0] if found.best else found.members[0]
    front = {id(one) for one in found.front}
    others = [one for one in found.members if id(one) not in front]
    # The best of them, and of the rest some evenly.
    near, rest = others[: _DRAWN // 2], others[_DRAWN // 2 :]
    some = [rest[i] for i in np.unique(np.linspace(0, len(rest) - 1, _DRAWN // 2).astype(int))] if rest else []
    return {
        "models": [{"name": model.name, "weight": model.weight} for model in found.models],
        "fpga": found.fpga.name,
        "device": {"bram36": found.fpga.bram36, "dsp": found.fpga.dsp, "lut": found.fpga.lut},
        "budget": {"bram36": found.budget.bram36, "dsp": found.budget.dsp},
        "margins": [found.overhead.bram36_margin, found.overhead.lut_margin],
        "objective": found.objective,
        "grid": found.grid,
        "legal": found.legal,
        "seconds": found.seconds,
        "front": [_point(one) for one in found.front],
        "others": [_point(one) for one in near + some],
        "best": [_point(one) for one in found.best],
        "first": _point(first),
        "clock": f"{first.clock.mhz} MHz: {first.clock.source}",
        "json": json.dumps(json.loads(first.accelerator.to_json()), indent=1),
        "parts": [[model, [[part, cycles[part]] for part in PARTS]] for model, cycles in first.parts.items()],
        "sensitivity": [
            [_SIZES[name], name != "bus", _own(first, name), list(map(list, sizes))]
            for name, sizes in found.sensitivity.items()
        ],
        "footer": f"Written by oneshot-ml2 {__version__}. The same figures are in codesign.json.",
    }


def _own(member: Member, name: str) -> int:
    """The chosen accelerator's size of a memory, or of the bus."""
    chip = member.accelerator
    if name == "bus":
        return chip.bus_bits
    return sum(1 << int(getattr(chip, f"log_{part}_buff_size")) for part in name.split("+"))


def _point(one: Member) -> dict[str, Any]:
    return {
        "name": one.accelerator.name,
        "block": one.accelerator.block,
        "batch": one.accelerator.batch,
        "bus": one.accelerator.bus_bits,
        "ms": one.ms,
        "bram36": one.taken.bram36,
        "dsp": one.taken.dsp,
        "lut": one.taken.lut,
        "cycles": [[name, round(value)] for name, value in one.cycles.items()],
        "source": one.source,
    }
