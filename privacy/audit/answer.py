"""Answer: a site's signed reply to an audit, bound to its request, weights and plan."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from ...study.errors import VerificationError, VoxfedError
from ...study.identity import PublicKey
from ...study.messages import Audited, AuditRequest, ScoreCounts, decode, request_digest
from ...study.plan import StudyPlan
from .scores.score import FITTED
from .statistics import BinnedScores

SIGNATURE_BYTES = 64


@dataclass(frozen=True)
class Answer:
    """One site's answer to one signed request.

    Attributes:
        site: its name.
        key: its public key.
        request: the signed request, whole or cut off before its payload.
        reply: the whole signed `Audited` message, taken out of its receipt.
    """

    site: str
    key: PublicKey
    request: bytes
    reply: bytes


def read_answer(answer: Answer, plan: StudyPlan, weights_digest: str) -> Audited:
    """Returns the reply in an answer after checking all that it must be bound to.

    Raises:
        VerificationError: it is not signed by its site, or is about another request, plan or
            weights, or its histograms do not fit their bins.
    """
    what = f"the reply of {answer.site}"
    try:
        header, _ = decode(answer.reply, answer.key)
        request = read_request(answer.request)
        digest = request_digest(answer.request)
    except (struct.error, ValidationError, VoxfedError) as fault:
        got = fault.message if isinstance(fault, VoxfedError) else "a garbled request"
        raise VerificationError(f"{what} cannot be trusted", got=got) from None
    if not isinstance(header, Audited):
        raise VerificationError(f"{what} is no audit", got=getattr(header, "kind", "nothing"))
    for name, got, expected in (
        ("request", header.request_digest, digest),
        ("weights", header.weights_digest, weights_digest),
        ("study", header.study, plan.name),
        ("plan", request.plan_digest, plan.digest),
        ("site", request.site, answer.site),
        ("kind of counts", header.counts, plan.privacy.audit_counts),
    ):
        if got != expected:
            raise VerificationError(f"{what} is about another {name}", got=got, expected=expected)
    _check_histograms(header, plan, what)
    return header


def check_asked_alike(answers: Sequence[Answer]) -> None:
    """Check that every site was asked about the same synthetic volumes by the same extractor.

    Raises:
        VerificationError: one was given others, made for it alone.
    """
    asked = {}
    for answer in answers:
        request = read_request(answer.request)
        given = request.samples, request.samples_digest, request.extractor_digest
        asked[answer.site] = given
    if len(set(asked.values())) > 1:
        raise VerificationError(
            "the sites searched different synthetic volumes, or by different extractors",
            got=", ".join(sorted(asked)),
            expected="one set, made once, for all of them",
        )


def without_payload(request: bytes) -> bytes:
    """Returns a request cut off before its payload; its header and signature remain."""
    (size,) = struct.unpack(">I", request[4:8])
    return request[: 8 + size + SIGNATURE_BYTES]


def binned(counts: ScoreCounts, score: str, plan: StudyPlan) -> BinnedScores:
    """Returns a score's histograms with bins turned so that the last is the most member-like.

    Noised counts carry noise of `audit_noise` x 1: a patient adds 1 to one bin of one histogram.
    Their bins are those of errors, which are lower for members.
    """
    members, non_members = counts.members, counts.non_members
    if plan.privacy.audit_counts == "noised":
        return BinnedScores(members[::-1], non_members[::-1], plan.privacy.audit_noise)
    return BinnedScores(members, non_members, fitted=score in FITTED)


def read_request(request: bytes) -> AuditRequest:
    """Returns what a site was asked, unchecked: `read_answer` binds it to the site's reply."""
    text = without_payload(request)[8:-SIGNATURE_BYTES]
    return AuditRequest.model_validate_json(text, strict=True)


def _check_histograms(reply: Audited, plan: StudyPlan, what: str) -> None:
    from .scores.table import NAMES  # needs torch, which only this check waits for

    exact = reply.counts == "exact"
    patients = [(name, counts, exact) for name, counts in reply.scores.items()]
    for name, counts, exact in [*patients, *((*one, True) for one in reply.canaries.items())]:
        edges, histograms = counts.edges, (counts.members, counts.non_members)
        rising = all(low < high for low, high in itertools.pairwise(edges))
        fits = all(len(one) == len(edges) - 1 for one in histograms)
        whole = not exact or all(n >= 0 and n == int(n) for one in histograms for n in one)
        if not (name in NAMES and rising and fits and whole):
            raise VerificationError(f"{what}: the score {name!r} does not fit its bins")
    for name, counts in reply.canaries.items():
        if sum((*counts.members, *counts.non_members)) != plan.privacy.canaries:
            raise VerificationError(f"{what} does not count the plan's canaries by {name!r}")
    if bool(reply.canaries) != bool(plan.privacy.canaries):
        raise VerificationError(f"{what} has no canaries, or those that the plan has not")
    if reply.counts == "noised" and len(reply.scores) > 1:
        raise VerificationError(f"{what} holds more scores than its noise was charged for")
