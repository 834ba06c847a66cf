"""What an officer can and cannot sign."""

from typing import Any

import pytest
from voxfed.privacy.decision import read_decision, sign_decision
from voxfed.study.errors import Refusal, UsageError, VerificationError
from voxfed.study.identity import sign_envelope, statement

DIGEST, OTHER = "a" * 64, "b" * 64


def sign(people: Any, report: Any, decision: str, reason: str) -> bytes:
    return sign_decision(
        DIGEST,
        report.findings,
        officer="officer",
        decision=decision,
        reason=reason,
        key=people.keys["officer"],
    )


def test_a_warning_needs_a_reason_that_is_kept(scene: Any, plan: Any) -> None:
    people = scene()
    report = people.report(plan())
    with pytest.raises(Refusal, match="needs your reason: enough patients"):
        sign(people, report, "approve", "  ")
    envelope = sign(people, report, "approve", "research use only")
    key = people.keys["officer"].public
    read = read_decision(envelope, key, DIGEST, what="it")
    assert (read.decision, read.reason) == ("approve", "research use only")
    assert read.warnings == ("enough patients",)


def test_a_clean_release_needs_no_reason(scene: Any, plan: Any, copies: Any) -> None:
    people = scene(patients=150, copies=copies(3, 4, 150))
    assert sign(people, people.report(plan()), "approve", "")


def test_a_blocked_release_cannot_be_approved_only_rejected(
    scene: Any, plan: Any, copies: Any
) -> None:
    people = scene(copies=copies(10, 0))
    report = people.report(plan())
    with pytest.raises(Refusal, match="blocked by the rule 'copies of patients'"):
        sign(people, report, "approve", "the board wants it")
    assert sign(people, report, "reject", "it copies patients")


def test_a_rejection_needs_a_reason_too(scene: Any, plan: Any) -> None:
    people = scene()
    with pytest.raises(UsageError, match="needs a reason"):
        sign(people, people.report(plan()), "reject", "")
    with pytest.raises(UsageError, match="too long"):
        sign(people, people.report(plan()), "reject", "x" * 2001)


def test_a_decision_holds_for_one_release_and_one_officer(scene: Any, plan: Any) -> None:
    people = scene()
    envelope = sign(people, people.report(plan()), "approve", "fine")
    with pytest.raises(VerificationError, match="another release"):
        read_decision(envelope, people.keys["officer"].public, OTHER, what="it")
    with pytest.raises(VerificationError, match="not signed"):
        read_decision(envelope, people.keys["second"].public, DIGEST, what="it")


def test_another_statement_of_the_officer_is_no_decision(scene: Any) -> None:
    """A signature given for something else cannot be used as an approval."""
    key = scene().keys["officer"]
    subjects = {"attestation.dsse.json": DIGEST}
    other = sign_envelope(statement(subjects, "https://other.example/v1", {}), key)
    with pytest.raises(VerificationError, match="another kind of statement"):
        read_decision(other, key.public, DIGEST, what="it")
    empty = sign_envelope(statement(subjects, "https://voxfed.org/decision/v1", {}), key)
    with pytest.raises(VerificationError, match="no decision"):
        read_decision(empty, key.public, DIGEST, what="it")
