"""What quantization does so that the task survives, one by one, so that each can be judged."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Steps:
    """Which steps are taken.

    ``floats``: sums and concatenations that only float operators read are computed in float32; ``equalize``: channels
    are scaled, see `equalize`; ``bias``: a layer's bias takes back what rounding its weight adds on average;
    ``offsets``: channels are also moved, which needs both; ``rows``: products and layers take rows that the host makes
    at one size; ``fine``: weights are rounded by what they are multiplied by, see `rounding`.
    """

    floats: bool = True
    equalize: bool = True
    bias: bool = True
    offsets: bool = True
    rows: bool = True
    fine: bool = True


ALL_STEPS = Steps()
# A power of two for each tensor, nothing else.
NO_STEPS = Steps(floats=False, equalize=False, bias=False, offsets=False, rows=False, fine=False)
