"""How the reduction is cut into chunks."""

from __future__ import annotations

import numpy as np

from oneshot_ml2.spaces.full.knobs import HEAD_DOUBLING, HEAD_SINGLE, HEAD_WHOLE
from oneshot_ml2.spaces.full.tiles import chunk_starts


def test_chunks_cover_the_reduction() -> None:
    for ci in range(1, 40):
        for chunk in range(1, ci + 1):
            for head in (HEAD_WHOLE, HEAD_SINGLE, HEAD_DOUBLING):
                starts = chunk_starts(ci, chunk, head)
                sizes = np.diff(starts)
                assert starts[0] == 0 and starts[-1] == ci
                assert (sizes > 0).all() and (sizes <= chunk).all()
