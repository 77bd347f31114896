"""The tuners by name; each is registered by the file of this folder that has it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.common.names import unknown
from oneshot_ml2.common.records import records
from oneshot_ml2.tuning.base import Given, Initialization, TunerKind

if TYPE_CHECKING:
    from oneshot_ml2.network.predictor import Predictor
    from oneshot_ml2.tuning.base import Domain, Tuner
    from oneshot_ml2.tuning.prior import Evidence


@functools.cache
def tuner_kinds() -> dict[str, TunerKind]:
    """The tuners by name, those that need least first."""
    found = records("oneshot_ml2.tuning", TunerKind)
    ranked = sorted(found, key=lambda kind: (kind.needs_network, kind.needs_xgboost))
    return {kind.name: kind for kind in ranked}


@functools.cache
def initializations() -> dict[str, Initialization]:
    """What may stand in front of a tuner's name, by its prefix."""
    return {first.prefix: first for first in records("oneshot_ml2.tuning", Initialization)}


def find_tuner(name: str) -> tuple[Initialization | None, TunerKind]:
    """The tuner of a name, and what is in front of it.

    Raises:
        OneShotError: no such tuner.
    """
    first = next((first for prefix, first in initializations().items() if name.startswith(prefix)), None)
    inner = name if first is None else name.removeprefix(first.prefix)
    if inner not in tuner_kinds():
        prefixes = " or ".join(initializations())
        also = [prefix + known for prefix in initializations() for known in tuner_kinds()]
        raise OneShotError(f"{unknown('tuner', name, tuner_kinds(), also)}, each also behind {prefixes}")
    return first, tuner_kinds()[inner]


def make_tuner(
    name: str,
    domain: Domain,
    seed: int = 0,
    network: Predictor | None = None,
    closed_form: bool = False,
    evidence: Evidence | None = None,
) -> Tuner:
    """A tuner by name: one of `tuner_kinds`, or that behind one of `initializations`; the others as of `Given`.

    Raises:
        OneShotError: no such tuner, or one that does not know the space.
        ModuleNotFoundError: xgboost is not installed, where the tuner needs it.
    """
    first, kind = find_tuner(name)

    def make(of: Domain) -> Tuner:
        return kind.make(Given(of, seed, network, closed_form, evidence))

    return make(domain) if first is None else first.make(domain, make, seed)
