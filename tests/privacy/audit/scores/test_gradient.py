"""The gradient's norm, against a closed form and on every family."""

import math

import pytest
import torch
from families import batch_of, tiny
from torch import Tensor
from voxfed.models.base import Batch, Step
from voxfed.models.registry import FAMILIES
from voxfed.privacy.audit.scores.gradient import DRAWS, SCORES, gradient_norm
from voxfed.privacy.audit.scores.score import Context

(SCORE,) = SCORES


class Linear(torch.nn.Module):
    """Learns to give 1 for a volume; one turn adds noise to the answer, one reads nobody."""

    stages = ("first", "last")

    def __init__(self, noise: float = 1.0) -> None:
        super().__init__()
        self.noise = noise
        self.weight = torch.nn.Parameter(torch.linspace(-1, 1, 8))
        self.constant = torch.nn.Parameter(torch.tensor(0.25))

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Return half the squared error of a noised answer."""
        drawn = torch.randn(len(batch.volumes), generator=generator)
        answer = batch.volumes.flatten(1) @ self.weight + self.constant
        return (answer - 1 + self.noise * drawn).square() / 2

    def steps(self, stage: str) -> tuple[Step, ...]:
        """Return two turns that read patients and one that does not, in the last stage."""
        if stage == "first":
            return (Step("early", ("weight",), True, self.loss),)
        return (
            Step("weights", ("weight",), True, self.loss),
            Step("constants", ("constant",), True, self.loss),
            Step("blind", ("weight",), False, self.loss),
        )


def volume(seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(torch.randn((1, 1, 2, 2, 2), generator=generator))


def test_the_norm_is_that_of_the_mean_gradient() -> None:
    """For a linear model it is |mean error| times the length of the volume, and of 1."""
    family, batch = Linear(), volume()
    flat = batch.volumes.flatten()
    generator = torch.Generator().manual_seed(5)
    noise = torch.cat([torch.randn(1, generator=generator) for _ in range(2 * DRAWS)])
    clean = float((flat @ family.weight + family.constant - 1).detach())
    first, second = (clean + float(part.mean()) for part in noise.split(DRAWS))
    step = family.steps("last")[0]
    found = gradient_norm(step, [family.weight], batch, torch.Generator().manual_seed(5))
    assert float(found) == pytest.approx(abs(first) * float(flat.norm()), rel=1e-5)
    score = SCORE.prepare(family, Context(seed=5))(batch)
    assert float(score) == pytest.approx(-math.hypot(first * float(flat.norm()), second), rel=1e-5)


def test_what_the_model_fits_has_a_small_gradient() -> None:
    """Trained on six volumes, it scores each of them above each of six others."""
    family, volumes = Linear(noise=0.0), [volume(seed) for seed in range(12)]
    table = torch.cat([one.volumes.flatten(1) for one in volumes])
    known = torch.cat([table[:6], torch.ones(6, 1)], 1)
    solution = torch.linalg.lstsq(known, torch.ones(6, 1), driver="gelsd").solution
    with torch.no_grad():
        family.weight.copy_(solution[:8, 0])
        family.constant.copy_(solution[8, 0])
    measure = SCORE.prepare(family, Context(seed=0))
    scores = [float(measure(one)) for one in volumes]
    assert min(scores[:6]) > max(scores[6:])


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_a_gradient(name: str) -> None:
    """It is a finite number, the same each time, and leaves weights and random numbers alone."""
    family = tiny(name, (8, 8, 8)).eval()
    assert SCORE.fits(family)
    batch, state = batch_of(name, 1, (8, 8, 8)), torch.get_rng_state()
    before = {key: value.clone() for key, value in family.state_dict().items()}
    measure = SCORE.prepare(family, Context(seed=9))
    with torch.no_grad():
        first, second = measure(batch), measure(batch)
    assert first.shape == (1,)
    assert torch.isfinite(first).all()
    assert first < 0
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[key], value) for key, value in family.state_dict().items())
    assert all(weight.grad is None for weight in family.parameters())
