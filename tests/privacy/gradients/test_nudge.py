"""The nudge: weights move, and come back to the bit."""

import pytest
import torch
from torch import nn
from voxfed.privacy.gradients.nudge import nudged


def test_weights_move_and_come_back() -> None:
    layer = nn.Linear(3, 3)
    nn.init.zeros_(layer.weight)
    before = [p.detach().clone() for p in layer.parameters()]

    def stumble() -> None:
        with nudged(layer):
            assert bool(layer.weight.all())
            raise RuntimeError("stumbled")

    with pytest.raises(RuntimeError, match="stumbled"):
        stumble()
    assert all(torch.equal(a, b) for a, b in zip(before, layer.parameters(), strict=True))
