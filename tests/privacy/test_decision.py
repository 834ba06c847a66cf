"""What an officer can and cannot sign."""

from typing import Any

import pytest
from voxfed.privacy.decision import read_decision, sign_approval, sign_rejection
from voxfed.study.errors import Refusal, UsageError, VerificationError
from voxfed.study.identity import sign_envelope, statement

DIGEST, OTHER = "a" * 64, "b" * 64
UNIT = "unit_is_the_patient"
FEW = {"enough_patients": "a pilot", "surely_found_members": "a pilot"}


def approve(people: Any, report: Any, **reasons: str) -> bytes:
    told = {rule.replace("_", " "): reason for rule, reason in reasons.items()}
    key = people.keys["officer"]
    return sign_approval(DIGEST, report.findings, officer="officer", reasons=told, key=key)


def reject(people: Any, reason: str) -> bytes:
    return sign_rejection(DIGEST, officer="officer", reason=reason, key=people.keys["officer"])


def test_each_warning_needs_a_reason_that_is_kept(scene: Any, plan: Any) -> None:
    """One word for all warnings would let an officer pass what was not read."""
    people = scene(pseudo=("north",))
    report = people.report(plan())
    for reasons in ({}, FEW, {**FEW, UNIT: " "}):
        with pytest.raises(Refusal, match=r"each WARN needs your reason: .*unit is the patient"):
            approve(people, report, **reasons)
    envelope = approve(people, report, **FEW, **{UNIT: "no patient is named"})
    read = read_decision(envelope, people.keys["officer"].public, DIGEST, what="it")
    assert read.decision == "approve"
    assert read.reasons == {
        "enough patients": "a pilot",
        "surely found members": "a pilot",
        "unit is the patient": "no patient is named",
    }


def test_a_reason_for_what_does_not_warn_is_refused(scene: Any, plan: Any) -> None:
    """A misspelt rule must not look like a reason that was given."""
    people = scene()
    with pytest.raises(UsageError, match=r"for no warning of this audit \(got budget"):
        approve(people, people.report(plan()), **FEW, budget="fine")


def test_a_clean_release_needs_no_reason(scene: Any, plan: Any, copies: Any) -> None:
    people = scene(patients=150, copies=copies(3, 4, 150))
    assert approve(people, people.report(plan()))


def test_a_blocked_release_cannot_be_approved_only_rejected(
    scene: Any, plan: Any, copies: Any
) -> None:
    people = scene(copies=copies(10, 0))
    report = people.report(plan())
    with pytest.raises(Refusal, match="blocked by the rule 'copies of patients'"):
        approve(people, report, copies_of_patients="the board wants it")
    assert reject(people, "it copies patients")


def test_a_rejection_needs_a_reason_too(scene: Any) -> None:
    people = scene()
    with pytest.raises(UsageError, match="needs a reason"):
        reject(people, " ")
    with pytest.raises(UsageError, match="too long"):
        reject(people, "x" * 2001)


def test_a_decision_holds_for_one_release_and_one_officer(scene: Any, plan: Any) -> None:
    people = scene()
    envelope = approve(people, people.report(plan()), **FEW)
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
