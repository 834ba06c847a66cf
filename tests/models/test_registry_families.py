"""What every family promises: the contract of models/base.py, one test over all of them."""

from __future__ import annotations

import pytest
import torch
from families import NAMES, SHAPE, TINY, TOLD, batch_of, tiny, tiny_plan, told
from voxfed.models.base import Batch, Condition, Family
from voxfed.models.fitting import fit
from voxfed.models.registry import FAMILIES, check, describe, schedule_of
from voxfed.models.state import from_bytes, load_into, tensors_of, to_bytes
from voxfed.privacy.inspection import inspect_family
from voxfed.study.errors import PlanError, Refusal, VolumeError, WireError

pytestmark = pytest.mark.parametrize("name", NAMES)


DRAWS_NOTHING = ("pix2pix", "cycle-gan")
PRIVACY = {row.name: row.privacy for row in describe()}
AGE = {"kind": "attributes", "columns": ["age"], "ranges": [[20.0, 90.0]]}


def draws(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def refusal(name: str, shape: tuple[int, int, int]) -> str:
    """Return why a shape is refused, or nothing."""
    try:
        check(tiny_plan(name, shape))
    except PlanError as fault:
        return fault.message
    return ""


def test_it_passes_inspection(name: str) -> None:
    """No loss mixes volumes, nothing moves but by gradients, and blind steps are blind."""
    family = tiny(name)
    with torch.no_grad():
        for weight in family.parameters():  # away from zeros, so that every path is open
            weight.add_(0.03 * torch.randn(weight.shape, generator=draws()))
    inspect_family(family, SHAPE)


def usual(name: str) -> tuple[Family, tuple[int, int, int]]:
    """Return a family at the settings that a plan leaves out, and the least cube it takes."""
    entry = FAMILIES[name]
    for side in (8, 16, 32):
        try:
            spec = entry.spec.checked({"shape": [side] * 3}, file="", error=PlanError)
        except PlanError:
            continue
        return entry.family(spec), (side, side, side)
    raise AssertionError(f"{name} takes no cube of up to 32 voxels a side")


def test_voxfed_models_says_of_privacy_what_inspection_finds(name: str) -> None:
    """Yes stands there only for a network that keeps patients apart, at its default settings."""
    family, shape = usual(name)
    try:
        inspect_family(family, shape)
        found = "yes"
    except Refusal:
        found = "no: "
    assert PRIVACY[name].startswith(found)


def test_samples_are_volumes(name: str) -> None:
    """Different ones, in range, without a graph; that they repeat is held below."""
    drawn = tiny(name).eval().sample(2, condition=told(name, 2), generator=draws())
    assert drawn.shape == (2, 1, *SHAPE)
    assert drawn.dtype == torch.float32
    assert bool((drawn.abs() <= 1).all())
    assert not torch.equal(drawn[0], drawn[1])
    assert not drawn.requires_grad


def test_all_randomness_is_the_generators(name: str) -> None:
    """Losses and samples are the same bits whatever the global state, which stays as it is."""
    family, batch, found = tiny(name).eval(), batch_of(name, 2), []
    steps = [step for stage in family.stages for step in family.steps(stage)]
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        losses = [s.loss(batch if s.reads_patients else None, draws()) for s in steps]
        drawn = family.sample(2, condition=batch.condition, generator=draws())
        assert torch.equal(torch.get_rng_state(), before)
        found.append([*losses, drawn])
    assert all(torch.equal(first, second) for first, second in zip(*found, strict=True))
    other = family.sample(2, condition=batch.condition, generator=draws(4))
    assert torch.equal(drawn, other) == (name in DRAWS_NOTHING)


def test_a_condition_that_was_not_asked_for_is_refused(name: str) -> None:
    """Nor may one be left out that is needed."""
    wrong = Condition(attributes=torch.zeros(1, 1))
    with pytest.raises(PlanError):
        tiny(name).sample(1, condition=wrong, generator=draws())
    if name in TOLD:
        with pytest.raises(PlanError):
            tiny(name).sample(1, generator=draws())
        with pytest.raises(PlanError):
            check(
                tiny_plan(
                    name,
                    condition=AGE,
                )
            )


def test_the_state_is_its_tensors(name: str) -> None:
    """What travels and what is released rebuilds the family bit for bit; there is no buffer."""
    family, other = tiny(name).eval(), tiny(name).eval()
    with torch.no_grad():
        for weight in family.parameters():
            weight.add_(0.01)
    load_into(other, from_bytes(to_bytes(tensors_of(family))))
    first, second = (
        one.sample(1, condition=told(name, 1), generator=draws()) for one in (family, other)
    )
    assert torch.equal(first, second)
    assert list(family.buffers()) == []
    with pytest.raises(WireError):
        load_into(other, dict(list(tensors_of(family).items())[1:]))


def test_a_few_turns_reduce_the_loss_of_every_step(name: str) -> None:
    """Each step learns from balls while the others stand still, as its optimiser is set."""
    family, public = tiny(name), batch_of(name, 16)
    weights = dict(family.named_parameters())
    for step in (s for stage in family.stages for s in family.steps(stage)):
        given = public if step.reads_patients else None
        moved = [weights[x] for x in step.parameters]
        optimiser = torch.optim.Adam(moved, 3e-3, betas=step.decays)
        before = step.loss(given, draws()).mean().item()
        for seed in range(30):
            optimiser.zero_grad()
            step.loss(given, draws(10 + seed)).mean().backward(inputs=moved)
            optimiser.step()
        after = step.loss(given, draws()).mean().item()
        # the least that was seen is 8 %, of VQ-GAN's critic; most fall by half
        assert after < before - 0.05 * abs(before)


@pytest.mark.parametrize("shape", [(8, 8, 8), (9, 11, 13), (16, 8, 24)])
def test_a_shape_is_trained_and_sampled_or_refused(name: str, shape: tuple[int, int, int]) -> None:
    """Sides from tiny to odd: nothing but these two happens."""
    if fault := refusal(name, shape):
        assert "shape" in fault
        return
    family = tiny(name, shape)
    for step in (s for stage in family.stages for s in family.steps(stage)):
        losses = step.loss(batch_of(name, 2, shape) if step.reads_patients else None, draws())
        assert losses.ndim == 1
        assert bool(torch.isfinite(losses).all())
    drawn = family.sample(1, condition=told(name, 1, shape), generator=draws())
    assert drawn.shape == (1, 1, *shape)


def test_the_schedule_counts_what_reads_patients(name: str) -> None:
    """Accounting charges each of these turns, and no other stage is taken for one of them."""
    plan, family = tiny_plan(name), tiny(name)
    for stage in schedule_of(plan).stages:
        turns = sum(s.repeats for s in family.steps(stage.name) if s.reads_patients)
        assert (stage.rounds, stage.turns) == (2, turns)
        assert turns >= 1
    with pytest.raises(PlanError, match="no such stage"):
        family.steps("no such stage")


def test_the_tiny_settings_are_of_this_family(name: str) -> None:
    assert set(TINY[name]) <= set(FAMILIES[name].spec.model_fields)


@pytest.mark.parametrize("shape", [(2, *SHAPE), (1, 8, 8, 8), (1, 16, 12, 8)])
def test_volumes_of_another_shape_are_refused(name: str, shape: tuple[int, ...]) -> None:
    """Some networks take them without a word, and would learn from what is no volume of theirs."""
    family = tiny(name)
    with pytest.raises(VolumeError, match="do not fit the model"):
        fit(
            family,
            family.stages[0],
            Batch(torch.zeros((2, *shape)), told(name, 2)),
            steps=1,
            batch=1,
            learning_rate=1e-3,
            generator=draws(),
        )
