"""How far a board's times are from predicted ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oneshot_ml2.vta.hls_keys import RATES, HlsTiming

if TYPE_CHECKING:
    from oneshot_ml2.vta.accelerator import Accelerator

# Of programs on two boards of the HLS design (docs/hls.md): by the rates of their own board, and by others'.
_FITTED, _UNFITTED = 0.02, 0.1


def spread(accelerator: Accelerator) -> float | None:
    """Within which share of a predicted time two of three measured ones lie; None: nothing is known of that.

    Rates of the HLS design that are all at their defaults were fitted to no board. The RTL is reproduced cycle by
    cycle, but no board of that design was measured.
    """
    if accelerator.hls is None:
        return None
    default = HlsTiming()
    fitted = any(getattr(accelerator.hls, name) != getattr(default, name) for name in RATES)
    return _FITTED if fitted else _UNFITTED


def spread_words(share: float | None) -> str:
    """A spread behind a time, `` ± 2 %``; nothing where there is none."""
    return "" if share is None else f" ± {100 * share:.0f} %"
