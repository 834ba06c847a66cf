"""Rules on what attacks tell of who trained."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..audit.ceiling import auc_ceiling
from ..audit.scores.score import FUSED
from ..evidence import TOGETHER, Evidence, Membership
from ..finding import Finding, Verdict


class BlindBaseline:
    """Images alone, without the model, do not tell members from non-members; else INVALID.

    Where they do, the groups differ by more than their training, and no other score says what the
    model leaks. A site that did not measure it, as with noised counts: WARN.
    """

    name = "blind baseline"

    def check(self, evidence: Evidence) -> Finding:
        """Compares the highest corrected lower bound of the blind AUCs with 0.5."""
        limit = 0.5
        if not evidence.blind:
            detail = "nobody tested whether images alone tell members from non-members"
            return Finding(self.name, Verdict.WARN, None, limit, detail)
        worst = max(evidence.blind, key=lambda found: found.corrected.low)
        low = worst.corrected.low
        got = f"(AUC {worst.auc.value:.2f}, lower bound {low:.2f}, expected at most {limit})"
        if low > limit:
            detail = (
                f"the audit is invalid: at {worst.site} members and non-members differ in their "
                f"images alone {got}"
            )
            return Finding(self.name, Verdict.INVALID, low, limit, detail)
        detail = f"images alone do not tell members from non-members {got}"
        unseen = _unmeasured(evidence, evidence.blind)
        if unseen:
            detail += f"; not tested at {', '.join(unseen)}: too few patients, or left out"
        verdict = Verdict.WARN if unseen else Verdict.PASS
        return Finding(self.name, verdict, low, limit, detail)


class WorstSiteMembership:
    """No corrected lower bound of an AUC lies above the plan's auc_block; else BLOCK.

    Compared are the lower ends of the two-sided intervals of every score, at each site and at all
    sites together, their 5 % divided among that many comparisons (Bonferroni). A site that is not
    measured, or has too few patients for even a total leak to be blocked reliably: WARN.
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
        unseen = _unmeasured(evidence, evidence.memberships)
        if unseen:
            detail += f"; not measured at {', '.join(unseen)}"
        power, stated = _power(evidence.memberships)
        verdict = Verdict.WARN if unseen or not stated else Verdict.PASS
        verdict = Verdict.BLOCK if low > limit else verdict
        return Finding(self.name, verdict, low, limit, detail, power)


def _unmeasured(evidence: Evidence, found: Sequence[Membership]) -> list[str]:
    """Returns the sites that answered without any of these scores."""
    return sorted({site.name for site in evidence.sites} - {one.site for one in found})


def _power(found: Sequence[Membership]) -> tuple[str, bool]:
    """Returns the leak that would be seen at the worst site and together, and if each has one."""
    least: dict[str, float | None] = {}
    for one in found:
        leaks = [x for x in (least.get(one.site), one.smallest_leak) if x is not None]
        least[one.site] = min(leaks, default=None)
    worst = max(least, key=lambda site: math.inf if least[site] is None else least[site] or 0.0)
    together = least.get(TOGETHER)
    words = [_leak(worst, least[worst])]
    if worst != TOGETHER and together is not None:
        words.append(_leak(TOGETHER, together))
    return "; ".join(words), least[worst] is not None


def _leak(place: str, leak: float | None) -> str:
    if leak is None:
        return (
            f"none at {place}: with so few patients not even a total leak would surely be blocked"
        )
    return f"at {place} a true AUC of {leak:.2f} would be blocked in 80 % of audits"


class LowFalseAlarms:
    """Few members are surely found at 1 % false alarms; else BLOCK.

    Compared is the lower end of Clopper and Pearson's interval, corrected as the AUCs are. It takes
    300 non-members to be stated; with fewer: WARN.
    """

    name = "surely found members"

    def check(self, evidence: Evidence) -> Finding:
        """Compares the highest corrected lower bound with rate_block."""
        limit = evidence.rate_block
        if not evidence.rates:
            detail = "fewer than 300 non-members: no rate at 1 % false alarms can be stated"
            return Finding(self.name, Verdict.WARN, None, limit, detail, "none: not stated")
        worst = max(evidence.rates, key=lambda found: found.found.low)
        low = worst.found.low
        detail = (
            f"at {worst.site} {worst.found.value:.1%} of the members are found at 1 % false "
            f"alarms (lower bound {low:.1%}, expected at most {limit:.1%})"
        )
        verdict = Verdict.BLOCK if low > limit else Verdict.PASS
        return Finding(self.name, verdict, low, limit, detail)


class BelowCeiling:
    """No attack beats what the claimed epsilon allows; else the engine is at fault: BLOCK.

    Compared are each site's corrected lower bounds of AUCs with the most that (epsilon, delta)
    allows, and the lower bounds on epsilon, which hold for any mechanism, with the claim.
    """

    name = "below the claimed epsilon"

    def check(self, evidence: Evidence) -> Finding:
        """Compares the largest lower bound on epsilon with the largest claim."""
        claims = {site.name: site.epsilon for site in evidence.sites}
        claimed = {name: epsilon for name, epsilon in claims.items() if epsilon is not None}
        if not evidence.private or not claimed:
            return Finding(self.name, Verdict.PASS, None, None, "no epsilon is claimed")
        if len(claimed) == len(claims):
            claimed[TOGETHER] = max(claimed.values())
        for found in evidence.memberships:
            if found.site not in claimed:
                continue
            low = found.corrected.low
            ceiling = auc_ceiling(claimed[found.site], evidence.delta)
            if low > ceiling:
                detail = (
                    f"the privacy engine is faulty: {found.score} reaches an AUC at {found.site} "
                    f"that the claimed epsilon rules out (got {low:.3f}, expected at most "
                    f"{ceiling:.3f})"
                )
                return Finding(self.name, Verdict.BLOCK, low, ceiling, detail)
        proved = [bound for bound in evidence.bounds if bound.site in claimed]
        if not proved:
            detail = "no AUC is above what the claimed epsilon allows"
            return Finding(self.name, Verdict.PASS, None, None, detail)
        worst = max(proved, key=lambda bound: bound.general - claimed[bound.site])
        claim = claimed[worst.site]
        got = f"at {worst.place} (got {worst.general:.3g}, expected at most {claim:.3g})"
        if worst.general > claim:
            detail = f"the privacy engine is faulty: an attack proves more than was claimed {got}"
            return Finding(self.name, Verdict.BLOCK, worst.general, claim, detail)
        most = max(bound.cap for bound in proved)
        seen = f"a true epsilon far above {most:.2g}, the most that so many coins can prove"
        detail = f"no attack proves an epsilon above the claim {got}"
        return Finding(self.name, Verdict.PASS, worst.general, claim, detail, seen)


class EnoughPatients:
    """Every site's 95 % half-width of an AUC is at most the plan's auc_half_width; else WARN."""

    name = "enough patients"

    def check(self, evidence: Evidence) -> Finding:
        """Compares the widest half-width of any site and score with auc_half_width."""
        limit = evidence.auc_half_width
        found = [m for m in evidence.memberships if m.site != TOGETHER and m.score != FUSED]
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
