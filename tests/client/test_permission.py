"""Permission: what an operator allowed is counted, and nothing else is answered."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from voxfed.client.permission import KINDS, Kind, Permission, number_of, permissions, permit
from voxfed.study.errors import Refusal
from voxfed.study.plan import StudyPlan

SUBJECTS = ["a" * 64, "b" * 64, "c" * 64]


def asked(subject: str, round: int = 1) -> Permission:
    return Permission(subject, round, 0, f"about {subject[:1]}")


@pytest.fixture
def allowing(hospital: Any) -> Any:
    """The approval of a study that allows two audits and two evaluations."""
    approval = hospital.approval
    text = approval.plan.text.replace(b"[privacy]", b"[privacy]\nevaluations = 2")
    (approval.folder / "plan.toml").write_bytes(text)
    assert StudyPlan.from_text(text).privacy.audits == 2
    return approval


@pytest.mark.parametrize("kind", KINDS)
def test_it_waits_and_is_counted(hospital: Any, allowing: Any, kind: Kind) -> None:
    """Pending, then numbered for good; after the plan's two, nothing more is even noted."""
    for number, subject in enumerate(SUBJECTS[:2], start=1):
        assert number_of(allowing, kind, asked(subject)) == 0
        allowed = permit(hospital.site, allowing, kind)
        assert (allowed.subject, allowed.number, allowed.about) == (
            subject,
            number,
            f"about {subject[:1]}",
        )
        assert number_of(allowing, kind, asked(subject)) == number
    assert number_of(allowing, kind, asked(SUBJECTS[2])) == -1
    assert [one.subject for one in permissions(allowing, kind)] == SUBJECTS[:2]
    with pytest.raises(Refusal, match=f"no {kind}"):
        permit(hospital.site, allowing, kind)
    other = next(one for one in KINDS if one != kind)
    assert permissions(allowing, other) == []


def test_a_plan_without_evaluations(hospital: Any) -> None:
    """The default allows none, so that old studies let no exact figure out."""
    assert number_of(hospital.approval, "evaluation", asked(SUBJECTS[0])) == -1
    assert permissions(hospital.approval, "evaluation") == []


def test_what_is_asked_last_is_allowed(hospital: Any, allowing: Any) -> None:
    """The operator allows what the coordinator waits for now, not what it gave up on."""
    for seconds, subject in enumerate((SUBJECTS[1], SUBJECTS[2], SUBJECTS[0])):
        number_of(allowing, "evaluation", asked(subject))
        path = allowing.folder / "evaluations" / f"{subject}.json"
        os.utime(path, (1e9 + seconds, 1e9 + seconds))
    assert permit(hospital.site, allowing, "evaluation").subject == SUBJECTS[0]
    number_of(allowing, "evaluation", asked("d" * 64, round=2))
    assert permit(hospital.site, allowing, "evaluation").subject == "d" * 64


def test_a_permission_of_an_older_version_is_read(hospital: Any) -> None:
    """A site that is updated in mid-study keeps the audits that it allowed."""
    path = hospital.approval.folder / "audits" / f"{SUBJECTS[0]}.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"round": 2, "number": 1}))
    (found,) = permissions(hospital.approval, "audit")
    assert found == Permission(SUBJECTS[0], 2, 1, "weights sha256 aaaaaaaaaaaaaaaa")
