"""Public training learns, repeats to the bit, and stops in time."""

import time

import pytest
import torch
from voxfed.models.fitting import fit
from voxfed.models.vae import Vae, VaeSpec
from voxfed.study.errors import ProcessError


def make() -> Vae:
    torch.manual_seed(0)
    return Vae(VaeSpec(shape=(8, 8, 8), channels=(8,), groups=4, code=4, kl_weight=0.01))


def balls(n: int) -> torch.Tensor:
    """Return n bright balls of random radius on black, (n, 1, 8, 8, 8)."""
    radii = torch.linspace(1.5, 4.0, n).reshape(-1, 1, 1, 1, 1)
    line = torch.arange(8.0) - 3.5
    squares = line[:, None, None] ** 2 + line[:, None] ** 2 + line**2
    return (squares.sqrt() < radii).float() * 2 - 1


def run(family: Vae, **settings: object) -> float:
    chosen = {"steps": 80, "batch": 4, "learning_rate": 1e-2, **settings}
    draws = torch.Generator().manual_seed(0)
    return fit(family, "autoencoder", balls(16), generator=draws, **chosen)  # type: ignore[arg-type]


def test_it_learns_more_than_the_mean_volume() -> None:
    family, volumes = make(), balls(16)
    run(family)
    error = (family.reconstruct(volumes) - volumes).abs().mean()
    assert error < 0.5 * (volumes - volumes.mean(0)).abs().mean()


def test_the_same_generator_gives_the_same_weights() -> None:
    first, second = make(), make()
    assert run(first, steps=3) == run(second, steps=3)
    state = second.state_dict()
    assert all(torch.equal(weight, state[name]) for name, weight in first.state_dict().items())


def test_it_stops_in_time_and_reports_each_step() -> None:
    seen: list[int] = []
    began = time.monotonic()
    run(
        make(),
        steps=10**6,
        seconds=0.5,
        progress=lambda step, steps, loss: seen.append(step),
    )
    assert time.monotonic() - began < 10  # far below the hours of a million steps
    assert seen == list(range(1, len(seen) + 1))


def test_divergence_is_an_error() -> None:
    with pytest.raises(ProcessError, match="diverged"):
        run(make(), learning_rate=1e20)
