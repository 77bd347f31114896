"""Random accelerators: legal, of the design that is asked for, the same for the same seed, and varied."""

from __future__ import annotations

import numpy as np
import pytest

from oneshot_ml2.vta.accelerator import DESIGNS
from oneshot_ml2.vta.drawn import random_accelerator, with_random_srams


@pytest.mark.parametrize("design", DESIGNS)
def test_random_accelerators(design: str) -> None:
    drawn = [random_accelerator(np.random.default_rng([3, n]), design) for n in range(200)]
    assert drawn == [random_accelerator(np.random.default_rng([3, n]), design) for n in range(200)]
    assert {chip.design for chip in drawn} == {design}
    assert len(set(drawn)) == len(drawn)
    assert {chip.block for chip in drawn} == {4, 8, 16, 32, 64}
    assert {chip.batch for chip in drawn} == {1, 2, 4, 8}
    for chip in drawn:
        element = 8 * chip.batch * chip.block
        assert 8 * chip.block >= chip.bus_bits or element <= chip.bus_bits


@pytest.mark.parametrize("design", DESIGNS)
def test_other_srams_leave_the_rest_alone(design: str) -> None:
    rng = np.random.default_rng(5)
    chip = random_accelerator(rng, design)
    others = [with_random_srams(rng, chip) for _ in range(20)]
    same = chip.with_srams(12, 12, 14, 14)
    assert len(set(others)) > 15
    assert {other.with_srams(12, 12, 14, 14) for other in others} == {same}


def test_half_of_the_hls_design_has_as_many_inputs_as_accumulators() -> None:
    drawn = [random_accelerator(np.random.default_rng([7, n]), "hls") for n in range(200)]
    share = np.mean([chip.inp_depth == chip.acc_depth for chip in drawn])
    assert 0.4 < share < 0.75
