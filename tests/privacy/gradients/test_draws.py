"""Draws: a second pass draws what the first drew."""

import torch
from torch.nn import functional
from voxfed.privacy.gradients.draws import Draws


def drawn(draws: Draws) -> list[torch.Tensor]:
    return [torch.randn(5, generator=draws.generator), functional.dropout(torch.ones(50))]


def test_everything_is_drawn_again() -> None:
    """The generator of the loss and the global state, which dropout uses."""
    draws = Draws(torch.Generator().manual_seed(1))
    with draws.put_back():
        first = drawn(draws)
    again, other = drawn(draws), drawn(draws)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
