"""Audits at the site: whose weights, with whose permission, and charged like everything else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from voxfed.client import manifest
from voxfed.client.approval import approve
from voxfed.client.permission import permissions, permit
from voxfed.client.suspects import draw_pairs
from voxfed.client.worker import Worker
from voxfed.models.quality.encoder import Encoder
from voxfed.models.quality.features import contrastive
from voxfed.models.registry import build, conditioning
from voxfed.models.state import from_bytes, tensors_of, to_bytes
from voxfed.privacy.audit.copies import synthetic
from voxfed.study import messages
from voxfed.study.errors import Refusal, UsageError
from voxfed.study.record import RoundRecord

DIGEST = "a" * 64
SAMPLES = 6
NOBODY_ELSE = 0o600


def _charges(hospital: Any) -> list[tuple[str, int]]:
    rows = hospital.site.ledger.rows()
    return [(row.body["stage"], row.body["round"]) for row in rows if row.kind == "charge"]


def _audit(
    hospital: Any, weights: bytes, drawn: bytes = b"", extractor: bytes = b"", **more: Any
) -> bytes:
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
        samples_digest=messages.hash_of(drawn),
        samples_size=len(drawn),
        extractor_digest=messages.hash_of(extractor),
        samples=SAMPLES if drawn else 0,
    )
    return messages.encode(header, hospital.coordinator, weights + drawn + extractor)


def _drawn(hospital: Any, weights: bytes, told_digest: str = "") -> bytes:
    """The synthetic set of some weights, as a coordinator makes it of those with `told_digest`."""
    family = build(hospital.plan)
    family.load_state_dict(from_bytes(weights))
    takes = conditioning(hospital.plan)
    digest = told_digest or messages.hash_of(weights)
    return synthetic.make(family.eval(), takes, digest, SAMPLES).content


@pytest.fixture
def exact_hospital(
    small_hospital: Callable[..., Any], plan_text: bytes, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """A hospital of 12 whose plan has exact counts; every other coin fell heads."""
    text = plan_text.replace(b"shape = [8, 8, 8]", b"shape = [16, 16, 16]")
    text = text.replace(b"[privacy]", b'[privacy]\naudit_counts = "exact"')
    hospital = small_hospital(text)
    monkeypatch.setattr(manifest.sampling, "flip", lambda n: [i % 2 == 0 for i in range(n)])
    approve(hospital.site, "trunks")
    return hospital


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


def test_an_exact_audit_tells_what_it_found_and_keeps_the_pairs(exact_hospital: Any) -> None:
    """Every score, four likenesses and distances leave; pairs and pictures stay, for one user."""
    hospital, weights = exact_hospital, exact_hospital.weights
    with pytest.raises(UsageError, match="not searched"):
        draw_pairs(hospital.site, "trunks")
    here, request = (
        Worker(hospital.site),
        _audit(hospital, weights, _drawn(hospital, weights), contrastive(Encoder()).content),
    )
    assert hospital.code(here.answer(request)) == "audit-not-approved"
    permit(hospital.site, hospital.approval, "audit")
    _, committed = hospital.opened(here.answer(request))
    audited, _ = hospital.opened(committed)
    held_out = len(hospital.approval.manifest.held_out)
    assert (audited.counts, audited.trained, audited.checked) == ("exact", 6, 6)
    assert {"reconstruction", "gradient norm", "nearest sample", "fused"} <= set(audited.scores)
    for name, counts in audited.scores.items():
        assert sum(counts.members) == 6, name
        assert sum(counts.non_members) in (held_out, held_out - held_out // 2), name
    assert set(audited.copies) == {"voxels", "octants", "embedding", "latent"}
    assert all(found["samples"] == SAMPLES for found in audited.copies.values())
    assert all(found["compared"] == 3 for found in audited.copies.values())
    assert "authenticity" in audited.distances
    patients = {*hospital.approval.manifest.flipped}
    assert not any(name.encode() in committed for name in patients)

    folder = hospital.approval.folder / "suspects"
    pairs = json.loads((folder / "pairs.json").read_bytes())
    assert pairs
    assert {pair["patient"] for pair in pairs} <= patients
    kept = from_bytes((folder / "samples.safetensors").read_bytes())
    assert set(kept) == {str(pair["sample"]) for pair in pairs}
    found = draw_pairs(hospital.site, "trunks")
    assert [{key: row[key] for key in pairs[0]} for row in found] == pairs
    for row in found:
        assert Path(row["picture"]).read_bytes().startswith(b"\x89PNG")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {NOBODY_ELSE}
    assert len(list(folder.iterdir())) == 2 + len(pairs)


def test_volumes_of_another_model_are_refused(exact_hospital: Any) -> None:
    """A coordinator that shows an honest model's volumes beside a leaking model's weights is found.

    The set that it made from the weights themselves is searched under the same permission.
    """
    hospital, weights, here = exact_hospital, exact_hospital.weights, Worker(exact_hospital.site)
    torch.manual_seed(1)
    other = to_bytes(
        {
            name: x + 0.3 * torch.randn(x.shape)
            for name, x in tensors_of(build(hospital.plan)).items()
        }
    )
    permit_first = _audit(hospital, weights, _drawn(hospital, weights))
    assert hospital.code(here.answer(permit_first)) == "audit-not-approved"
    permit(hospital.site, hospital.approval, "audit")
    doctored = _drawn(hospital, other, messages.hash_of(weights))
    for drawn in (doctored, b"no tensors", b""):
        assert hospital.code(here.answer(_audit(hospital, weights, drawn))) == "samples"
    assert _charges(hospital) == []
    assert not (hospital.approval.folder / "suspects").exists()
    _, committed = hospital.opened(here.answer(permit_first))
    assert hospital.opened(committed)[0].checked == 6
