"""Whatever is changed in a bundle, by whomever, is found and named."""

import base64
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from voxfed.privacy.audit.report import AuditReport, build_report
from voxfed.privacy.bundle import CONTENT, EVALUATION, add_decision, bundle_digest
from voxfed.privacy.decision import ATTESTATION, DECISION_TYPE, warnings_of
from voxfed.privacy.finding import Verdict
from voxfed.privacy.verification import check_whole, examine, verify
from voxfed.study.errors import PlanError, Refusal, VerificationError
from voxfed.study.identity import sign_envelope, statement


@pytest.fixture
def approved(scene: Any, plan: Any) -> tuple[Any, Path]:
    people = scene()
    bundle = people.bundle(plan(), evaluation=people.evaluation())
    add_decision(bundle, people.decide(bundle), people.cards["officers"])
    return people, bundle


def test_an_approved_bundle_verifies(approved: tuple[Any, Path]) -> None:
    people, bundle = approved
    found = verify(bundle, **people.cards)
    assert found.verdict is Verdict.WARN
    assert found.approvals["officer"]["enough patients"] == "seen and accepted"
    assert found.digest == bundle_digest(bundle)
    assert (found.epsilon, found.delta) == (7.5, 1e-3)
    assert sorted(found.sites) == ["harbour", "north", "valley"]


FILES = (*CONTENT, EVALUATION, ATTESTATION, "decisions/officer.dsse.json")


