"""Rules on who answered the audit, and for whom."""

from __future__ import annotations

from ..evidence import Evidence
from ..finding import Finding, Verdict


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
