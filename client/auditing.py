"""Audits at the site: whose weights, with whose permission, and what leaves."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..study.errors import Refusal, VerificationError
from ..study.files import write
from ..study.identity import canonical
from ..study.messages import Audited, AuditRequest, hash_of
from ..study.record import RoundRecord
from .approval import Approval
from .site import Site

if TYPE_CHECKING:
    from .warm import Warm


@dataclass(frozen=True)
class AuditOffer:
    """One audit that the coordinator asked for, by the weights' digest.

    Attributes:
        weights_digest: SHA-256 of the weights.
        round: the round that they came out of.
        number: counts the allowed audits of the study from 1; 0 while it is not allowed.
    """

    weights_digest: str
    round: int
    number: int


def check_lineage(
    site: Site, approval: Approval, request: AuditRequest, weights: bytes
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


def offers(approval: Approval) -> list[AuditOffer]:
    """Return the audits that were asked for, those of later rounds last."""
    found = []
    for path in (approval.folder / "audits").glob("*.json"):
        facts = json.loads(path.read_bytes())
        found.append(AuditOffer(path.stem, facts["round"], facts["number"]))
    return sorted(found, key=lambda offer: (offer.round, offer.weights_digest))


def approved_number(approval: Approval, record: RoundRecord) -> int:
    """Return the audit's number if the operator allowed it; note it as pending otherwise.

    Returns:
        0 while the operator has not decided, and -1 where the study's audits are spent.
    """
    known = {offer.weights_digest: offer for offer in offers(approval)}
    if record.weights_digest in known and known[record.weights_digest].number:
        return known[record.weights_digest].number
    if sum(offer.number > 0 for offer in known.values()) >= approval.plan.privacy.audits:
        return -1
    _keep(approval, AuditOffer(record.weights_digest, record.round, 0))
    return 0


def approve_audit(site: Site, approval: Approval) -> AuditOffer:
    """Allow the pending audit of the latest round, and return it.

    Raises:
        Refusal: no audit is pending, or the study's audits are spent.
    """
    known = offers(approval)
    pending = [offer for offer in known if not offer.number]
    number = sum(offer.number > 0 for offer in known) + 1
    limit = approval.plan.privacy.audits
    if not pending:
        raise Refusal("no audit of this study waits for a decision")
    if number > limit:
        raise Refusal("the study's audits are spent", got=f"audit {number}", expected=f"{limit}")
    allowed = AuditOffer(pending[-1].weights_digest, pending[-1].round, number)
    _keep(approval, allowed)
    site.journal.append(
        "audit allowed", study=approval.folder.name, weights=allowed.weights_digest, number=number
    )
    return allowed


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
    family, device = warm.trainer.family, warm.trainer.device
    family.eval()
    name, score = score_of(family)
    groups = [warm.scans.table(names) for names in (manifest.audited_members, manifest.held_out)]
    exact = privacy.audit_counts == "exact"
    edges = EDGES if exact else EDGES[::16]
    counts: list[list[float]] = [
        list(histogram(patient_scores(score, group, str(device)).values(), edges))
        for group in groups
    ]
    copies: dict[str, float] = {}
    if exact:
        samples = _samples(family, request.samples, weights)
        copies = find_copies(samples, *groups)
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


def _samples(family: Any, n: int, weights: bytes) -> Any:
    """Return n synthetic volumes (n, 1, D, H, W), drawn from a seed that the weights fix."""
    import torch

    generator = torch.Generator().manual_seed(int(hash_of(weights)[:15], 16))
    with torch.no_grad():
        parts = [family.sample(1, generator=generator).cpu() for _ in range(n)]
    return torch.cat(parts).numpy() if parts else torch.zeros((0, 1, 1, 1, 1)).numpy()


def _keep(approval: Approval, offer: AuditOffer) -> None:
    path = approval.folder / "audits" / f"{offer.weights_digest}.json"
    write(path, canonical({"round": offer.round, "number": offer.number}), mode=0o600)
