"""Decision: what one officer says about one release, signed on the officer's own machine."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..study.errors import Refusal, UsageError, VerificationError
from ..study.identity import PublicKey, SigningKey, open_envelope, sign_envelope, statement
from ..study.messages import Digest
from .release import Finding, Verdict

ATTESTATION = "attestation.dsse.json"
DECISION_TYPE = "https://voxfed.org/decision/v1"
LONGEST_REASON = 2000


class Decision(BaseModel):
    """An officer's word on a release.

    Attributes:
        officer: the officer's name.
        decision: approve or reject.
        reason: in the officer's words; every warning approved rests on it.
        warnings: the rules whose WARN the officer saw.
        decided: UTC, as in ISO 8601.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    officer: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")
    decision: Literal["approve", "reject"]
    reason: str = Field(max_length=LONGEST_REASON)
    warnings: tuple[str, ...]
    decided: str


def sign_decision(
    attestation_digest: Digest,
    findings: tuple[Finding, ...],
    *,
    officer: str,
    decision: Literal["approve", "reject"],
    reason: str,
    key: SigningKey,
) -> bytes:
    """Returns the decision in a DSSE envelope whose subject is the attestation.

    Raises:
        Refusal: approval of a release that a rule blocks, or of a WARN without a reason.
        UsageError: a rejection without a reason, or a reason too long.
    """
    reason = reason.strip()
    blocked = [finding for finding in findings if finding.verdict is Verdict.BLOCK]
    warned = tuple(finding.rule for finding in findings if finding.verdict is Verdict.WARN)
    if len(reason) > LONGEST_REASON:
        raise UsageError(
            "the reason is too long", got=len(reason), expected=f"{LONGEST_REASON} characters"
        )
    if decision == "approve" and blocked:
        raise Refusal(
            f"this release is blocked by the rule '{blocked[0].rule}': {blocked[0].detail}",
            hint="reject it; no officer can approve a blocked release",
        )
    if decision == "approve" and warned and not reason:
        raise Refusal(
            f"a WARN needs your reason: {', '.join(warned)}",
            got="no reason",
            hint="say with --reason why the model may leave all the same",
        )
    if decision == "reject" and not reason:
        raise UsageError("a rejection needs a reason", hint="give --reason")
    body = Decision(
        officer=officer,
        decision=decision,
        reason=reason,
        warnings=warned,
        decided=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    subjects = {ATTESTATION: attestation_digest}
    return sign_envelope(statement(subjects, DECISION_TYPE, body.model_dump(mode="json")), key)


def read_decision(
    envelope: bytes, key: PublicKey, attestation_digest: Digest, *, what: str
) -> Decision:
    """Returns the decision in `envelope`.

    Raises:
        VerificationError: `key` did not sign it, a byte was changed, or another release is meant.
    """
    subjects, predicate = open_statement(envelope, key, DECISION_TYPE, what=what)
    if subjects != {ATTESTATION: attestation_digest}:
        raise VerificationError(
            f"{what} is about another release",
            got=subjects.get(ATTESTATION, "no attestation"),
            expected=attestation_digest,
        )
    try:
        return Decision.model_validate_json(json.dumps(predicate), strict=True)
    except ValidationError:
        raise VerificationError(f"{what} is no decision") from None


def open_statement(
    envelope: bytes, key: PublicKey, predicate_type: str, *, what: str
) -> tuple[dict[str, str], dict[str, Any]]:
    """Returns subjects (name -> SHA-256) and predicate of a statement that `key` alone signed.

    The envelope must be byte for byte what `sign_envelope` writes, so that not even its spaces,
    which no signature covers, can be changed.

    Raises:
        VerificationError: the signature, the form or the kind of statement is another.
    """
    payload = open_envelope(envelope, key, what=what)
    document = json.loads(envelope)
    if json.dumps(document, indent=1).encode() != envelope or document != {
        "payloadType": document["payloadType"],
        "payload": document["payload"],
        "signatures": [
            {"keyid": key.identifier, "sig": signature["sig"]}
            for signature in document["signatures"][:1]
        ],
    }:
        raise VerificationError(f"{what} was changed", expected="an envelope as it was signed")
    try:
        body = json.loads(payload)
        if statement(_subjects(body), predicate_type, body["predicate"]) != payload:
            raise VerificationError(f"{what} is another kind of statement", expected=predicate_type)
        return _subjects(body), body["predicate"]
    except (ValueError, KeyError, TypeError):
        raise VerificationError(f"{what} is not an in-toto statement") from None


def _subjects(body: Any) -> dict[str, str]:
    return {subject["name"]: subject["digest"]["sha256"] for subject in body["subject"]}
