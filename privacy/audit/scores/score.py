"""What a membership score is: who could compute it, what it means, and how it is prepared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from torch import Tensor

    from ....models.base import Batch, Family

    Measure = Callable[[Batch], Tensor]


BLIND, FUSED, RMIA, LIRA = "blind baseline", "fused", "RMIA", "LiRA"
FITTED = frozenset({BLIND, FUSED})
"""Scores that a site fits to its own members and non-members, by cross-validation."""
HALVED = frozenset({"DOMIAS", "calibrated inversion"})
"""Scores that take half of those held out for reference: members are compared with the others."""
REFERENCED = frozenset({RMIA, LIRA})
"""Scores beside reference models that a site trains for them."""


class Threat(StrEnum):
    """What an attacker holds; each holds what those before it hold too."""

    SAMPLES = "samples only"
    QUERIES = "queries"
    WEIGHTS = "final weights"
    ROUNDS = "all rounds"


@dataclass(frozen=True)
class Context:
    """What scores are prepared with beside the model.

    Attributes:
        seed: from the digest of the weights, from 0 to 2^63 - 1.
        made: synthetic volumes (M, C, D, H, W) with what they were told.
        reference: volumes of held-out patients who are not compared, each a batch of one.
        extractor: from volumes (B, C, D, H, W) to an embedding (B, F), trained by contrast.
    """

    seed: int
    made: Batch | None = None
    reference: Sequence[Batch] = ()
    extractor: Callable[[Tensor], npt.NDArray[np.floating]] | None = None

    def draws(self) -> torch.Generator:
        """Return a new generator that draws the same for every patient, model and device."""
        import torch

        return torch.Generator().manual_seed(self.seed)


@dataclass(frozen=True)
class Score:
    """One way to tell members from non-members.

    Attributes:
        name: what it is called in a report.
        threat: what an attacker needs who computes it.
        what: what it measures, in words for a privacy officer.
        paper: where it comes from.
        fits: whether a family offers what it asks.
        prepare: returns the measure: of a batch of one volume on the model's device with its
            condition, (1,), higher where the volume is more like a member. It depends on nothing
            but the batch, the weights and the context.
        needs: parts of the context without which it cannot be prepared.
    """

    name: str
    threat: Threat
    what: str
    paper: str
    fits: Callable[[Family], bool]
    prepare: Callable[[Family, Context], Measure]
    needs: tuple[str, ...] = ()
