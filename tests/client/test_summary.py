"""Summary: an operator reads what leaves and what waits before deciding."""

from __future__ import annotations

from typing import Any

from voxfed.client.permission import Permission, number_of, permit
from voxfed.client.summary import summary

ASKED = Permission("a" * 64, 2, 0, "weights sha256 aaaa")


def test_a_plan_with_evaluations_says_that_their_figures_are_exact(large_hospital: Any) -> None:
    """What epsilon does not cover stands in the line that the operator reads."""
    found = summary(large_hospital.site, large_hospital.approval)
    assert "EXACT figures of at most 2 evaluations" in found["what leaves"]
    assert "epsilon does not cover them" in found["what leaves"]
    assert found["waiting"] == "nothing"


def test_what_waits_is_named_with_its_digest(large_hospital: Any) -> None:
    """The digest that an operator compares is shown before it is allowed, and gone after."""
    site, approval = large_hospital.site, large_hospital.approval
    number_of(approval, "evaluation", ASKED)
    waiting = summary(site, approval)["waiting"]
    assert waiting == "evaluation of round 2: weights sha256 aaaa (allow it with --evaluation)"
    permit(site, approval, "evaluation")
    assert summary(site, approval)["waiting"] == "nothing"


def test_a_plan_without_evaluations_says_nothing_of_them(hospital: Any) -> None:
    """Nothing is announced that will not leave."""
    assert "evaluations" not in summary(hospital.site, hospital.approval)["what leaves"]
