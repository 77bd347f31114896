"""The choice among ways to quantize: judged by samples that a way was not made by, and only by more than chance."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from graph_models import needs

from oneshot_ml2.models.ir import Graph, Node, Value
from oneshot_ml2.models.quantize.observe import observed
from oneshot_ml2.models.quantize.steps import ALL_STEPS, NO_STEPS
from oneshot_ml2.models.quantize.ways import Ways, best, clearly_less, jury_of

needs("tvm")


def doubled(factor: float) -> Graph:
    """``x`` times a factor; 2 is right."""
    values = {name: Value(name, (1, 4)) for name in ("x", "y")}
    nodes = (Node("y", "multiply", ("x", "two"), "y", {}),)
    return Graph("g", ("x",), ("y",), nodes, values, {"two": np.full(1, factor, np.float32)}, output_names=("y",))


@dataclass
class _Made:
    graph: Graph


@dataclass(frozen=True)
class _Ways(Ways):
    """Ways that are as far off as they are told to be; they note which samples they were made by."""

    factors: dict[str, float] = field(default_factory=dict)
    seen: list[list[float]] = field(default_factory=list)

    def kinds(self, seen: Any) -> tuple[str, ...]:
        return tuple(self.factors)

    def made(self, kind: str, seen: Any, fine: bool = False) -> Any:
        self.seen.append([float(array[0]) for array in seen.drawn["x"]])
        return _Made(doubled(self.factors[kind]))


def chosen(factors: dict[str, float], samples: int, macs: int = 0) -> tuple[str, list[list[float]]]:
    given = [{"x": np.full((1, 4), 1.0 + index, np.float32)} for index in range(samples)]
    jury = jury_of(macs, samples)
    seen = observed(doubled(2.0), given, lambda text: None, {}, (), jury.places)
    ways = _Ways(doubled(2.0), None, {}, NO_STEPS, False, factors)  # type: ignore[arg-type]
    return best(ways, seen, given, jury)[0], ways.seen


@pytest.mark.parametrize("samples", [1, 2, 3, 4, 9, 40])
def test_what_loses_clearly_less_is_taken(samples: int) -> None:
    assert chosen({"moved": 2.2, "scaled": 2.1, "plain": 2.21}, samples)[0] == "scaled"
    assert chosen({"moved": 2.2, "scaled": 2.199, "plain": 2.21}, samples)[0] == "moved"


def test_what_is_not_finite_is_as_bad_as_can_be() -> None:
    """As the logarithm of what int8 rounds to 0; on one sample, or on all."""
    infinite = float("inf")
    assert chosen({"moved": infinite, "scaled": 2.1, "plain": infinite}, 4)[0] == "scaled"
    assert chosen({"moved": 2.1, "scaled": infinite, "plain": float("nan")}, 4)[0] == "moved"


@pytest.mark.parametrize(("samples", "macs"), [(2, 0), (4, 0), (5, 0), (20, 0), (4, 10**10), (7, 10**9)])
def test_no_sample_judges_what_was_made_by_it(samples: int, macs: int) -> None:
    jury = jury_of(macs, samples)
    _, made_by = chosen({"moved": 2.2, "scaled": 2.1}, samples, macs)
    assert len(made_by) == 2 * len(jury.parts)
    for part, places in jury.parts.items():
        for known in made_by[2 * part : 2 * part + 2]:
            assert known and not {1.0 + place for place in places} & set(known)
            assert len(known) >= samples // 2


@pytest.mark.parametrize("samples", range(2, 13))
def test_few_samples_are_judged_by_all_others(samples: int) -> None:
    jury = jury_of(0, samples)
    _, made_by = chosen({"moved": 2.2, "scaled": 2.1}, samples)
    known = samples - 1 if samples < 8 else samples // 2
    assert len(jury.places) == samples and min(map(len, made_by)) == known
    # A part of the samples judges large models, by what the others say.
    assert len(jury_of(10**9, samples).places) == min(samples, 4)
    assert len(jury_of(10**10, samples).parts) == 1


def test_a_difference_has_to_be_more_than_chance() -> None:
    those = np.log([0.3, 0.1, 0.3, 0.1])
    assert clearly_less(those - 0.2, those)
    assert not clearly_less(those - 0.05, those)
    # Less on average, but not on each.
    assert not clearly_less(those + [0.5, -1.0, 0.4, -1.0], those)


@dataclass(frozen=True)
class _Fine(_Ways):
    """Ways whose weights can be rounded twice as well, or half as well."""

    better: float = 0.5

    def made(self, kind: str, seen: Any, fine: bool = False) -> Any:
        return _Made(doubled(2 + (self.factors[kind] - 2) * (self.better if fine else 1)))


@pytest.mark.parametrize("better", [0.5, 2.0])
def test_weights_are_rounded_so_if_that_loses_less(better: float) -> None:
    given = [{"x": np.full((1, 4), 1.0 + index, np.float32)} for index in range(4)]
    jury = jury_of(0, 4)
    seen = observed(doubled(2.0), given, lambda text: None, {}, (), jury.places)
    for steps, wanted in ((ALL_STEPS, better < 1), (NO_STEPS, False)):
        ways = _Fine(doubled(2.0), None, {}, steps, False, {"moved": 2.2, "scaled": 2.1}, [], better)  # type: ignore[arg-type]
        assert best(ways, seen, given, jury) == ("scaled", wanted)
