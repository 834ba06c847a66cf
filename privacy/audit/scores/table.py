"""The scores by name: the only place where they are joined."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import membership
from . import (
    critic,
    denoising,
    domias,
    gradient,
    inversion,
    likelihood,
    nearest,
    reconstruction,
)
from .score import FITTED, REFERENCED, Context, Score

if TYPE_CHECKING:
    from ....models.base import Family

SCORES: tuple[Score, ...] = (
    *reconstruction.SCORES,
    *likelihood.SCORES,
    *denoising.SCORES,
    *critic.SCORES,
    *inversion.SCORES,
    *gradient.SCORES,
    *nearest.SCORES,
    *domias.SCORES,
)


NAMES = (
    frozenset(score.name for score in SCORES) | FITTED | REFERENCED | frozenset(membership.SCORES)
)


def applicable(family: Family, context: Context) -> tuple[Score, ...]:
    """Return the scores that fit a family and whose needs the context meets."""
    return tuple(
        score
        for score in SCORES
        if score.fits(family) and all(getattr(context, part) for part in score.needs)
    )
