"""Tests of models/groups.py."""

from __future__ import annotations

import pytest
from voxfed.models.registry import FAMILIES
from voxfed.study.errors import PlanError

SHAPE = {"shape": [32, 32, 32]}
WITH_GROUPS = sorted(
    name
    for name, entry in FAMILIES.items()
    if {"groups", "channels"} <= set(entry.spec.model_fields)
    and entry.spec.model_fields["channels"].annotation is not int
)


@pytest.mark.parametrize("name", WITH_GROUPS)
def test_default_groups_must_divide_chosen_channels(name: str) -> None:
    """Widths chosen without groups are an error in the study file, not a crash in the build."""
    spec = FAMILIES[name].spec
    default = spec.checked(SHAPE, file="x", error=PlanError)
    odd = [width + 1 for width in default.channels]
    with pytest.raises(PlanError, match=r"groups: .*does not divide channels"):
        spec.checked({**SHAPE, "channels": odd}, file="x", error=PlanError)


def test_some_families_have_groups() -> None:
    """The test above is not empty."""
    assert len(WITH_GROUPS) >= 5
