"""Real picks on members of families, made together."""

from __future__ import annotations

import numpy as np
import pytest

from oneshot_ml2.codesign import confirm as confirming
from oneshot_ml2.codesign.confirm import confirm
from oneshot_ml2.codesign.models import Model
from oneshot_ml2.network import picking
from oneshot_ml2.vta.accelerator import Accelerator
from oneshot_ml2.vta.breakdown import PARTS
from oneshot_ml2.workload.conv2d import Conv2d
from oneshot_ml2.workload.dense import Dense
from oneshot_ml2.workload.epilogue import Epilogue
from oneshot_ml2.workload.lists import Layer

CONV = Conv2d(1, 32, 8, 8, 32, 3, 3, 1, 1, 1, Epilogue(bias=True, shift=6, clip=(0, 127)))
WIDE = Dense(1, 64, 1000, Epilogue(shift=6))
MODEL = Model("model", (Layer("a", CONV, 2), Layer("b", WIDE)))
STOCK = Accelerator.load("pynq-hls")
# The second differs from the first in micro-ops that no program may use; the fourth has fewer accumulators than the
# dense layer has blocks of channels, and the last holds no kernel.
CHIPS = [
    STOCK,
    STOCK.with_srams(14, 15, 18, 17),
    STOCK.with_srams(11, 12, 14, 14),
    STOCK.with_srams(15, 9, 14, 11),
    Accelerator.load("pynq"),
    STOCK.with_srams(15, 15, 10, 17),
]


def test_picks_made_together_are_those_made_alone() -> None:
    found = dict(confirm([MODEL], CHIPS, False, True))
    assert sorted(found) == list(range(len(CHIPS)))
    for place, chip in enumerate(CHIPS[:-1]):
        cycles = []
        for workload in (CONV, WIDE):
            pick = picking.pick(workload, chip)
            cycles.append(int(pick.space.measure(np.array([pick.index])).cycles[0]))
        real = found[place]
        assert real is not None and real.simulated and real.accelerator == chip.to_json()
        assert real.cycles == {"model": 2 * cycles[0] + cycles[1]}
        assert set(real.parts["model"]) == set(PARTS) and sum(real.parts["model"].values()) == real.cycles["model"]
    assert found[len(CHIPS) - 1] is None


def test_the_same_nest_is_picked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    picked = []
    plain = picking.pick

    def pick(*args: object, **kwargs: object) -> object:
        picked.append(args)
        return plain(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(confirming.picking, "pick", pick)
    one, other = (real for _, real in confirm([MODEL], CHIPS[:2], False, False))
    assert len(picked) == 2
    assert one is not None and other is not None and one.cycles == other.cycles


def test_many_are_confirmed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = dict(confirm([MODEL], CHIPS[:4], False, False))
    monkeypatch.setattr(confirming, "TOGETHER", 2)
    assert dict(confirm([MODEL], CHIPS[:4], False, False)) == whole
