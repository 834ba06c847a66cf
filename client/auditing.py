"""Audits at the site: whose weights, and what leaves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..privacy.sampling import choose
from ..study.errors import VerificationError
from ..study.messages import (
    Audited,
    AuditRequest,
    Confirmed,
    EvaluationRequest,
    RefusalCode,
    ScoreCounts,
    hash_of,
)
from ..study.record import RoundRecord
from .approval import Approval
from .canaries import audit_canaries
from .refusal import Coded
from .site import Site
from .suspects import keep_pairs

if TYPE_CHECKING:
    from ..models.base import Batch
    from ..privacy.audit.attack import Attacked
    from .warm import Warm


def check_lineage(
    site: Site, approval: Approval, request: AuditRequest | EvaluationRequest, weights: bytes
) -> RoundRecord:
    """Return the signed record of the round that the weights came out of.

    Guarantee:
        The coordinator signed that these weights came out of a round of the plan, and must answer
        for that signature. Where this site charged that round, it holds the very reply.
    Assumes:
        Nothing more: a coordinator that signs a false record is not found here.

    Raises:
        VerificationError: there is no such record.
    """
    record = RoundRecord.open(request.lineage.encode(), site.coordinator_key)
    claims = {
        "study": (record.study, request.study),
        "plan": (record.plan_digest, approval.plan.digest),
        "weights": (record.weights_digest, hash_of(weights)),
    }
    for what, (got, expected) in claims.items():
        if got != expected:
            raise VerificationError(
                f"the lineage is of another {what}", got=got[:12], expected=expected[:12]
            )
    if not 1 <= record.round <= approval.terms.schedule.rounds:
        raise VerificationError(
            "the lineage is of no round of the plan",
            got=record.round,
            expected=f"1 to {approval.terms.schedule.rounds}",
        )
    stage = approval.terms.schedule.stage_of(record.round).name
    if record.stage != stage:
        raise VerificationError(
            "the lineage is of another stage", got=record.stage, expected=f"{stage} in that round"
        )
    own = [
        row.body["reply_digest"]
        for row in site.ledger.rows()
        if row.kind == "charge"
        and row.body["study"] == record.study
        and row.body["stage"] == record.stage
        and row.body["round"] == record.round
    ]
    if own and not set(own) & set(record.replies):
        raise VerificationError("the lineage leaves out this site's own update of that round")
    return record


def audit(
    site: Site,
    warm: Warm,
    request: AuditRequest,
    digest: str,
    drawn: bytes,
    extractor: bytes,
    epsilon: float | None,
) -> Audited:
    """Attack this site's coin-flip members and non-members and return what may leave.

    Args:
        site: where the pairs that look alike are kept, for the operator.
        warm: the model with the weights that are audited.
        request: what the coordinator signed.
        digest: of the request.
        drawn: the coordinator's synthetic volumes, checked here against the weights.
        extractor: the file of the extractor that likeness is judged by.
        epsilon: what the study spends with this audit.

    Guarantee:
        With `audit_counts = "noised"` what leaves is one Gaussian event of `audit_noise`: one
        score's histograms, and neither copies nor other scores, which one patient can move by more
        than 1. With "exact" nothing of it is covered by epsilon. The scores of canaries leave
        exactly in both: no patient is in them but through the weights.

    Raises:
        VerificationError: the volumes are not those of these weights.
        Coded: too few patients were held out to give a model images to start from.
        VolumeError: a patient's score is not finite.
    """
    began, exact = time.monotonic(), warm.approval.plan.privacy.audit_counts == "exact"
    warm.trainer.family.eval()
    found: dict[str, Any] = {}
    if exact:
        givers = _givers(warm.approval.manifest.held_out)
        made, checked = _made(warm, request, drawn, givers)
        attacked = _attacked(site, warm, request, made, extractor, givers)
        keep_pairs(site, request.study, made, attacked.found.pairs)
        found = {
            "scores": attacked.scores,
            "copies": {name: copies.counts() for name, copies in attacked.found.spaces.items()},
            "distances": attacked.distances,
            "confirmed": Confirmed(
                members=attacked.found.confirmed_members,
                held_out=attacked.found.confirmed_non_members,
            ),
            "checked": checked,
            "trained": len(warm.approval.manifest.members),
        }
    else:
        found = {"scores": _noised(warm)}
    return Audited(
        study=request.study,
        request_digest=digest,
        weights_digest=request.weights_digest,
        epsilon=epsilon,
        counts="exact" if exact else "noised",
        **found,
        canaries=audit_canaries(warm, int(request.weights_digest[:15], 16)),
        seconds=round(time.monotonic() - began, 1),
        declared_patients=warm.approval.declared,
        defaced=site.settings.defaced,
        pseudo_patients=site.settings.pseudo_patients,
    )


def _noised(warm: Warm) -> dict[str, ScoreCounts]:
    """Return one score's histograms on fixed bins, with noise on every count."""
    from ..privacy.audit.membership import EDGES, histogram, patient_scores, score_of
    from ..privacy.engine import private_counts

    manifest, edges = warm.approval.manifest, EDGES[::16]
    name, score = score_of(warm.trainer.family)
    counts = [
        histogram(patient_scores(score, group, warm.scans.batches).values(), edges)
        for group in (manifest.audited_members, manifest.held_out)
    ]
    noise = warm.approval.plan.privacy.audit_noise
    joined = tuple(private_counts([*counts[0], *counts[1]], noise))
    bins = len(edges) - 1
    return {name: ScoreCounts(edges=edges, members=joined[:bins], non_members=joined[bins:])}


