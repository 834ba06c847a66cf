"""What the release gate decides from: plain facts, and the plan's limits beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .audit.statistics import Interval

TOGETHER = "all sites together"


@dataclass(frozen=True)
class Copied:
    """Patients of whom a copy was found by one likeness, in equal numbers of both groups.

    Attributes:
        samples: synthetic volumes that were searched.
        compared: patients of each group.
        members: of them, patients who trained and look copied.
        non_members: of them, held-out patients who look copied.
        strict_members: as `members`, at the strict threshold.
        strict_non_members: as `non_members`, at the strict threshold.
    """

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
class Rate:
    """Members found by one score while at most 1 % of non-members are taken for one.

    Attributes:
        site: the site, or TOGETHER.
        score: the score's name.
        found: the share, its interval corrected for the number of comparisons.
    """

    site: str
    score: str
    found: Interval


@dataclass(frozen=True)
class LowerBound:
    """What the guesses of one score prove about epsilon.

    Attributes:
        site: the site, or TOGETHER.
        score: the score's name.
        general: holds for any mechanism (Steinke et al. 2023).
        gaussian: holds if the mechanism is a Gaussian one (Mahloujifar et al. 2024).
        cap: the most that so many patients could prove by the general form.
        gaussian_cap: and by the Gaussian form.
        canaries: whether the coins are those of the site's canaries, and not of its patients.
    """

    site: str
    score: str
    general: float
    gaussian: float
    cap: float
    gaussian_cap: float
    canaries: bool = False

    @property
    def place(self) -> str:
        """Whose coins were guessed, in words."""
        return f"{self.site}, canaries" if self.canaries else self.site


@dataclass(frozen=True)
class SiteEvidence:
    """What else the gate knows of a site that answered the audit.

    Attributes:
        name: the site.
        epsilon: what its ledger spent in this study, in its signed reply; None where nothing
            bounds it.
        copied: the search for copies by likeness; empty where the site made none.
        confirmed: members of whom two likenesses confirm a copy.
        confirmed_held_out: the same of held-out patients, of whom there can be none.
        samples: synthetic volumes that were searched.
        trained: the patients who trained, where the site's search says so.
        pseudo_patients: whether its volumes stand as patients of their own.
    """

    name: str
    epsilon: float | None
    copied: Mapping[str, Copied]
    confirmed: int
    confirmed_held_out: int
    samples: int
    trained: int | None
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
        rate_block: the plan's limit on the corrected lower bound of a rate at 1 % false alarms.
        delta: the plan's.
        sites: the sites that answered.
        blind: the AUCs of the blind baseline, corrected for their own number.
        rates: members found at 1 % false alarms, where that can be stated.
        bounds: lower bounds on epsilon, where counts are exact; those of canaries always are.
        memberships: one for each score and site, and one for each score and TOGETHER, where each
            patient is compared within the own site.
        absent: sites that trained and did not answer, with the epsilon of their last signed reply.
    """

    private: bool
    allowed_without_privacy: bool
    epsilon_limit: float
    auc_block: float
    auc_half_width: float
    rate_block: float
    delta: float
    sites: tuple[SiteEvidence, ...]
    memberships: tuple[Membership, ...]
    blind: tuple[Membership, ...]
    rates: tuple[Rate, ...]
    bounds: tuple[LowerBound, ...]
    absent: Mapping[str, float | None]
