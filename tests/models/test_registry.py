"""A study file's family and settings become one model, the same on every machine."""

from typing import Any

import pytest
import torch
from voxfed.models import registry
from voxfed.study.errors import PlanError
from voxfed.study.plan import StudyPlan

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
