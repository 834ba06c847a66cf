"""Neighbour replay: the same step with and without one patient, before noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args
from unittest.mock import patch

from torch import Tensor

from ...study.errors import VerificationError
from .. import engine, sampling
from .specimen import SETTINGS, Passes, Reading, Specimen

LIMIT = 1 + 1e-5
"""In units of C over the divisor; the rest is float32, since another batch rounds otherwise."""

_WAYS = {"one": "one pass", "two": "two passes", "alone": "patient by patient"}


def read() -> Reading:
    """Measure how far one patient moves the release before noise, in units of C / divisor.

    Every patient of the specimen's cohort is removed in turn, from the whole cohort and from a
    pair with each other patient, in each way to the gradients; the worst counts. The draws are
    the same with and without the patient: everybody takes part.

    Guarantee:
        No alarm without a fault: nothing here is drawn at random.
    Assumes:
        What is replaced, the draw and the noise, is examined by other instruments.

    Raises:
        VerificationError: the engine did not take the way that was to be measured.
    """
    found = {way: _farthest(way) for way in get_args(Passes)}
    worst = max(found, key=lambda way: found[way][0])
    moved, patient = found[worst]
    detail = f"{patient} moves {moved:.6g} C / divisor, {_WAYS[worst]}"
    return Reading(moved, LIMIT, moved > LIMIT, detail)


def _farthest(passes: Passes) -> tuple[float, str]:
    specimen = Specimen(passes)
    if specimen.gradients.way != _WAYS[passes]:
        raise VerificationError(
            "the engine does not take the way that the self-test measures",
            got=specimen.gradients.way,
            expected=_WAYS[passes],
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
    return max(moves)


def _distance(first: Tensor, second: Tensor) -> float:
    return float((first - second).norm()) * SETTINGS.divisor / SETTINGS.clip_norm


def _none(total: Sequence[Tensor], deviation: float) -> list[Tensor]:
    return list(total)
