"""Figures: what leaves a site is of a group, finite, and in known words."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from voxfed.study.figures import FigureRow, Intensities


@pytest.mark.parametrize(
    "change", [{"group": "patient 7"}, {"name": "a\nb"}, {"n": 4}, {"value": float("nan")}]
)
def test_a_figure_names_no_patient(change: dict[str, Any]) -> None:
    """Groups are sexes and bands of age, and nothing is told of fewer than five."""
    row = {"name": "KID", "group": "all", "value": 1.0, "low": 0.0, "high": 2.0, "n": 5}
    row |= {"real": None, "better": "lower"}
    FigureRow.model_validate(row)
    with pytest.raises(ValidationError):
        FigureRow.model_validate(row | change)


@pytest.mark.parametrize("shares", [(1.5,), (-0.1,), (0.0,) * 65])
def test_shares_are_shares(shares: tuple[float, ...]) -> None:
    """A histogram holds shares in a few bins, not anybody's voxels."""
    Intensities(samples=(0.25, 0.75), held_out=(1.0,))
    with pytest.raises(ValidationError):
        Intensities(samples=shares, held_out=(1.0,))
