"""cycle-GAN: every turn reads both modalities, keeps patients apart, and translates."""

import pytest
import torch
from voxfed.models.base import Batch, Condition
from voxfed.models.cycle_gan import CycleGan, CycleGanSpec
from voxfed.models.fitting import fit
from voxfed.study.errors import PlanError

SHAPE = (8, 8, 12)
SMALL = {"channels": (8, 16), "critic_channels": 8, "critic_layers": 1, "groups": 4}


def make(**settings: object) -> CycleGan:
    torch.manual_seed(0)
    return CycleGan(CycleGanSpec(**{"shape": SHAPE, **SMALL, **settings}))


def pairs(n: int) -> Batch:
    """Sources, and targets that are their negatives."""
    source = torch.rand((n, 1, *SHAPE), generator=torch.Generator().manual_seed(1)) * 2 - 1
    return Batch(-source, Condition(source=source))


def draws() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_every_step_reads_and_keeps_pairs_apart() -> None:
    family, batch = make(), pairs(2)
    for step in family.steps("adversarial"):
        assert step.reads_patients
        losses = step.loss(batch, draws())
        assert losses.shape == (2,)
        other = pairs(2)
        other.volumes[1] = 1.0
        second = step.loss(other, draws())
        assert losses[0].item() == pytest.approx(second[0].item(), rel=1e-4)


def test_it_answers_each_source_and_repeats_to_the_bit() -> None:
    family, batch = make().eval(), pairs(2)
    first, second = (
        family.sample(2, condition=batch.condition, generator=draws()) for _ in range(2)
    )
    assert first.shape == (2, 1, *SHAPE)
    assert torch.equal(first, second)
    assert not torch.equal(first[0], first[1])


def test_a_wrong_condition_is_refused() -> None:
    for condition in (Condition(), Condition(label=torch.tensor([0]))):
        with pytest.raises(PlanError):
            make().sample(1, condition=condition, generator=draws())


def test_it_needs_pairs_to_train() -> None:
    with pytest.raises(PlanError):
        fit(
            make(),
            "adversarial",
            pairs(2).volumes,
            steps=1,
            batch=2,
            learning_rate=1e-3,
            generator=draws(),
        )