@pytest.mark.parametrize("name", FILES)
def test_any_changed_byte_is_found(approved: tuple[Any, Path], name: str) -> None:
    """Flips bits, and swaps spaces for other white space, in 24 places of each file."""
    people, bundle = approved
    path = bundle / name
    content = path.read_bytes()
    places = {*range(0, len(content), max(1, len(content) // 20)), 1, 2, len(content) - 1}
    places |= {i for i in (content.find(b" "), content.find(b"\n"), content.find(b"=")) if i >= 0}
    places |= {i - 1 for i in (content.find(b"="), content.rfind(b"==")) if i > 0}  # unused bits
    for place in sorted(places):
        for other in {content[place] ^ 1, content[place] ^ 0x20, 0x09} - {content[place]}:
            path.write_bytes(content[:place] + bytes([other]) + content[place + 1 :])
            with pytest.raises(VerificationError):
                verify(bundle, **people.cards)
    path.write_bytes(content)
    assert verify(bundle, **people.cards)


@pytest.mark.parametrize("name", FILES)
def test_a_lengthened_shortened_or_missing_file_is_found(
    approved: tuple[Any, Path], name: str
) -> None:
    people, bundle = approved
    content = (bundle / name).read_bytes()
    for other in (content + b"\n", content[:-1], b""):
        (bundle / name).write_bytes(other)
        with pytest.raises(VerificationError):
            verify(bundle, **people.cards)
    (bundle / name).unlink()
    with pytest.raises(VerificationError):
        verify(bundle, **people.cards)


@pytest.mark.parametrize("name", [*CONTENT, EVALUATION])
def test_the_changed_file_is_named(approved: tuple[Any, Path], name: str) -> None:
    people, bundle = approved
    (bundle / name).write_bytes((bundle / name).read_bytes() + b" ")
    with pytest.raises(VerificationError, match=rf"^{name} was changed \(got sha256 "):
        verify(bundle, **people.cards)
    with pytest.raises(VerificationError, match=rf"^{name} was changed"):
        check_whole(bundle)


def test_files_that_do_not_belong_are_found(approved: tuple[Any, Path]) -> None:
    people, bundle = approved
    (bundle / "extra.py").write_text("")
    with pytest.raises(VerificationError, match=r"extra\.py does not belong"):
        verify(bundle, **people.cards)
    (bundle / "extra.py").unlink()
    target = shutil.move(bundle / "audit.html", bundle.parent / "elsewhere.html")
    (bundle / "audit.html").symlink_to(target)
    with pytest.raises(VerificationError, match=r"audit\.html is a link"):
        verify(bundle, **people.cards)


def test_only_the_coordinator_can_attest(approved: tuple[Any, Path]) -> None:
    people, bundle = approved
    cards = people.cards | {"coordinator": people.keys["north"].public}
    with pytest.raises(VerificationError, match="not signed by the expected key"):
        verify(bundle, **cards)


def test_a_rejection_stands_against_any_approval(approved: tuple[Any, Path]) -> None:
    people, bundle = approved
    add_decision(bundle, people.decide(bundle, "reject", "second"), people.cards["officers"])
    with pytest.raises(VerificationError, match="second rejected this release: seen"):
        verify(bundle, **people.cards)


def test_the_plan_sets_how_many_officers_must_approve(scene: Any, plan: Any) -> None:
    people = scene()
    bundle = people.bundle(plan(officers=2))
    for officer in ("officer", "second"):
        with pytest.raises(VerificationError, match="too few officers approved"):
            verify(bundle, **people.cards)
        envelope = people.decide(bundle, officer=officer)
        add_decision(bundle, envelope, people.cards["officers"])
    assert len(verify(bundle, **people.cards).approvals) == 2


NAMED = """
hospitals = {hospitals}
[release.named.officer]
hospital = "harbour"
key = "{officer}"
[release.named.second]
hospital = "north"
key = "{second}"
"""


def test_the_plan_names_the_officers_and_their_hospitals(scene: Any, plan: Any) -> None:
    """Who may open the gate is what every site approved, not what the coordinator enrols."""
    people = scene()
    keys = {name: people.keys[name].public.text for name in ("officer", "second")}
    bundle = people.bundle(plan(more=NAMED.format(hospitals='["north"]', **keys)))
    add_decision(bundle, people.decide(bundle), people.cards["officers"])
    with pytest.raises(VerificationError, match=r"is missing \(got harbour, expected north\)"):
        verify(bundle, **people.cards)
    add_decision(bundle, people.decide(bundle, officer="second"), people.cards["officers"])
    assert len(verify(bundle, **people.cards).approvals) == 2


def test_an_officer_whom_the_plan_does_not_name_opens_nothing(scene: Any, plan: Any) -> None:
    """Neither a stranger whom the coordinator enrolled, nor one who took a named officer's name."""
    people = scene()
    key = people.keys["second"].public.text
    alone = f'[release.named.second]\nhospital = "north"\nkey = "{key}"'
    bundle = people.bundle(plan(more=alone))
    add_decision(bundle, people.decide(bundle), people.cards["officers"])
    with pytest.raises(VerificationError, match=r"does not name an officer .*got officer"):
        verify(bundle, **people.cards)


def test_a_named_officer_with_another_key_opens_nothing(scene: Any, plan: Any) -> None:
    people = scene()
    key = people.keys["second"].public.text
    bundle = people.bundle(plan(more=f'[release.named.officer]\nhospital = "north"\nkey = "{key}"'))
    add_decision(bundle, people.decide(bundle), people.cards["officers"])
    with pytest.raises(VerificationError, match="the key of officer in the plan is another"):
        verify(bundle, **people.cards)


@pytest.mark.parametrize(
    ("officers", "more", "words"),
    [
        (2, '[release.named.a]\nhospital = "north"\nkey = "{key}"', "more than release.named"),
        (1, 'hospitals = ["north"]', "without a named officer: north"),
        (
            1,
            '[release.named.a]\nhospital = "x"\nkey = "{key}"\n'
            '[release.named.b]\nhospital = "y"\nkey = "{key}"',
            "two officers in release.named have one key",
        ),
        (1, '[release.named.a]\nhospital = "north"\nkey = "short"', "release.named.a.key"),
    ],
)
def test_a_gate_that_nobody_can_open_is_no_plan(
    plan: Any, officers: int, more: str, words: str
) -> None:
    with pytest.raises(PlanError, match=words):
        plan(officers=officers, more=more.format(key="a" * 64))


def test_an_approval_must_speak_of_the_warnings_that_there_are(
    approved: tuple[Any, Path],
) -> None:
    """An officer's tool that leaves a reason out does not make a signature that counts."""
    people, bundle = approved
    facts = {"officer": "second", "decision": "approve", "decided": "2026-01-01", "reasons": {}}
    body = statement({ATTESTATION: bundle_digest(bundle)}, DECISION_TYPE, {**facts, "reason": ""})
    add_decision(bundle, sign_envelope(body, people.keys["second"]), people.cards["officers"])
    with pytest.raises(VerificationError, match="second: the warnings that are given a reason"):
        verify(bundle, **people.cards)


def test_a_reason_without_a_word_is_none(approved: tuple[Any, Path]) -> None:
    """Neither is it where another tool signed it."""
    people, bundle = approved
    reasons = dict.fromkeys(warnings_of(examined(people, bundle).findings), " ")
    facts = {"officer": "second", "decision": "approve", "decided": "2026-01-01"}
    told = {**facts, "reasons": reasons, "reason": ""}
    body = statement({ATTESTATION: bundle_digest(bundle)}, DECISION_TYPE, told)
    add_decision(bundle, sign_envelope(body, people.keys["second"]), people.cards["officers"])
    with pytest.raises(VerificationError, match="second gave no reason"):
        verify(bundle, **people.cards)


def test_one_key_under_two_names_is_one_officer(scene: Any, plan: Any) -> None:
    """Two must open the gate, and a person with two names is one."""
    people = scene()
    people.keys["second"] = people.keys["officer"]
    bundle = people.bundle(plan(officers=2))
    for name in ("officer", "second"):
        add_decision(bundle, people.decide(bundle, officer=name), people.cards["officers"])
    with pytest.raises(VerificationError, match=r"too few officers approved \(got 1, expected 2"):
        verify(bundle, **people.cards)


def test_an_invalid_audit_is_never_approved_and_never_verifies(scene: Any, plan: Any) -> None:
    """It cannot tell, which is not the same as having found nothing."""
    people = scene(patients=60, blind=4.0)
    bundle = people.bundle(plan())
    assert examined(people, bundle).verdict is Verdict.INVALID
    with pytest.raises(Refusal, match="blocked by the rule 'blind baseline'"):
        people.decide(bundle)
    with pytest.raises(VerificationError, match=r"does not let this release go.*INVALID"):
        verify(bundle, **people.cards)


def test_a_hospital_that_is_left_out_is_missed(scene: Any, plan: Any) -> None:
    """The record that the others were shown counts its reply; nobody need be told its name."""
    people, study = scene(), plan()
    report = build_report(
        study,
        [people.answer(site, study) for site in ("harbour", "north")],
        weights_digest=people.report(study).weights_digest,
        absent={},
        versions={},
    )
    bundle = people.bundle(study, report=report)
    with pytest.raises(VerificationError, match=r"missing from the report \(got 2 hospitals"):
        examined(people, bundle)


def test_sites_that_searched_different_volumes_make_no_report(scene: Any, plan: Any) -> None:
    """The set is made once: one that is made for a site alone could hide its patients' copies."""
    people, study = scene(), plan()
    alone = people.answer("north", study, searched=601)
    with pytest.raises(VerificationError, match="searched different synthetic volumes"):
        build_report(
            study,
            [people.answer("harbour", study), alone],
            weights_digest=people.report(study).weights_digest,
            absent={},
            versions={},
        )


def examined(people: Any, bundle: Path) -> AuditReport:
    return examine(bundle, coordinator=people.keys["coordinator"].public, sites=people.site_keys)


def test_an_officer_without_a_card_does_not_count(approved: tuple[Any, Path]) -> None:
    people, bundle = approved
    with pytest.raises(VerificationError, match="unknown officer"):
        verify(bundle, **(people.cards | {"officers": {}}))
    (bundle / "decisions" / "officer.dsse.json").rename(bundle / "decisions" / "second.dsse.json")
    with pytest.raises(VerificationError, match="decision of second"):
        verify(bundle, **people.cards)


def test_an_approval_does_not_carry_over_to_another_release(
    approved: tuple[Any, Path], scene: Any, plan: Any
) -> None:
    people, bundle = approved
    old = bundle.rename(bundle.with_name("old"))
    new = people.bundle(plan(half_width=0.5))
    shutil.copytree(old / "decisions", new / "decisions")
    with pytest.raises(VerificationError, match="about another release"):
        verify(new, **people.cards)


def test_a_blocked_release_never_verifies(scene: Any, plan: Any, copies: Any) -> None:
    people = scene(copies=copies(10, 0))
    bundle = people.bundle(plan())
    with pytest.raises(VerificationError, match="does not let this release go"):
        verify(bundle, **people.cards)


def forged(report: AuditReport, **changes: Any) -> AuditReport:
    return report.model_copy(update=changes)


def test_a_coordinator_cannot_better_what_the_hospitals_signed(
    scene: Any, plan: Any, copies: Any
) -> None:
    """Even signed by the coordinator, a report must follow from the sites' own replies."""
    people, study = scene(copies=copies(10, 0)), plan()
    report = people.report(study)
    fine = tuple(dataclasses.replace(f, verdict=Verdict.PASS) for f in report.findings)
    better = report.sites[0].model_copy(update={"copies": copies(0, 0)})
    for number, other in enumerate(
        (
            forged(report, verdict=Verdict.PASS),
            forged(report, verdict=Verdict.PASS, findings=fine),
            forged(report, epsilon=0.1),
            forged(report, sites=(better, *report.sites[1:])),
            forged(report, memberships=report.memberships[1:]),
            forged(report, plan=report.plan.replace("8.0", "9.0")),
            forged(report, plan="no plan"),
        )
    ):
        bundle = people.bundle(study, report=other)
        with pytest.raises(VerificationError):
            examine(bundle, coordinator=people.keys["coordinator"].public, sites=people.site_keys)
        bundle.rename(bundle.with_name(f"forged-{number}"))


def test_a_doctored_reply_of_a_site_is_named(scene: Any, plan: Any) -> None:
    people, study = scene(), plan()
    report = people.report(study)
    site = report.sites[1]
    reply = bytearray(base64.b64decode(site.reply))
    reply[200] ^= 1
    document = json.loads(report.text)
    document["sites"][1]["reply"] = base64.b64encode(bytes(reply)).decode()
    bundle = people.bundle(study, report=AuditReport.from_text(json.dumps(document).encode()))
    with pytest.raises(VerificationError, match=f"the reply of {site.site} cannot be trusted"):
        verify(bundle, **people.cards)
