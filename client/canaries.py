"""Canaries: phantom patients that a site adds to a study, to prove how much the model keeps."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from ..privacy import sampling
from ..study.errors import Refusal
from ..study.messages import ScoreCounts

if TYPE_CHECKING:
    from .warm import Warm


class Canaries(BaseModel):
    """The canaries of one study at one site; they stand apart from its patients everywhere.

    Attributes:
        seed: what their volumes are made from, which are in no file.
        names: all of them.
        members: those whose coin fell heads: they train.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    seed: int = 0
    names: tuple[str, ...] = ()
    members: tuple[str, ...] = ()

    @property
    def held_out(self) -> tuple[str, ...]:
        """Canaries whose coin fell tails: they never train."""
        members = set(self.members)
        return tuple(name for name in self.names if name not in members)


def draw_canaries(n: int, patients: Collection[str]) -> Canaries:
    """Draw the seed of n canaries and flip a coin for each.

    Raises:
        Refusal: a patient has a canary's name; known before a coin falls.
    """
    names = tuple(f"canary-{number:03d}" for number in range(1, n + 1))
    taken = sorted(set(names) & set(patients))
    if taken:
        raise Refusal(
            "a patient is named like a canary of this study",
            got=taken[0],
            hint="rename the patient's folder",
        )
    coins = sampling.flip(n)
    members = tuple(name for name, heads in zip(names, coins, strict=True) if heads)
    return Canaries(seed=secrets.randbits(63) if n else 0, names=names, members=members)


def audit_canaries(warm: Warm, seed: int) -> dict[str, ScoreCounts]:
    """Return the exact histograms of the canaries' scores, heads as members, by the score's name.

    Guarantee:
        They follow from the weights and from phantoms alone: post-processing of what the ledger
        has charged, so they cost no budget and need no noise.

    Raises:
        VolumeError: a score is not finite.
    """
    from ..privacy.audit.attack import attack_apart

    canaries = warm.approval.manifest.canaries
    if not canaries.names:
        return {}
    members, held_out = (
        {name: warm.scans.batches(name) for name in group}
        for group in (canaries.members, canaries.held_out)
    )
    return attack_apart(warm.trainer.family, members, held_out, seed)
