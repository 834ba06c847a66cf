"""Neighbour replay: the same step with and without one patient, before noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args
from unittest.mock import patch

from torch import Tensor

from ...study.errors import VerificationError
from .. import engine, sampling
from .specimen import SETTINGS, Passes, Reading, Specimen

LIMIT = 1 + 1e-5
"""In units of C over the divisor; the rest is float32, since another batch rounds otherwise."""

LEAST = 0.99
"""The patient with the largest gradient must move the release by as much as clipping allows."""


def read() -> Reading:
    """Measure how far one patient moves the release before noise, in units of C / divisor.

    Every patient of the specimen's cohort is removed in turn, from the whole cohort and from a
    pair with each other patient, in each kind of passes; the worst counts. The draws are
    the same with and without the patient: everybody takes part.

    Guarantee:
        No alarm without a fault: nothing here is drawn at random.
    Assumes:
        What is replaced, the draw and the noise, is examined by other instruments.

    Raises:
        VerificationError: the engine did not take the passes that were to be measured.
    """
    found = {passes: _farthest(passes) for passes in get_args(Passes)}
    worst = max(found, key=lambda passes: found[passes][0])
    moved, patient = found[worst]
    detail = f"{patient} moves {moved:.6g} C / divisor, passes {worst}"
    # Nobody moving anything is no engine either, and a NaN is below no limit.
    return Reading(moved, LIMIT, not LEAST <= moved <= LIMIT, detail)


def _farthest(passes: Passes) -> tuple[float, str]:
    specimen = Specimen(passes)
    if specimen.gradients.passes != passes:
        raise VerificationError(
            "the engine does not take the passes that the self-test measures",
            got=specimen.gradients.passes,
            expected=passes,
        )
    everybody = tuple(specimen.cohort)
    pairs = [(one, other) for one in everybody for other in everybody if one != other]
    with (
        patch.object(sampling, "poisson", lambda patients, rate: list(patients)),
        patch.object(engine, "add_noise", _none),
    ):
        whole = specimen.release(everybody)
        moves = [
            (_distance(whole, specimen.release([p for p in everybody if p != one])), one)
            for one in everybody
        ]
        alone = {one: specimen.release([one]) for one in everybody}
        moves += [(_distance(specimen.release(pair), alone[pair[1]]), pair[0]) for pair in pairs]
    return max(moves, key=lambda move: (math.isnan(move[0]), move[0]))


def _distance(first: Tensor, second: Tensor) -> float:
    return float((first - second).norm()) * SETTINGS.divisor / SETTINGS.clip_norm


def _none(total: Sequence[Tensor], deviation: float) -> list[Tensor]:
    return list(total)
