"""Refusal: the one word that leaves the site for whatever went wrong."""

from __future__ import annotations

from ..study.errors import (
    BudgetExhausted,
    CohortChanged,
    DiskError,
    LimitRefusal,
    PlanError,
    ProcessError,
    Refusal,
    VerificationError,
    VoxfedError,
    WireError,
)
from ..study.messages import RefusalCode


class Coded(Refusal):
    """A refusal whose code the coordinator is told."""

    def __init__(self, code: RefusalCode, what: str) -> None:
        super().__init__(what)
        self.code = code


def code_of(fault: BaseException) -> RefusalCode:
    """Return the one word that may leave the site for a fault."""
    if isinstance(fault, Coded):
        return fault.code
    codes: tuple[tuple[type[VoxfedError], RefusalCode], ...] = (
        (BudgetExhausted, RefusalCode.BUDGET),
        (LimitRefusal, RefusalCode.LIMITS),
        (CohortChanged, RefusalCode.COHORT_CHANGED),
        (VerificationError, RefusalCode.SIGNATURE),
        (WireError, RefusalCode.GARBLED),
        (PlanError, RefusalCode.GARBLED),
        (DiskError, RefusalCode.DISK),
        (ProcessError, RefusalCode.DEVICE),
        (Refusal, RefusalCode.OTHER_REQUEST),
    )
    for kind, code in codes:
        if isinstance(fault, kind):
            return code
    return RefusalCode.INTERNAL
