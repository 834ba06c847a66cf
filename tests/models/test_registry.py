"""A study file's family and settings become one model, the same on every machine."""

from typing import Any

import pytest
import torch
from families import tiny_plan
from voxfed.models import registry
from voxfed.models.vae import Vae, VaeSpec
from voxfed.study.errors import PlanError
from voxfed.study.plan import PrivacySettings, StudyPlan

SETTINGS = {"channels": [8, 16], "groups": 4}


def plan(
    settings: dict[str, Any], family: str = "vae", side: int = 8, name: str = "a"
) -> StudyPlan:
    text = f"""
        name = "{name}"
        family = "{family}"
        rounds = 1
        local_steps = 1
        expected_patients = 3
        [volumes]
        shape = [{side}, 8, 8]
        spacing = [6.0, 6.0, 6.0]
        [optimiser]
        learning_rate = 0.001
        [privacy]
    """
    return StudyPlan.from_text(text.encode()).model_copy(update={"settings": settings})


def test_the_same_plan_builds_the_same_weights_to_the_bit() -> None:
    """Global randomness neither moves the weights nor is moved by building them."""
    torch.manual_seed(1)
    first = registry.build(plan(SETTINGS)).state_dict()
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = registry.build(plan(SETTINGS)).state_dict()
    assert all(torch.equal(first[name], tensor) for name, tensor in second.items())
    assert torch.equal(torch.get_rng_state(), before)
    other = registry.build(plan(SETTINGS, name="b")).state_dict()
    assert any(not torch.equal(first[name], tensor) for name, tensor in other.items())


def test_every_wrong_setting_is_named_at_once() -> None:
    wrong = {"channels": [8, 12], "groups": 8, "kl_wight": 0.1, "code": "x"}
    with pytest.raises(PlanError) as caught:
        registry.check(plan(wrong))
    text = caught.value.message
    assert "3 wrong keys" in text
    assert "kl_weight" in text
    assert "[12]" in text
    assert "code" in text


def test_a_side_that_does_not_halve_is_refused_with_the_multiple() -> None:
    with pytest.raises(PlanError, match="multiples of 4"):
        registry.check(plan(SETTINGS, side=10))
    registry.check(plan(SETTINGS, side=12))


def test_unknown_family_and_shape_among_settings_are_refused() -> None:
    with pytest.raises(PlanError, match="got gan, expected vae, "):
        registry.build(plan({}, family="gan"))
    with pytest.raises(PlanError, match="unknown key"):
        registry.check(plan({"shape": [8, 8, 8]}))


def test_each_family_is_described_and_counts_its_parameters() -> None:
    rows = registry.describe()
    assert tuple(row.name for row in rows) == registry.names()
    family = registry.build(
        plan({}, side=64).model_copy(
            update={"volumes": plan({}).volumes.model_copy(update={"shape": (64, 64, 64)})}
        )
    )
    assert rows[0].parameters == sum(weight.numel() for weight in family.parameters())
    assert rows[0].stages == family.stages


def test_a_family_that_cannot_be_private_says_why_and_gets_no_budget(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`voxfed models` tells the reason; a plan with a budget is refused with it, others are not."""
    reason = "its critic compares patients with each other"
    entry = registry.Entry(Vae, VaeSpec, "VAE", "nobody", obstacle=reason)
    monkeypatch.setattr(registry, "FAMILIES", {"vae": registry.FAMILIES["vae"], "planted": entry})
    assert [row.privacy for row in registry.describe()] == ["yes", f"no: {reason}"]
    private = plan(SETTINGS, family="planted")
    assert private.privacy.enabled
    for function in (registry.check, registry.build, registry.schedule_of):
        with pytest.raises(PlanError, match=f"cannot be trained with privacy .got {reason}") as why:
            function(private)
        assert "voxfed models" in why.value.hint
    open_plan = private.model_copy(update={"privacy": PrivacySettings(enabled=False)})
    registry.build(open_plan)
    registry.check(plan(SETTINGS))


CLASS = {"kind": "class", "column": "sex", "values": ["F", "M", "X"], "weights": [1, 1, 2]}


def conditioned(name: str, **condition: Any) -> StudyPlan:
    return tiny_plan(name, (8, 8, 8), condition=condition)


def test_the_condition_stands_in_one_place() -> None:
    """What is read at the sites and what the network takes cannot differ."""
    spec = registry.check(conditioned("wgan-gp", **CLASS))
    assert (spec.condition, spec.classes, spec.weights) == ("class", 3, (1, 1, 2))
    assert registry.conditioning(conditioned("diffusion", **CLASS)).weights == (1, 1, 2)
    assert registry.conditioning(tiny_plan("diffusion")).kind == "none"
    with pytest.raises(PlanError, match=r"settings.classes: unknown key"):
        registry.check(plan({"classes": 3}, family="wgan-gp"))


def test_a_condition_that_the_family_does_not_take_is_refused() -> None:
    """Of three ways to be wrong: it takes none, it takes another, it needs one."""
    with pytest.raises(PlanError, match="told another condition"):
        registry.check(conditioned("vae", **CLASS))
    with pytest.raises(PlanError, match="condition"):
        registry.check(conditioned("wgan-gp", kind="mask", structures=3))
    with pytest.raises(PlanError, match=r"told another condition \(got none, expected source\)"):
        registry.check(plan({"channels": [8, 8]}, family="pix2pix"))


def test_tasks_are_what_can_be_told() -> None:
    tasks = {row.name: row.tasks for row in registry.describe()}
    assert tasks["vae"] == ("unconditional",)
    assert tasks["cycle-gan"] == ("translation",)
    assert tasks["pix2pix"] == ("translation", "mask to image")
    assert "class" in tasks["vq-transformer"]


def staged(**stages: int) -> StudyPlan:
    """A plan of a family with two stages, 3 rounds each but for those in `stages`."""
    codes = {"channels": [8, 8], "groups": 4, "entries": 16, "width": 4}
    made = plan({"codes": codes, "prior_channels": 8}, family="vqvae")
    return made.model_copy(update={"rounds": 3, "stages": stages})


@pytest.mark.parametrize(
    ("stages", "rounds"),
    [
        ({}, [3, 3]),
        ({"prior": 5}, [3, 5]),
        ({"codes": 0}, [0, 3]),
        ({"codes": 1, "prior": 0}, [1, 0]),
    ],
)
def test_a_stage_may_have_rounds_of_its_own(stages: dict[str, int], rounds: list[int]) -> None:
    """What is left out has the plan's; a stage of 0 rounds keeps its place and its turns."""
    found = registry.schedule_of(staged(**stages)).stages
    assert [(stage.name, stage.rounds) for stage in found] == [
        ("codes", rounds[0]),
        ("prior", rounds[1]),
    ]
    assert all(stage.turns == 1 for stage in found)


def test_stages_that_the_family_has_not_are_refused() -> None:
    """And so is a study in which nothing is trained at all."""
    with pytest.raises(PlanError, match="got diffusion, expected codes or prior"):
        registry.schedule_of(staged(prior=2, diffusion=4))
    with pytest.raises(PlanError, match="every stage has 0 rounds"):
        registry.schedule_of(staged(codes=0, prior=0))
