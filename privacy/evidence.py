"""What the release gate decides from: plain facts, and the plan's limits beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .audit.statistics import Interval

TOGETHER = "all sites together"


@dataclass(frozen=True)
class Copied:
    """Patients of whom a copy was found, among equal numbers of members and non-members."""

    samples: int
    compared: int
    members: int
    non_members: int
    strict_members: int
    strict_non_members: int


@dataclass(frozen=True)
class Membership:
    """How well one score tells one site's members from its non-members.

    Attributes:
        site: the site, or TOGETHER.
        score: the score's name.
        auc: AUC with its 95 % interval.
        corrected: the same AUC, its interval corrected for the number of comparisons (Bonferroni).
        smallest_leak: least true AUC that would be blocked in 80 % of audits, if there is one.
    """

    site: str
    score: str
    auc: Interval
    corrected: Interval
    smallest_leak: float | None


@dataclass(frozen=True)
class SiteEvidence:
    """What else the gate knows of a site that answered the audit.

    Attributes:
        name: the site.
        epsilon: what its ledger spent in this study, in its signed reply; None where nothing
            bounds it.
        copied: the search for copies, if the site made one.
        pseudo_patients: whether its volumes stand as patients of their own.
    """

    name: str
    epsilon: float | None
    copied: Copied | None
    pseudo_patients: bool


@dataclass(frozen=True)
class Evidence:
    """The plain facts of one audit, the plan's limits beside them.

    Attributes:
        private: whether the study trained under the privacy engine.
        allowed_without_privacy: whether the approved plan lets a model without it be released.
        epsilon_limit: the plan's epsilon.
        auc_block: the plan's limit on the corrected lower bound of an AUC.
        auc_half_width: the plan's widest half-width that may pass.
        sites: the sites that answered.
        memberships: one for each score and site, and one for each score and TOGETHER, where each
            patient is compared within the own site.
        absent: sites that trained and did not answer, with the epsilon of their last signed reply.
    """

    private: bool
    allowed_without_privacy: bool
    epsilon_limit: float
    auc_block: float
    auc_half_width: float
    sites: tuple[SiteEvidence, ...]
    memberships: tuple[Membership, ...]
    absent: Mapping[str, float | None]
