"""A nudge away from first weights: many are zero, and what lies behind a zero cannot be seen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

SIZE = 0.05


@contextmanager
def nudged(network: nn.Module) -> Iterator[None]:
    """Move every weight by a fixed draw of N(0, SIZE^2), and put it back to the bit at the end."""
    generator = torch.Generator().manual_seed(0)
    kept = [(weight, weight.detach().clone()) for weight in network.parameters()]
    try:
        with torch.no_grad():
            for weight, before in kept:
                noise = torch.randn(before.shape, generator=generator)
                weight.add_(SIZE * noise.to(weight))
        yield
    finally:
        with torch.no_grad():
            for weight, before in kept:
                weight.copy_(before)
