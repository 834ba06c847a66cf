"""Decision: what one officer says about one release, signed on the officer's own machine."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..study.errors import Refusal, UsageError, VerificationError
from ..study.identity import PublicKey, SigningKey, open_envelope, sign_envelope, statement
from ..study.messages import Digest
from .finding import Finding, Verdict

ATTESTATION = "attestation.dsse.json"
DECISION_TYPE = "https://voxfed.org/decision/v1"
LONGEST_REASON = 2000
Reason = Annotated[str, Field(max_length=LONGEST_REASON)]


class Decision(BaseModel):
    """An officer's word on a release.

    Attributes:
        officer: the officer's name.
        decision: approve or reject.
        reason: of a rejection, in the officer's words.
        reasons: of an approval, one for each rule that warns: why the model may leave all the same.
        decided: UTC, as in ISO 8601.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    officer: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")
    decision: Literal["approve", "reject"]
    reason: Reason = ""
    reasons: dict[str, Reason] = Field(default_factory=dict, max_length=64)
    decided: str


def sign_approval(
    attestation_digest: Digest,
    findings: Sequence[Finding],
    *,
    officer: str,
    reasons: Mapping[str, str],
    key: SigningKey,
) -> bytes:
    """Returns an approval in a DSSE envelope whose subject is the attestation.

    Args:
        attestation_digest: SHA-256 of the release's attestation.
        findings: of the release's audit.
        officer: the officer's name.
        reasons: for each rule that warns, why the model may leave all the same.
        key: the officer's.

    Raises:
        Refusal: a rule blocks the release or finds the audit invalid, or a WARN has no reason.
        UsageError: a reason is too long, or for a rule that does not warn.
    """
    blocked = [finding for finding in findings if finding.verdict.closes]
    if blocked:
        raise Refusal(
            f"this release is blocked by the rule '{blocked[0].rule}': {blocked[0].detail}",
            got=blocked[0].verdict.value,
            hint="reject it; no officer can approve a blocked or invalid release",
        )
    given = {rule: _checked(reason) for rule, reason in reasons.items()}
    warned = warnings_of(findings)
    if unknown := sorted(set(given) - set(warned)):
        raise UsageError(
            "a reason is for no warning of this audit",
            got=", ".join(unknown),
            expected=", ".join(warned) or "no reason at all",
        )
    if missing := [rule for rule in warned if not given.get(rule)]:
        raise Refusal(
            f"each WARN needs your reason: {', '.join(missing)}",
            got="no reason",
            hint=f'say why the model may leave all the same: --reason "{missing[0]}=..."',
        )
    return _sign(attestation_digest, key, officer=officer, decision="approve", reasons=given)


def sign_rejection(
    attestation_digest: Digest, *, officer: str, reason: str, key: SigningKey
) -> bytes:
    """Returns a rejection in a DSSE envelope whose subject is the attestation.

    Raises:
        UsageError: there is no reason, or it is too long.
    """
    reason = _checked(reason)
    if not reason:
        raise UsageError("a rejection needs a reason", hint="give --reason")
    return _sign(attestation_digest, key, officer=officer, decision="reject", reason=reason)


def warnings_of(findings: Iterable[Finding]) -> list[str]:
    """Returns the rules that warn, each of which an approval must give a reason for."""
    return [finding.rule for finding in findings if finding.verdict is Verdict.WARN]


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


def _checked(reason: str) -> str:
    if len(reason) > LONGEST_REASON:
        raise UsageError(
            "the reason is too long", got=len(reason), expected=f"{LONGEST_REASON} characters"
        )
    return reason.strip()


def _sign(attestation_digest: Digest, key: SigningKey, **facts: Any) -> bytes:
    decided = datetime.now(UTC).isoformat(timespec="seconds")
    body = Decision(decided=decided, **facts).model_dump(mode="json")
    return sign_envelope(statement({ATTESTATION: attestation_digest}, DECISION_TYPE, body), key)
