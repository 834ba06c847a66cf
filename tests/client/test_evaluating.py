"""Evaluations at the site: who is compared, in which groups, and that only figures leave."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from voxfed.client.evaluating import strata
from voxfed.client.permission import permissions, permit
from voxfed.client.worker import Worker
from voxfed.models.quality.encoder import Encoder
from voxfed.models.quality.features import contrastive
from voxfed.study import messages
from voxfed.study.record import RoundRecord

DIGEST = "a" * 64
MARKER = "zz-planted-remark"


def judge() -> bytes:
    torch.manual_seed(0)
    return contrastive(Encoder()).content


def evaluation(hospital: Any, extractor: bytes, weights: bytes, **more: Any) -> bytes:
    record = RoundRecord(
        study="trunks",
        plan_digest=hospital.plan.digest,
        branch=0,
        stage="autoencoder",
        round=2,
        weights_digest=messages.hash_of(weights),
        replies=(DIGEST,),
        previous=DIGEST,
    )
    facts = {
        "site": "north",
        "study": "trunks",
        "plan_digest": hospital.plan.digest,
        "lineage": record.sign(hospital.coordinator).decode(),
        "weights_digest": messages.hash_of(weights),
        "weights_size": len(weights),
        "extractor_digest": messages.hash_of(extractor),
        "samples": 12,
    }
    header = messages.EvaluationRequest(**(facts | more))
    return messages.encode(header, hospital.coordinator, weights + extractor)


def test_an_evaluation_waits_for_its_operator_and_costs_nothing(large_hospital: Any) -> None:
    """Not approved, then approved, then figures of held-out patients; the same bytes again."""
    (large_hospital.cohort / "participants.tsv").write_text(
        "participant_id\tsex\tage\tremark\n"
        + "".join(
            f"{folder.name}\t{'FM'[number % 4 // 2]}\t{40 + number % 4}\t{MARKER}\n"
            for number, folder in enumerate(sorted(large_hospital.cohort.glob("north-*")))
        )
    )
    here, extractor, weights = Worker(large_hospital.site), judge(), large_hospital.weights
    request = evaluation(large_hospital, extractor, weights)
    spent = large_hospital.site.ledger.spent("trunks")
    assert large_hospital.code(here.answer(request)) == "evaluation-not-approved"
    allowed = permit(large_hospital.site, large_hospital.approval, "evaluation")
    assert messages.hash_of(weights)[:16] in allowed.about
    assert messages.hash_of(extractor)[:16] in allowed.about
    receipt, committed = large_hospital.opened(here.answer(request))
    evaluated, payload = large_hospital.opened(committed)
    assert payload == b""
    assert evaluated.request_digest == messages.request_digest(request)
    assert evaluated.weights_digest == messages.hash_of(weights)
    assert large_hospital.opened(Worker(large_hospital.site).answer(request)) == (
        receipt,
        committed,
    )
    assert large_hospital.site.ledger.spent("trunks") == spent
    groups = {row.group for row in evaluated.figures}
    assert groups == {"all", "age 40 to 49"}, "ten of a sex are too few to be told"
    assert {row.n for row in evaluated.figures} == {12}
    assert {"FID", "KID", "coverage"} <= {row.name for row in evaluated.figures}
    assert all(f"{row.value:.4g}" == f"{row.value:g}" for row in evaluated.figures)
    assert MARKER.encode() not in committed
    assert not [
        folder for folder in large_hospital.cohort.iterdir() if folder.name.encode() in committed
    ]


def test_another_question_needs_another_permission(large_hospital: Any) -> None:
    """Weights that were allowed may not be asked about through an extractor made to tell more."""
    here, extractor, weights = Worker(large_hospital.site), judge(), large_hospital.weights
    assert (
        large_hospital.code(here.answer(evaluation(large_hospital, extractor, weights)))
        == "evaluation-not-approved"
    )
    permit(large_hospital.site, large_hospital.approval, "evaluation")
    other = evaluation(large_hospital, extractor + b"\0", weights)
    assert large_hospital.code(here.answer(other)) == "evaluation-not-approved"
    more = evaluation(large_hospital, extractor, weights, samples=13)
    assert large_hospital.code(here.answer(more)) == "evaluation-not-approved"
    permit(large_hospital.site, large_hospital.approval, "evaluation")
    assert (
        large_hospital.code(here.answer(evaluation(large_hospital, b"third", weights)))
        == "evaluations-spent"
    )


def test_an_extractor_that_is_none(large_hospital: Any) -> None:
    """Garbage that an operator allowed by mistake gets a code, and uses no permission up."""
    here = Worker(large_hospital.site)
    request = evaluation(large_hospital, b"no safetensors", large_hospital.weights)
    here.answer(request)
    permit(large_hospital.site, large_hospital.approval, "evaluation")
    assert large_hospital.code(here.answer(request)) == "garbled"
    assert [row.kind for row in large_hospital.site.ledger.rows()] == ["reserve"]


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"weights_digest": DIGEST}, "signature"),
        ({"weights_size": 5}, "signature"),
        ({"lineage": "{}"}, "lineage"),
        ({"plan_digest": DIGEST}, "not-approved"),
        ({"site": "valley"}, "signature"),
    ],
)
def test_what_does_not_fit_is_refused(large_hospital: Any, more: dict[str, Any], code: str) -> None:
    """Weights without a signed lineage, or other bytes than those named, are not looked at."""
    request = evaluation(large_hospital, judge(), large_hospital.weights, **more)
    assert large_hospital.code(Worker(large_hospital.site).answer(request)) == code
    assert permissions(large_hospital.approval, "evaluation") == []


def test_a_table_that_cannot_be_read_only_costs_the_groups(large_hospital: Any) -> None:
    """Figures of everybody need no table; the site's journal says why there are no groups."""
    (large_hospital.cohort / "participants.tsv").write_text("subject\nnorth-001\n")
    here, request = (
        Worker(large_hospital.site),
        evaluation(large_hospital, judge(), large_hospital.weights),
    )
    here.answer(request)
    permit(large_hospital.site, large_hospital.approval, "evaluation")
    evaluated, _ = large_hospital.opened(large_hospital.opened(here.answer(request))[1])
    assert {row.group for row in evaluated.figures} == {"all"}
    assert "no groups" in large_hospital.site.journal.path.read_text()


