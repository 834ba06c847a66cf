"""Every family can be scored, whatever it is told, and a score lies within the bins."""

from __future__ import annotations

import pytest
import torch
from families import NAMES, batch_of, tiny
from voxfed.privacy.audit.membership import EDGES, SCORES, score_of


@pytest.mark.parametrize("name", NAMES)
def test_a_score_is_finite_and_repeats(name: str) -> None:
    """A family that the audit cannot score could never be released."""
    family = tiny(name).eval()
    known, score = score_of(family)
    with torch.no_grad():
        first, second = (score(batch_of(name, 2)) for _ in range(2))
    assert known in SCORES
    assert torch.equal(first, second)
    assert bool(((first >= EDGES[0]) & (first <= EDGES[-1])).all())
