"""The release gate: rules that check one fact each, and the verdict that follows from all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from .audit.statistics import excess_chance
from .evidence import TOGETHER, Copied, Evidence

FALSE_ALARM = 0.025  # one-sided, of each family of tests over the sites: 5 % for both families


class Verdict(StrEnum):
    """PASS may leave, WARN may leave with an officer's reason, BLOCK never leaves."""

    PASS = "PASS"  # noqa: S105, a verdict and no password
    WARN = "WARN"
    BLOCK = "BLOCK"

    @property
    def severity(self) -> int:
        """0 for PASS, 1 for WARN, 2 for BLOCK."""
        return list(Verdict).index(self)


@dataclass(frozen=True)
class Finding:
    """What one rule says.

    Attributes:
        rule: the rule's name.
        verdict: what it asks for.
        value: what was measured, if there is one number.
        limit: what it was compared with.
        detail: one sentence for the officer.
        smallest_leak: the least leak that this rule could have seen here, in words.
    """

    rule: str
    verdict: Verdict
    value: float | None
    limit: float | None
    detail: str
    smallest_leak: str = ""


class Rule(Protocol):
    """One fact, checked."""

    def check(self, evidence: Evidence) -> Finding:
        """Returns what this rule finds in the evidence."""
        ...


class TrainedWithPrivacy:
    """The plan has privacy enabled; without it BLOCK, or WARN where the approved plan allows it."""

    name = "trained with privacy"

    def check(self, evidence: Evidence) -> Finding:
        """Compares the plan's privacy.enabled with true."""
        if evidence.private:
            return Finding(self.name, Verdict.PASS, None, None, "patient-level privacy was on")
        if evidence.allowed_without_privacy:
            verdict, ending = Verdict.WARN, "; the plan that all sites approved allows it"
        else:
            verdict, ending = Verdict.BLOCK, ""
        detail = f"nothing bounds what the weights hold of a patient (got no privacy{ending})"
        return Finding(self.name, verdict, None, None, detail)


class BudgetHolds:
    """Every site's ledger, absent sites included, spent at most the plan's epsilon; else BLOCK."""

    name = "budget"

    def check(self, evidence: Evidence) -> Finding:
        """Compares the largest epsilon of any site with the plan's epsilon."""
        limit = evidence.epsilon_limit
        if not evidence.private:
            return Finding(self.name, Verdict.PASS, None, None, "no budget without privacy")
        spent = {site.name: site.epsilon for site in evidence.sites} | dict(evidence.absent)
        if not spent:
            return Finding(self.name, Verdict.BLOCK, None, limit, "no ledger was seen")
        unbounded = sorted(name for name, epsilon in spent.items() if epsilon is None)
        if unbounded:
            detail = f"no epsilon holds at {', '.join(unbounded)} (expected at most {limit:g})"
            return Finding(self.name, Verdict.BLOCK, None, limit, detail)
        most, worst = max((epsilon or 0.0, name) for name, epsilon in spent.items())
        verdict = Verdict.BLOCK if most > limit else Verdict.PASS
        detail = f"most was spent at {worst} (got {most:.4g}, expected at most {limit:g})"
        return Finding(self.name, verdict, most, limit, detail)


class WorstSiteMembership:
    """No corrected lower bound of an AUC lies above the plan's auc_block; else BLOCK.

    Compared are the lower ends of the two-sided intervals of every score, at each site and at all
    sites together, their 5 % divided among that many comparisons (Bonferroni). Unmeasured: WARN.
    """

    name = "membership, worst site"

    def check(self, evidence: Evidence) -> Finding:
        """Compares the highest of the lower bounds with auc_block."""
        limit = evidence.auc_block
        if not evidence.memberships:
            detail = "no site measured whether members can be told from non-members"
            return Finding(self.name, Verdict.WARN, None, limit, detail)
        worst = max(evidence.memberships, key=lambda found: found.corrected.low)
        if all(m.auc.low <= 0 and m.auc.high >= 1 for m in evidence.memberships):
            detail = "the noised counts say nothing about members: the groups are too small"
            return Finding(self.name, Verdict.WARN, None, limit, detail)
        low, value = worst.corrected.low, worst.auc.value
        detail = (
            f"an attacker tells members from non-members at {worst.site} with an AUC of "
            f"{value:.2f}; its corrected lower bound decides "
            f"(got {low:.2f}, expected at most {limit:.2f})"
        )
        leaks = [m.smallest_leak for m in evidence.memberships if m.smallest_leak is not None]
        smallest = (
            f"a true AUC of {min(leaks):.2f} would be blocked in 80 % of audits"
            if leaks
            else "none: with so few patients even a total leak would not be blocked reliably"
        )
        verdict = Verdict.BLOCK if low > limit else Verdict.PASS
        return Finding(self.name, verdict, low, limit, detail, smallest)


