"""Public training learns, repeats to the bit, stops in time, and moves as Adam says."""

import math

import pytest
import torch
from torch import nn
from voxfed.models.base import NO_CONDITION, Batch, Condition, Family, Step
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
    return fit(family, "autoencoder", Batch(balls(16)), generator=draws, **chosen)  # type: ignore[arg-type]


def test_it_learns_more_than_the_mean_volume() -> None:
    family, volumes = make(), balls(16)
    run(family)
    error = (family.reconstruct(Batch(volumes)) - volumes).abs().mean()
    assert error < 0.5 * (volumes - volumes.mean(0)).abs().mean()


def test_the_same_generator_gives_the_same_weights() -> None:
    first, second = make(), make()
    assert run(first, steps=3) == run(second, steps=3)
    state = second.state_dict()
    assert all(torch.equal(weight, state[name]) for name, weight in first.state_dict().items())


def test_it_stops_in_time_and_reports_each_step() -> None:
    """Long before the hours that all steps would take, and not before the first."""
    seen: list[int] = []
    run(
        make(),
        steps=10**6,
        seconds=0.5,
        progress=lambda step, steps, loss: seen.append(step),
    )
    assert 0 < len(seen) < 10**6
    assert seen == list(range(1, len(seen) + 1))


def test_divergence_is_an_error() -> None:
    with pytest.raises(ProcessError, match="diverged"):
        run(make(), learning_rate=1e20)


class Point(Family):
    """One number whose loss is half its square, so that its gradient is itself."""

    stages = ("point",)
    shape = balls(1).shape[2:]

    def __init__(self, decays: tuple[float, float]) -> None:
        super().__init__()
        self.decays, self.place = decays, nn.Parameter(torch.ones(()))

    def steps(self, stage: str) -> tuple[Step, ...]:
        return (Step(stage, ("place",), False, self.loss, decays=self.decays),)

    def loss(self, batch: None, generator: torch.Generator) -> torch.Tensor:
        return self.place.square()[None] / 2

    def sample(
        self, n: int, *, condition: Condition = NO_CONDITION, generator: torch.Generator
    ) -> torch.Tensor:
        return self.place.expand(n, 1, 1, 1, 1)


@pytest.mark.parametrize("decays", [(0.0, 0.9), (0.9, 0.999)])
def test_a_step_brings_the_decays_of_its_averages(decays: tuple[float, float]) -> None:
    """Oracle: Kingma and Ba 2015, algorithm 1, by hand, on the schedule's rates."""
    family, steps = Point(decays), 6
    draws = torch.Generator().manual_seed(0)
    fit(family, "point", Batch(balls(1)), steps=steps, batch=1, learning_rate=0.3, generator=draws)
    place, first, second = 1.0, 0.0, 0.0
    for t in range(1, steps + 1):
        rate = 0.3 * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * (t - 1) / steps)))
        first = decays[0] * first + (1 - decays[0]) * place
        second = decays[1] * second + (1 - decays[1]) * place**2
        size = math.sqrt(second / (1 - decays[1] ** t)) + 1e-8
        place -= rate * first / (1 - decays[0] ** t) / size
    assert family.place.item() == pytest.approx(place, rel=1e-4)
