"""The critic's score by hand, on a critic whose scores of its own samples are known."""

import math

import pytest
import torch
from families import tiny
from torch import Tensor
from voxfed.models.base import Batch, Condition
from voxfed.privacy.audit.scores.critic import OWN, SCORES, own_scale
from voxfed.privacy.audit.scores.score import Context
from voxfed.study.errors import VolumeError


class Brightness(torch.nn.Module):
    """Finds bright volumes real; its own samples have mean 0.25 and standard deviation 0.5."""

    def __init__(self, zero: float = 0.0, unit: float = 1.0) -> None:
        super().__init__()
        self.zero, self.unit = zero, unit

    def criticise(self, batch: Batch) -> Tensor:
        return self.zero + self.unit * batch.volumes.flatten(1).mean(1)

    def sample(self, n: int, *, condition: Condition, generator: torch.Generator) -> Tensor:
        line = torch.linspace(-1, 1, n)
        means = 0.25 + 0.5 * line / line.std()
        return means.reshape(-1, 1, 1, 1, 1).expand(n, 1, 8, 8, 8)


@pytest.mark.parametrize(("zero", "unit"), [(0.0, 1.0), (-10.0, 1.0), (3.0, 100.0), (0.0, 0.01)])
def test_it_is_told_in_spreads_of_own_samples(zero: float, unit: float) -> None:
    """Whatever zero and unit the critic drifted to."""
    measure = SCORES[0].prepare(Brightness(zero, unit), Context(seed=0))  # type: ignore[arg-type]
    found = measure(Batch(torch.full((1, 1, 8, 8, 8), 0.75)))
    assert found.tolist() == pytest.approx([1.0], rel=1e-4)


def test_the_scale_is_that_of_own_samples() -> None:
    """Oracle: the family's own samples and critic, drawn by hand."""
    family = tiny("wgan-gp").eval()
    draws = torch.Generator().manual_seed(3)
    scores = family.criticise(  # type: ignore[operator]
        Batch(family.sample(OWN, generator=torch.Generator().manual_seed(3)))
    )
    assert own_scale(family, draws) == pytest.approx((float(scores.mean()), float(scores.std())))


@pytest.mark.parametrize("name", ["pix2pix", "cycle-gan"])
def test_a_translators_critic_keeps_its_scale(name: str) -> None:
    """Its own samples need images, of which none is public by itself."""
    family = tiny(name).eval()
    assert own_scale(family, torch.Generator()) == (0, 1)


def test_a_critic_that_is_damaged_is_refused() -> None:
    with pytest.raises(VolumeError, match="not finite"):
        own_scale(Brightness(math.nan), torch.Generator())  # type: ignore[arg-type]
