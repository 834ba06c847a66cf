"""RoundRecord: what the coordinator signs about each round, so that weights have a lineage."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import VerificationError
from .identity import PublicKey, SigningKey, canonical, open_envelope, sign_envelope

RECORD_TYPE = "application/vnd.voxfed.round.v1+json"
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class RoundRecord(BaseModel):
    """One finished round; round 0 is the start.

    Attributes:
        weights_digest: SHA-256 of the global tensors after the round.
        replies: SHA-256 of each site's committed reply, sorted; no names.
        previous: SHA-256 of the envelope of the round before; 64 zeros for round 0.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    study: str
    plan_digest: Digest
    branch: int = Field(ge=0)
    stage: str
    round: int = Field(ge=0)
    weights_digest: Digest
    replies: tuple[Digest, ...]
    previous: Digest

    def sign(self, key: SigningKey) -> bytes:
        """Return the record in a DSSE envelope."""
        return sign_envelope(canonical(self.model_dump(mode="json")), key, RECORD_TYPE)

    @classmethod
    def open(cls, envelope: bytes, key: PublicKey) -> RoundRecord:
        """Return the record in an envelope signed by `key`; raise VerificationError otherwise."""
        payload = open_envelope(
            envelope, key, what="the record of a round", payload_type=RECORD_TYPE
        )
        try:
            return cls.model_validate_json(payload, strict=True)
        except ValidationError:
            raise VerificationError("the record of a round is garbled") from None
