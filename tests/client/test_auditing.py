"""Audits at the site: whose weights, with whose permission, and charged like everything else."""

from __future__ import annotations

from typing import Any

import pytest
from voxfed.client.permission import permissions, permit
from voxfed.client.worker import Worker
from voxfed.study import messages
from voxfed.study.errors import Refusal
from voxfed.study.record import RoundRecord

DIGEST = "a" * 64


def _charges(hospital: Any) -> list[tuple[str, int]]:
    rows = hospital.site.ledger.rows()
    return [(row.body["stage"], row.body["round"]) for row in rows if row.kind == "charge"]


def _audit(hospital: Any, weights: bytes, **more: Any) -> bytes:
    facts = {"study": "trunks", "plan_digest": hospital.plan.digest, "branch": 0}
    facts |= {"stage": "autoencoder", "round": 2, "weights_digest": messages.hash_of(weights)}
    record = RoundRecord(**(facts | {"replies": (DIGEST,), "previous": DIGEST} | more))
    header = messages.AuditRequest(
        site="north",
        study="trunks",
        plan_digest=hospital.plan.digest,
        lineage=record.sign(hospital.coordinator).decode(),
        weights_digest=messages.hash_of(weights),
        weights_size=len(weights),
        samples_digest=messages.hash_of(b""),
        samples_size=0,
        extractor_digest=messages.hash_of(b""),
        samples=0,
    )
    return messages.encode(header, hospital.coordinator, weights)


def test_an_audit_waits_for_its_operator(hospital: Any) -> None:
    """Not approved, then approved, then charged as the plan says, then the same bytes again."""
    here = Worker(hospital.site)
    request = _audit(hospital, hospital.weights)
    assert hospital.code(here.answer(request)) == "audit-not-approved"
    assert hospital.code(here.answer(request)) == "audit-not-approved"
    assert permit(hospital.site, hospital.approval, "audit").number == 1
    receipt, committed = hospital.opened(here.answer(request))
    audited, _ = hospital.opened(committed)
    assert audited.counts == "noised"
    assert audited.copies == {}
    assert audited.weights_digest == messages.hash_of(hospital.weights)
    assert hospital.opened(here.answer(request)) == (receipt, committed)
    assert _charges(hospital) == [("audit", 1)]
    (counts,) = audited.scores.values()
    assert len(counts.members) == len(counts.non_members) == len(counts.edges) - 1 == 16


@pytest.mark.parametrize(
    "more",
    [{"weights_digest": DIGEST}, {"study": "other"}, {"plan_digest": DIGEST}, {"round": 3}],
)
def test_weights_without_a_lineage_are_not_audited(hospital: Any, more: dict[str, Any]) -> None:
    """Weights without the coordinator's signature under a round of this study are refused."""
    reply = Worker(hospital.site).answer(_audit(hospital, hospital.weights, **more))
    assert hospital.code(reply) == "lineage"
    assert permissions(hospital.approval, "audit") == []


def test_weights_of_a_round_that_left_this_site_out(hospital: Any) -> None:
    """After its own charge of a round the site finds its own reply in the record, or refuses."""
    here = Worker(hospital.site)
    for number in (1, 2):
        _, committed = hospital.opened(here.answer(hospital.train_request(number)))
    assert hospital.code(here.answer(_audit(hospital, hospital.weights))) == "lineage"
    own = _audit(hospital, hospital.weights, replies=(messages.hash_of(committed),))
    assert hospital.code(here.answer(own)) == "audit-not-approved"


def test_only_allowed_audits_count(hospital: Any) -> None:
    """Audits that nobody allowed must not use up the two that a study has."""
    here = Worker(hospital.site)
    payloads = [hospital.weights + b"\0" * n for n in range(4)]
    for payload in payloads[:3]:
        assert hospital.code(here.answer(_audit(hospital, payload))) == "audit-not-approved"
    numbers = [permit(hospital.site, hospital.approval, "audit").number for _ in range(2)]
    assert numbers == [1, 2]
    with pytest.raises(Refusal, match="spent"):
        permit(hospital.site, hospital.approval, "audit")
    assert hospital.code(here.answer(_audit(hospital, payloads[3]))) == "audits-spent"
