"""Audits at the site: whose weights, and what leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..study.errors import VerificationError
from ..study.messages import Audited, AuditRequest, EvaluationRequest, hash_of
from ..study.record import RoundRecord
from .approval import Approval
from .site import Site

if TYPE_CHECKING:
    from .warm import Warm


def check_lineage(
    site: Site, approval: Approval, request: AuditRequest | EvaluationRequest, weights: bytes
) -> RoundRecord:
    """Return the signed record of the round that the weights came out of.

    Guarantee:
        The coordinator signed that these weights came out of a round that holds the very reply
        which this site charged for it, and must answer for that signature.
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
    weights: bytes,
    epsilon: float | None,
) -> Audited:
    """Score this site's coin-flip members and non-members and return histograms and copy counts.

    Guarantee:
        With `audit_counts = "noised"` what leaves is one Gaussian event of `audit_noise`, and no
        copies are counted, since one patient can move their number by more than 1. With "exact"
        the counts are not covered by epsilon.
    """
    from ..privacy.audit.extraction import find_copies
    from ..privacy.audit.membership import EDGES, histogram, patient_scores, score_of
    from ..privacy.engine import private_counts

    privacy = warm.approval.plan.privacy
    manifest = warm.approval.manifest
    family = warm.trainer.family
    family.eval()
    name, score = score_of(family)
    groups = manifest.audited_members, manifest.held_out
    exact = privacy.audit_counts == "exact"
    edges = EDGES if exact else EDGES[::16]
    counts: list[list[float]] = [
        list(histogram(patient_scores(score, group, warm.scans.batches).values(), edges))
        for group in groups
    ]
    copies: dict[str, float] = {}
    if exact:
        samples = _samples(warm, request.samples, weights)
        copies = find_copies(samples, *(warm.scans.table(group) for group in groups))
    else:
        joined = private_counts([*counts[0], *counts[1]], privacy.audit_noise)
        counts = [joined[: len(edges) - 1], joined[len(edges) - 1 :]]
    return Audited(
        study=request.study,
        request_digest=digest,
        weights_digest=hash_of(weights),
        epsilon=epsilon,
        counts="exact" if exact else "noised",
        edges=tuple(edges),
        members={name: tuple(counts[0])},
        non_members={name: tuple(counts[1])},
        copies=copies,
        declared_patients=warm.approval.declared,
        defaced=site.settings.defaced,
        pseudo_patients=site.settings.pseudo_patients,
    )


def _samples(warm: Warm, n: int, weights: bytes) -> Any:
    """Return n synthetic volumes (n, 1, D, H, W), drawn from a seed that the weights fix.

    What the family is told is drawn from the prior; where that is an image, the held-out patients'
    are taken in turn, and what is made of them stays here.
    """
    import torch

    from ..models.registry import conditioning

    family, device = warm.trainer.family, warm.trainer.device
    takes = conditioning(warm.approval.plan)
    generator = torch.Generator(device).manual_seed(int(hash_of(weights)[:15], 16))
    held_out = [b for name in warm.approval.manifest.held_out for b in warm.scans.batches(name)]
    parts = []
    for number in range(n if held_out or not takes.planes else 0):
        told = (
            held_out[number % len(held_out)].condition
            if takes.planes
            else takes.prior(1, generator)
        )
        parts.append(family.sample(1, condition=told, generator=generator).cpu())
    return torch.cat(parts).numpy() if parts else torch.zeros((0, 1, 1, 1, 1)).numpy()