def test_too_few_held_out(hospital: Any) -> None:
    """Six held-out patients are not described, and no permission is asked for."""
    text = hospital.approval.plan.text
    assert len(hospital.approval.manifest.held_out) == 6
    assert b"evaluations" not in text
    request = evaluation(hospital, judge(), hospital.weights)
    assert hospital.code(Worker(hospital.site).answer(request)) == "too-few"
    assert permissions(hospital.approval, "evaluation") == []


@pytest.mark.parametrize(
    ("row", "groups"),
    [
        ({"sex": "F", "age": "39.9"}, ["sex F", "age 30 to 39"]),
        ({"Sex": "male", "Age": "0"}, ["sex M", "age 0 to 9"]),
        ({"sex": "O", "age": "89+"}, ["sex O", "age 80 to 89"]),
        ({"sex": "n/a", "age": "n/a"}, []),
        ({"sex": "", "age": "nan"}, []),
        ({"sex": "woman of 103", "age": "-1"}, []),
        ({"age": "inf"}, []),
        ({"age": "4_0"}, []),
        ({"age": "121"}, []),
    ],
)
def test_groups_are_sexes_and_bands_of_ten_years(row: dict[str, str], groups: list[str]) -> None:
    """Whatever stands in the table, a group's name is one of a few that name nobody."""
    found = strata({"patient": row})
    assert [name for groups in found.values() for name in groups] == groups
