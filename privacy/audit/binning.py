"""Bins of one score at one site, as fine as its patients allow, and blind to who is a member."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ...study.errors import UsageError

FEWEST = 4
MOST = 256
_DIGITS = 3
_LARGEST = 1e150  # differences still fit into a float


def quantile_bins(
    members: Sequence[float], non_members: Sequence[float], *, fewest: int = FEWEST
) -> tuple[float, ...]:
    """Returns the edges of bins that hold at least `fewest` patients each, from low to high.

    Inner edges lie half-way between two neighbouring scores of members and non-members together,
    rounded to 3 significant digits of the middle half's width. Bins that rounding or equal scores
    leave too small are joined; fewer than 2 x `fewest` patients share one bin. Scores beyond the
    outer edges belong to the end bins (`membership.histogram` puts them there): an outer edge is
    one such width away from the next, so that it tells nobody's extreme score.

    Guarantee:
        The edges are the same whoever of the patients trained. They are not private: each follows
        from two patients' scores.

    Args:
        members: one finite score a member.
        non_members: one finite score a held-out patient.
        fewest: the least number of patients in a bin.

    Raises:
        UsageError: if there is no score, or one is not finite.
    """
    scores = np.sort(np.concatenate([np.asarray(members), np.asarray(non_members)]).astype(float))
    if not scores.size or not (np.abs(scores) < _LARGEST).all():
        raise UsageError(
            "scores cannot be binned", got=f"{scores.size} scores", expected="some, all finite"
        )
    width = _width(scores)
    digits = _DIGITS - 1 - math.floor(math.log10(width))
    size = max(fewest, math.ceil(scores.size / MOST))
    inner: list[float] = []
    below = 0
    for k in range(size, scores.size - size + 1):
        edge = round(float(scores[k - 1] / 2 + scores[k] / 2), digits)
        under = int(np.searchsorted(scores, edge, side="left"))
        if under - below >= size and scores.size - under >= size:
            inner.append(edge)
            below = under
    if not inner:
        middle = round(float(np.median(scores)), digits)
        return (middle - width, middle + width)
    return (round(inner[0] - width, digits), *inner, round(inner[-1] + width, digits))


def _width(scores: npt.NDArray[np.float64]) -> float:
    """Returns the width of the middle half; of all, or the size of one, where scores are equal."""
    low, high = np.quantile(scores, [0.25, 0.75])
    return float(high - low) or float(scores[-1] - scores[0]) or max(1.0, abs(float(scores[0])))
