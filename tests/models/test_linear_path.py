"""The linear path and the filters are what they say: codes of cells, and bands by scale."""

import pytest
import torch
from voxfed.models.linear_path import BAND_GAIN, CELLS, LinearPath, TimedFilters, waves


@pytest.mark.parametrize("sides", [(4, 6, 5), (8, 7)])
def test_shapes_in_three_and_two_dimensions(sides: tuple[int, ...]) -> None:
    seen, time = torch.randn(2, 3, *sides), torch.tensor([0.1, 0.9])
    guess = LinearPath(5, 2, 3, sides, 4)(seen, time, torch.ones(2, 5))
    assert guess.shape == (2, 2, *sides)
    assert TimedFilters(2, 3)(seen, time).shape == (2, 2, *sides)


def test_large_grids_are_read_and_guessed_coarsely() -> None:
    path = LinearPath(2, 1, 1, (33, 32, 32), 0)
    assert path.sides == (9, 8, 8)
    assert path.reader.in_features <= CELLS
    assert path(torch.zeros(1, 1, 33, 32, 32), torch.zeros(1), None).shape == (1, 1, 33, 32, 32)


def test_the_guess_is_linear_in_what_is_seen() -> None:
    """Oracle: superposition, once the guess at nothing is taken away."""
    torch.manual_seed(0)
    path = LinearPath(3, 1, 1, (4, 4, 4), 0)
    first, second = torch.randn(2, 1, 1, 4, 4, 4)
    time = torch.tensor([0.4])
    none = path(torch.zeros_like(first), time, None)
    both = path(first + 2 * second, time, None) - none
    apart = path(first, time, None) - none + 2 * (path(second, time, None) - none)
    assert torch.allclose(both, apart, atol=1e-5)


def test_filters_say_nothing_at_first_and_then_what_their_bands_hold() -> None:
    """By hand: the coarsest band of a constant is the constant; the finest passes all."""
    filters, seen = TimedFilters(1, 1), torch.randn(1, 1, 8, 8, 8)
    time = torch.tensor([0.3])
    assert filters(seen, time).abs().max() == 0
    with torch.no_grad():
        filters.gains.bias.copy_(torch.tensor([1.0, 0, 0]) / BAND_GAIN)
    assert torch.allclose(filters(seen, time), seen)
    with torch.no_grad():
        filters.gains.bias.copy_(torch.tensor([0, 0, 1.0]) / BAND_GAIN)
    assert torch.allclose(filters(torch.full_like(seen, 0.7), time), torch.full_like(seen, 0.7))
    checkers = (torch.arange(8) % 2).float() * 2 - 1
    fine = checkers[:, None, None] * checkers[:, None] * checkers * torch.ones_like(seen)
    assert filters(fine, time).abs().max() < 1e-6


def test_waves_are_cosines_of_whole_half_turns() -> None:
    assert torch.allclose(waves(torch.zeros(1)), torch.ones(1, 8))
    assert torch.allclose(waves(torch.ones(1))[0, :3], torch.tensor([1.0, -1, 1]), atol=1e-6)