def _attacked(
    site: Site,
    warm: Warm,
    request: AuditRequest,
    made: Batch,
    extractor: bytes,
    givers: Sequence[str],
) -> Attacked:
    from ..models.quality.features import read_extractor
    from ..privacy.audit.attack import Groups, attack
    from ..privacy.audit.shadows import lessons_of
    from .training import prepare

    plan, device = warm.approval.plan, warm.trainer.device

    def tell(step: int, steps: int, what: str) -> None:
        if what.startswith("reference") and step == steps:  # what takes hours, for the operator
            site.journal.append("audit", study=request.study, trained=what, steps=steps)

    judge = read_extractor(extractor, request.extractor_digest) if extractor else None
    members, held_out = (
        {name: warm.scans.batches(name) for name in group}
        for group in (warm.approval.manifest.audited_members, warm.approval.manifest.held_out)
    )
    return attack(
        warm.trainer.family,
        Groups(members, held_out, frozenset(givers)),
        made,
        seed=int(request.weights_digest[:15], 16),
        extract=judge.features if judge else None,
        lessons=lessons_of(plan, lambda: prepare(plan, device))
        if plan.privacy.reference_models
        else None,
        progress=tell,
    )


def _givers(held_out: Sequence[str]) -> list[str]:
    """Return half of the held-out patients: the reference, and who gives images to start from.

    A faithful translation is like its own patient, who would stand for a copied non-member.
    """
    return [held_out[number] for number in choose(len(held_out), len(held_out) // 2)]


def _made(
    warm: Warm, request: AuditRequest, drawn: bytes, givers: Sequence[str]
) -> tuple[Batch, int]:
    """Return the synthetic volumes that are searched, and how many were made again to check them.

    A model that starts from images is given those of held-out patients, in turn.
    """
    import torch

    from ..models.base import Batch, joined
    from ..models.registry import conditioning
    from ..privacy.audit.copies import synthetic

    family, plan = warm.trainer.family, warm.approval.plan
    takes = conditioning(plan)
    if synthetic.made_by_coordinator(takes):
        received = synthetic.SyntheticSet(drawn, request.samples_digest)
        shape = (1, *plan.volumes.shape)
        made = synthetic.read(received, takes, request.weights_digest, shape)
        return made, synthetic.check(family, takes, request.weights_digest, made)
    if not givers or not request.samples:
        raise Coded(RefusalCode.TOO_FEW, "no held-out patient's image can start a synthetic volume")
    generator = torch.Generator(warm.trainer.device)
    generator.manual_seed(int(request.weights_digest[:15], 16))
    parts = []
    with torch.no_grad():
        for number in range(request.samples):
            told = warm.scans.batches(givers[number % len(givers)])[0].condition
            volume = family.sample(1, condition=told, generator=generator)
            parts.append(Batch(volume.cpu(), told.mapped(torch.Tensor.cpu)))
    return joined(parts), 0
