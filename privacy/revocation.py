"""Revocation: the coordinator's signed word that a released model must not be used any more."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..study.errors import UsageError, VerificationError
from ..study.identity import PublicKey, SigningKey, sign_envelope, statement
from ..study.messages import Digest
from .decision import ATTESTATION, LONGEST_REASON, open_statement

REVOCATION = "revoked.dsse.json"
REVOCATION_TYPE = "https://voxfed.org/revocation/v1"


class Revocation(BaseModel):
    """Why a release was taken back.

    Attributes:
        study: the study's name.
        reason: in the coordinator's words.
        revoked: UTC, as in ISO 8601.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    study: str
    reason: str = Field(min_length=1, max_length=LONGEST_REASON)
    revoked: str


def sign_revocation(
    attestation_digest: Digest, *, study: str, reason: str, key: SigningKey
) -> bytes:
    """Returns the revocation in a DSSE envelope whose subject is the attestation.

    Raises:
        UsageError: there is no reason, or it is too long.
    """
    try:
        revoked = datetime.now(UTC).isoformat(timespec="seconds")
        body = Revocation(study=study, reason=reason.strip(), revoked=revoked)
    except ValidationError:
        raise UsageError(
            "a revocation needs a reason",
            got=f"{len(reason.strip())} characters",
            expected=f"1 to {LONGEST_REASON}",
        ) from None
    subjects = {ATTESTATION: attestation_digest}
    return sign_envelope(statement(subjects, REVOCATION_TYPE, body.model_dump(mode="json")), key)


def read_revocation(envelope: bytes, key: PublicKey, *, what: str) -> tuple[Digest, Revocation]:
    """Returns which attestation was revoked, and why.

    Raises:
        VerificationError: `key` did not sign it, a byte was changed, or it is something else.
    """
    subjects, predicate = open_statement(envelope, key, REVOCATION_TYPE, what=what)
    try:
        found = Revocation.model_validate_json(json.dumps(predicate), strict=True)
        return subjects[ATTESTATION], found
    except (ValidationError, KeyError):
        raise VerificationError(f"{what} is no revocation") from None


def check_not_revoked(
    attestation_digest: Digest, revocations: Mapping[str, bytes], key: PublicKey
) -> None:
    """Refuse a release that one of the revocations is about.

    Args:
        attestation_digest: SHA-256 of the release's attestation.
        revocations: envelopes by the name of their file.
        key: the coordinator's.

    Raises:
        VerificationError: it was revoked, or a revocation cannot be trusted.
    """
    for what, envelope in revocations.items():
        digest, found = read_revocation(envelope, key, what=what)
        if digest == attestation_digest:
            raise VerificationError(
                f"this release was revoked on {found.revoked[:10]}: {found.reason}",
                hint="do not use these weights; ask the coordinator for what replaces them",
            )
