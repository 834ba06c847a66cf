"""Finding: what one rule of the release gate says, and the verdict that it asks for."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """PASS may leave, WARN may leave with an officer's reason, INVALID and BLOCK never leave.

    INVALID says that the audit cannot tell: its members and non-members differ by more than their
    training. Another audit, of another study, may.
    """

    PASS = "PASS"  # noqa: S105, a verdict and no password
    WARN = "WARN"
    INVALID = "INVALID"
    BLOCK = "BLOCK"

    @property
    def severity(self) -> int:
        """0 for PASS, 1 for WARN, 2 for INVALID, 3 for BLOCK."""
        return list(Verdict).index(self)

    @property
    def closes(self) -> bool:
        """Whether no officer can open the gate."""
        return self in (Verdict.INVALID, Verdict.BLOCK)


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