class EnoughPatients:
    """Every site's 95 % half-width of an AUC is at most the plan's auc_half_width; else WARN."""

    name = "enough patients"

    def check(self, evidence: Evidence) -> Finding:
        """Compares the widest half-width of any site and score with auc_half_width."""
        limit = evidence.auc_half_width
        found = [m for m in evidence.memberships if m.site != TOGETHER]
        if not found:
            return Finding(self.name, Verdict.WARN, None, limit, "not enough patients: no site")
        widest = max(found, key=lambda membership: membership.auc.half_width)
        width = widest.auc.half_width
        got = f"(got {width:.3f}, expected at most {limit:g})"
        if width <= limit:
            detail = f"the widest half-width of an AUC is that of {widest.site} {got}"
            return Finding(self.name, Verdict.PASS, width, limit, detail)
        detail = f"not enough patients at {widest.site}: half-width of the AUC {got}"
        return Finding(self.name, Verdict.WARN, width, limit, detail)


class Copies:
    """Memorised members do not exceed memorised non-members beyond chance; else BLOCK.

    Fisher's exact one-sided test of the two counts among equal numbers, at the usual and the strict
    threshold, for each site and for all sites together, at 2.5 % divided among these tests. Where a
    site made no search, WARN.
    """

    name = "copies of patients"

    def check(self, evidence: Evidence) -> Finding:
        """Compares the smallest p-value with 2.5 % / number of tests."""
        found = {site.name: site.copied for site in evidence.sites if site.copied}
        if not found:
            return Finding(self.name, Verdict.WARN, None, None, "no site searched for copies")
        found[TOGETHER] = _sum(list(found.values()))
        limit = FALSE_ALARM / (2 * len(found))
        chances = {name: _chance(copied) for name, copied in found.items()}
        worst = min(chances, key=chances.__getitem__)
        copied, chance = found[worst], chances[worst]
        unseen = [site.name for site in evidence.sites if site.copied is None]
        blocked = chance <= limit
        verdict = Verdict.BLOCK if blocked else Verdict.WARN if unseen else Verdict.PASS
        detail = (
            f"{'the model hands out' if blocked else 'no proof of'} copies of its patients: "
            f"{copied.members} of {copied.compared} members and {copied.non_members} of "
            f"{copied.compared} non-members at {worst} (got p = {chance:.2g}, expected above "
            f"{limit:.2g})"
        )
        if unseen and not blocked:
            detail += f"; not searched at {', '.join(unseen)}"
        return Finding(self.name, verdict, chance, limit, detail, _smallest_copying(found, limit))


class AuditComplete:
    """Every site that trained answered the audit.

    One missing is a WARN, since the proof of epsilon still covers its patients; without privacy
    nothing does, and it is a BLOCK, as is an audit that nobody answered.
    """

    name = "audit complete"

    def check(self, evidence: Evidence) -> Finding:
        """Compares the number of sites that answered with the number that trained."""
        answered = len(evidence.sites)
        trained = answered + len(evidence.absent)
        if answered == trained and answered:
            detail = f"all {answered} sites that trained, as the coordinator states, answered"
            return Finding(self.name, Verdict.PASS, answered, trained, detail)
        warned = answered and evidence.private
        names = ", ".join(sorted(evidence.absent)) or "every site"
        detail = f"no answer from {names} (got {answered}, expected {trained} sites)"
        verdict = Verdict.WARN if warned else Verdict.BLOCK
        return Finding(self.name, verdict, answered, trained, detail)


class PatientUnit:
    """No site's volumes stand as pseudo-patients; else WARN: no claim about patients holds."""

    name = "unit is the patient"

    def check(self, evidence: Evidence) -> Finding:
        """Compares each site's pseudo_patients with false."""
        names = ", ".join(site.name for site in evidence.sites if site.pseudo_patients)
        if not names:
            return Finding(self.name, Verdict.PASS, None, None, "volumes are grouped by patient")
        detail = f"volumes stand as pseudo-patients at {names}: no patient-level claim holds"
        return Finding(self.name, Verdict.WARN, None, None, detail)


RULES: tuple[Rule, ...] = (
    TrainedWithPrivacy(),
    BudgetHolds(),
    WorstSiteMembership(),
    Copies(),
    EnoughPatients(),
    AuditComplete(),
    PatientUnit(),
)


def decide(evidence: Evidence) -> tuple[Verdict, list[Finding]]:
    """Returns the gravest verdict and what every rule found, the gravest first."""
    findings = sorted(
        (rule.check(evidence) for rule in RULES), key=lambda finding: -finding.verdict.severity
    )
    return findings[0].verdict, findings


def _chance(copied: Copied) -> float:
    return min(
        excess_chance(copied.members, copied.non_members, copied.compared),
        excess_chance(copied.strict_members, copied.strict_non_members, copied.compared),
    )


def _sum(found: Sequence[Copied]) -> Copied:
    """Returns the counts of all sites; sites that differ only make the test more careful."""
    return Copied(
        sum(c.samples for c in found),
        sum(c.compared for c in found),
        sum(c.members for c in found),
        sum(c.non_members for c in found),
        sum(c.strict_members for c in found),
        sum(c.strict_non_members for c in found),
    )


def _smallest_copying(found: Mapping[str, Copied], limit: float) -> str:
    n = max(copied.compared for copied in found.values())
    for members in range(1, n + 1):
        if excess_chance(members, 0, n) <= limit:
            return f"{members} memorised members of {n}, with no memorised non-member"
    return "none: with so few patients not even copies of all of them would be beyond chance"
