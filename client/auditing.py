"""Audits at the site: whose weights, and what leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..privacy.sampling import choose
from ..study.errors import VerificationError
from ..study.messages import Audited, AuditRequest, EvaluationRequest, hash_of
from ..study.record import RoundRecord
from .approval import Approval
from .site import Site

if TYPE_CHECKING:
    from ..models.conditioning import Conditioning
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
    weights: bytes,
    epsilon: float | None,
) -> Audited:
    """Score this site's coin-flip members and non-members and return histograms and copy counts.

    Guarantee:
        With `audit_counts = "noised"` what leaves is one Gaussian event of `audit_noise`, and no
        copies are counted, since one patient can move their number by more than 1. With "exact"
        the counts are not covered by epsilon.
    """
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
        copies = _copies(warm, request.samples, weights)
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


def _copies(warm: Warm, n: int, weights: bytes) -> dict[str, float]:
    """Search n synthetic volumes for copies of members and of non-members.

    What the family is told is drawn from the prior. Where that is an image, a random half of the
    held-out patients give theirs and members are compared with the other half alone: a faithful
    translation is like its own patient, who would stand for a copied non-member.
    """
    from ..models.registry import conditioning
    from ..privacy.audit.extraction import find_copies

    manifest, takes = warm.approval.manifest, conditioning(warm.approval.plan)
    givers, compared = [], manifest.held_out
    if takes.planes:
        chosen = set(choose(len(compared), len(compared) // 2))
        givers = [name for number, name in enumerate(compared) if number in chosen]
        compared = [name for number, name in enumerate(compared) if number not in chosen]
    samples = _samples(warm, takes, givers, n if givers or not takes.planes else 0, weights)
    tables = (warm.scans.table(group) for group in (manifest.audited_members, compared))
    return find_copies(samples, *tables)


def _samples(warm: Warm, takes: Conditioning, givers: Sequence[str], n: int, weights: bytes) -> Any:
    """Return n synthetic volumes (n, 1, D, H, W), drawn from a seed that the weights fix."""
    import torch

    family, device = warm.trainer.family, warm.trainer.device
    generator = torch.Generator(device).manual_seed(int(hash_of(weights)[:15], 16))
    parts = []
    for number in range(n):
        if takes.planes:
            told = warm.scans.batches(givers[number % len(givers)])[0].condition
        else:
            told = takes.prior(1, generator)
        parts.append(family.sample(1, condition=told, generator=generator).cpu())
    return torch.cat(parts).numpy() if parts else torch.zeros((0, 1, 1, 1, 1)).numpy()
