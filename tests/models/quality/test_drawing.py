"""Drawing: what a conditional model is told comes from held-out patients, in turn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from families import balls, tiny
from torch import Tensor
from voxfed.models.base import NO_CONDITION, Batch, Condition, Family
from voxfed.models.conditioning import Conditioning
from voxfed.models.quality.drawing import draw

SHAPE = (8, 8, 8)


class Echo(Family):
    """Draws the very source that it is told."""

    stages = ("only",)

    def __init__(self) -> None:
        super().__init__()
        self.spec: Any = type("Spec", (), {"conditioning": Conditioning("source", 2, 1, SHAPE)})()

    def steps(self, stage: str) -> tuple[Any, ...]:
        return ()

    def sample(
        self, n: int, *, condition: Condition = NO_CONDITION, generator: torch.Generator
    ) -> Tensor:
        assert condition.source is not None
        return condition.source


def test_conditions_are_taken_in_turn() -> None:
    """Each held-out image is translated before one is translated again."""
    sources = balls(3, SHAPE)
    held_out = [Batch(x[None], Condition(source=x[None])) for x in sources]
    drawn = draw(Echo(), held_out, 5, seed=1)
    assert drawn.visits == [0, 1, 2, 0, 1]
    assert torch.equal(drawn.volumes, sources[[0, 1, 2, 0, 1]])
    assert drawn.array.shape == (5, 1, *SHAPE)


@pytest.mark.parametrize("seed", [3, 4])
def test_a_seed_fixes_the_volumes(seed: int) -> None:
    """Sites draw the same volumes of one set of weights, and others of another."""
    family = tiny("vae", SHAPE).eval()
    held_out = [Batch(balls(1, SHAPE))]
    first, again, other = (draw(family, held_out, 2, seed=s) for s in (seed, seed, seed + 7))
    assert np.array_equal(first.array, again.array)
    assert not np.array_equal(first.array, other.array)
    assert first.visits == []
