"""The tuners by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oneshot_ml2.common.errors import OneShotError
from oneshot_ml2.network.picking import predictor_of
from oneshot_ml2.tuning.autotvm import AutoTVM
from oneshot_ml2.tuning.ml2 import ML2Tuner
from oneshot_ml2.tuning.prior import Prior
from oneshot_ml2.tuning.random_search import RandomSearch
from oneshot_ml2.tuning.validity_first import ValidityInit

if TYPE_CHECKING:
    from oneshot_ml2.network.predictor import Predictor
    from oneshot_ml2.tuning.base import Domain, Tuner
    from oneshot_ml2.tuning.prior import Evidence

# Tuners by name, and what each does.
TUNERS = {
    "random": "draws schedules at random",
    "autotvm": "AutoTVM-like: a ranking model on knobs, simulated annealing",
    "ml2-scratch": "ML2Tuner: P, V and A learn from nothing",
    "ml2-warm": "ML2Tuner: P and V start from the shipped network",
    "ml2-frozen": "the shipped network's ranking, nothing is learnt",
}
# In front of a tuner's name: an initialization by validity first, as Rieber et al. published it, and with a model of
# validity for the whole space; see `validity_init`.
VALIDITY_FIRST = ("rieber+", "validity+")
NETWORK_TUNERS = ("ml2-warm", "ml2-frozen")


def inner_name(name: str) -> str:
    """A tuner's name without what is in front of it."""
    first = next((first for first in VALIDITY_FIRST if name.startswith(first)), "")
    return name.removeprefix(first)


def make_tuner(
    name: str,
    domain: Domain,
    seed: int = 0,
    network: Predictor | None = None,
    closed_form: bool = False,
    evidence: Evidence | None = None,
) -> Tuner:
    """A tuner by name: one of `TUNERS`, or that behind one of `VALIDITY_FIRST`.

    ``network``: what `NETWORK_TUNERS` start from; None: the shipped one of the space's kind. ``closed_form``: these
    may leave out what the bounds and the SRAM sizes rule out; off where validity is hidden. ``evidence``: what
    ``ml2-warm`` learns of the board together with the tuners of other layers; None: alone.

    Raises:
        OneShotError: no such tuner, or one that does not know the space.
        ModuleNotFoundError: xgboost is not installed (all but ``random`` and ``ml2-frozen``).
    """
    if name.startswith(VALIDITY_FIRST):
        inner = inner_name(name)
        if inner in TUNERS:
            return ValidityInit(
                domain,
                lambda informed: make_tuner(inner, informed, seed, network, closed_form, evidence),
                seed,
                generalize=name.startswith(VALIDITY_FIRST[1]),
            )
    if name not in TUNERS:
        first = " or ".join(VALIDITY_FIRST)
        raise OneShotError(f"no tuner {name!r}; there are: {', '.join(TUNERS)}, each also behind {first}")
    if name == "random":
        return RandomSearch(domain, seed)
    if name == "autotvm":
        return AutoTVM(domain, seed)

    prior = None
    if name in NETWORK_TUNERS:
        prior = Prior(domain, predictor_of(network, domain.space.kind), closed_form, evidence)
    return ML2Tuner(domain, seed, name.removeprefix("ml2-"), prior)
