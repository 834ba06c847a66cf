"""The release gate: rules that check one fact each, and the verdict that follows from all."""

from __future__ import annotations

from typing import Protocol

from .evidence import Evidence
from .finding import Finding, Verdict
from .rules.answers import AuditComplete, PatientUnit
from .rules.budget import BudgetHolds, TrainedWithPrivacy
from .rules.copies import Copies, EnoughSamples
from .rules.membership import (
    BelowCeiling,
    BlindBaseline,
    EnoughPatients,
    LowFalseAlarms,
    WorstSiteMembership,
)


class Rule(Protocol):
    """One fact, checked."""

    def check(self, evidence: Evidence) -> Finding:
        """Returns what this rule finds in the evidence."""
        ...


RULES: tuple[Rule, ...] = (
    TrainedWithPrivacy(),
    BudgetHolds(),
    BlindBaseline(),
    WorstSiteMembership(),
    LowFalseAlarms(),
    BelowCeiling(),
    Copies(),
    EnoughSamples(),
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
