"""Rules on what bounds the leak: privacy in training, and the budget that was spent."""

from __future__ import annotations

from ..evidence import Evidence
from ..finding import Finding, Verdict


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
