"""What travels in a round: typed, versioned, size-checked and signed; bytes in, bytes out.

A message is `VXF1`, the header's length (4 bytes, big endian), the header (canonical JSON), an
Ed25519 signature of 64 bytes over the header, and a payload whose SHA-256 and size the header
names. The payload of tensors is safetensors. Nothing in a message is code.
"""

from __future__ import annotations

import hashlib
import struct
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from .errors import VerificationError, WireError
from .figures import FigureRow, Intensities
from .identity import PublicKey, SigningKey, canonical, pre_authentication

MAGIC = b"VXF1"
HEADER_TYPE = "application/vnd.voxfed.message.v1+json"
MAX_HEADER_BYTES = 1 << 20
COURIER_MAGIC = b"VXFC"

Defaced = Literal["yes", "no", "not-head"]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]


class Header(BaseModel):
    """A frozen header that forbids unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    payload_digest: Digest = hashlib.sha256(b"").hexdigest()
    payload_size: int = Field(0, ge=0)


class Head(BaseModel):
    """Length and last digest of a site's ledger; the coordinator echoes the last it was given."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    length: int = Field(ge=0)
    digest: Digest


class RefusalCode(StrEnum):
    """The only thing that a site says about a failure; the text stays at the site."""

    PENDING = "pending"
    REJECTED = "rejected"
    NOT_APPROVED = "not-approved"
    BUDGET = "budget"
    LIMITS = "limits"
    COHORT_CHANGED = "cohort-changed"
    SIGNATURE = "signature"
    OTHER_REQUEST = "other-request"
    ROLLED_BACK = "rolled-back"
    LINEAGE = "lineage"
    SAMPLES = "samples"
    AUDITS_SPENT = "audits-spent"
    AUDIT_NOT_APPROVED = "audit-not-approved"
    EVALUATIONS_SPENT = "evaluations-spent"
    EVALUATION_NOT_APPROVED = "evaluation-not-approved"
    TOO_FEW = "too-few"
    REPLY_LOST = "reply-lost"
    DEVICE = "device"
    DISK = "disk"
    GARBLED = "garbled"
    INTERNAL = "internal"


class DescribeRequest(Header):
    """Asks what a site agreed to describe of itself."""

    kind: Literal["describe"] = "describe"
    site: Name


class OfferRequest(Header):
    """Offers a plan; the payload is the plan's text, the signature binds coordinator and plan."""

    kind: Literal["offer"] = "offer"
    site: Name
    study: Name
    plan_digest: Digest


class TrainRequest(Header):
    """Asks for one round of training; the payload is the global tensors."""

    kind: Literal["train"] = "train"
    site: Name
    study: Name
    plan_digest: Digest
    branch: int = Field(0, ge=0)
    stage: Name
    round: int = Field(ge=1)
    echo: Head | None = None


class AuditRequest(Header):
    """Asks for an audit of weights; `lineage` is the signed record of the round they came out of.

    The payload is the bytes of the weights, then of the synthetic volumes that the coordinator drew
    from them, then of the extractor. Both may be empty: with noised counts neither is used, and
    volumes of a model that starts from images are made at the site.
    """

    kind: Literal["audit"] = "audit"
    site: Name
    study: Name
    plan_digest: Digest
    lineage: str = Field(max_length=1 << 16)
    weights_digest: Digest
    weights_size: int = Field(gt=0)
    samples_digest: Digest
    samples_size: int = Field(ge=0)
    extractor_digest: Digest
    samples: int = Field(ge=0, le=1 << 16)
    echo: Head | None = None

    def split(self, payload: bytes) -> tuple[bytes, bytes, bytes]:
        """Return weights, synthetic volumes and extractor.

        Raises:
            VerificationError: one of them is not what the request names.
        """
        end = self.weights_size + self.samples_size
        parts = payload[: self.weights_size], payload[self.weights_size : end], payload[end:]
        named = self.weights_digest, self.samples_digest, self.extractor_digest
        if tuple(map(hash_of, parts)) != named:
            raise VerificationError(
                "weights, synthetic volumes or extractor are not those that the request names"
            )
        return parts


class EvaluationRequest(Header):
    """Asks how good the weights are: the payload is their bytes, then those of the extractor."""

    kind: Literal["evaluation"] = "evaluation"
    site: Name
    study: Name
    plan_digest: Digest
    lineage: str = Field(max_length=1 << 16)
    weights_digest: Digest
    weights_size: int = Field(gt=0)
    extractor_digest: Digest
    samples: int = Field(ge=8, le=512)
    echo: Head | None = None

    @property
    def subject(self) -> str:
        """SHA-256 of what is asked about; an evaluation of anything else is another one."""
        return hash_of(canonical([self.weights_digest, self.extractor_digest, self.samples]))

    def split(self, payload: bytes) -> tuple[bytes, bytes]:
        """Return weights and extractor; raise VerificationError where they are not those named."""
        parts = payload[: self.weights_size], payload[self.weights_size :]
        if tuple(map(hash_of, parts)) != (self.weights_digest, self.extractor_digest):
            raise VerificationError("weights or extractor are not those that the request names")
        return parts


class Description(Header):
    """What a site agreed to say of itself, in coarse numbers (mm, bytes)."""

    kind: Literal["description"] = "description"
    patients: str = Field(pattern=r"^(under [0-9]+|[0-9]+ to [0-9]+|[0-9]+ or more)$")
    modalities: tuple[str, ...] = Field(max_length=32)
    spacing: tuple[float, float] | None
    labels: bool
    device: str = Field(max_length=80)
    most_epsilon: float
    least_noise: float
    without_privacy: bool
    defaced: Defaced
    version: str = Field(max_length=40)


class Decision(Header):
    """A site's answer to an offered plan; a declared size is given once it approved."""

    kind: Literal["decision"] = "decision"
    study: Name
    plan_digest: Digest
    decision: Literal["pending", "approved", "rejected"]
    reason: str = Field("", max_length=500)
    declared_patients: int = Field(0, ge=0)


class Update(Header):
    """A site's update of one round; the payload is the change of each trained tensor."""

    kind: Literal["update"] = "update"
    study: Name
    branch: int
    stage: str
    round: int
    request_digest: Digest
    steps: int = Field(ge=0)
    epsilon: float | None = Field(ge=0)
    metrics: dict[str, float] = Field(default_factory=dict, max_length=16)


class ScoreCounts(BaseModel):
    """How many patients have which score: counts of members and non-members on the same bins."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    edges: tuple[float, ...] = Field(min_length=2, max_length=1025)
    members: tuple[float, ...] = Field(max_length=1024)
    non_members: tuple[float, ...] = Field(max_length=1024)


class Confirmed(BaseModel):
    """Patients of whom two likenesses that look at different things find a copy."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    members: int = Field(0, ge=0)
    held_out: int = Field(0, ge=0)


class Audited(Header):
    """A site's answer to an audit: histograms of scores, and counts of copies by kind of likeness.

    `checked` are the coordinator's synthetic volumes that the site made again, `trained` the
    patients who trained, `canaries` the exact histograms of phantoms. What the site says of its
    cohort stands here too, so that the site's signature covers it.
    """

    kind: Literal["audited"] = "audited"
    study: Name
    request_digest: Digest
    weights_digest: Digest
    epsilon: float | None = Field(ge=0)
    counts: Literal["noised", "exact"]
    scores: dict[str, ScoreCounts] = Field(min_length=1, max_length=32)
    copies: dict[str, dict[str, float]] = Field(default_factory=dict, max_length=8)
    distances: dict[str, float] = Field(default_factory=dict, max_length=32)
    canaries: dict[str, ScoreCounts] = Field(default_factory=dict, max_length=32)
    confirmed: Confirmed = Confirmed()
    checked: int = Field(0, ge=0)
    trained: int | None = Field(None, ge=0)
    seconds: float = Field(0, ge=0)
    declared_patients: int = Field(ge=0)
    defaced: Defaced
    pseudo_patients: bool


class Evaluated(Header):
    """A site's answer to an evaluation: figures of quality, exact and not covered by epsilon."""

    kind: Literal["evaluated"] = "evaluated"
    study: Name
    request_digest: Digest
    weights_digest: Digest
    extractor_digest: Digest
    samples: int
    figures: tuple[FigureRow, ...] = Field(max_length=1024)
    intensities: Intensities
    seconds: float = Field(ge=0)
    flops: int = Field(ge=0)
    memory: int | None = Field(ge=0)
    pseudo_patients: bool


class Refused(Header):
    """A site does not do what was asked; only the code leaves."""

    kind: Literal["refused"] = "refused"
    code: RefusalCode


class Receipt(Header):
    """Carries a charged reply, as its payload, with the head of the ledger after the charge.

    The reply's digest is part of the ledger's row, so the row's digest cannot be part of the reply.
    """

    kind: Literal["receipt"] = "receipt"
    head: Head


Request = DescribeRequest | OfferRequest | TrainRequest | AuditRequest | EvaluationRequest
Reply = Description | Decision | Update | Audited | Evaluated | Refused | Receipt
Message = Request | Reply
_HEADERS: TypeAdapter[Any] = TypeAdapter(Annotated[Message, Field(discriminator="kind")])


def bound(header: Message, payload: bytes) -> Message:
    """Return the header with the digest and size of its payload."""
    return header.model_copy(
        update={"payload_digest": hash_of(payload), "payload_size": len(payload)}
    )


def encode(header: Message, key: SigningKey, payload: bytes = b"") -> bytes:
    """Return the message as bytes, with the payload's digest in the header, signed with `key`."""
    text = canonical(bound(header, payload).model_dump(mode="json"))
    signature = key.sign(pre_authentication(HEADER_TYPE, text))
    return b"".join([MAGIC, struct.pack(">I", len(text)), text, signature, payload])


def decode(message: bytes, key: PublicKey) -> tuple[Any, bytes]:
    """Return header and payload of a message signed by `key`.

    Raises:
        WireError: the bytes are garbled, cut short, too large or of another version.
        VerificationError: another key signed it, or the payload is not the one that was signed.
    """
    if message[:4] == COURIER_MAGIC:
        raise WireError(f"the courier could not reach its worker: {message[4:44]!r}")
    if message[:4] != MAGIC or len(message) < 8:
        raise WireError("not a voxfed message", got=repr(message[:4]), expected=repr(MAGIC))
    (size,) = struct.unpack(">I", message[4:8])
    if size > MAX_HEADER_BYTES or len(message) < 8 + size + 64:
        raise WireError("a message is cut short or its header is too large")
    text, signature = message[8 : 8 + size], message[8 + size : 72 + size]
    if not key.verify(signature, pre_authentication(HEADER_TYPE, text)):
        raise VerificationError("a message is not signed by its sender", expected=key.identifier)
    try:
        header = _HEADERS.validate_json(text, strict=True)
    except ValidationError as fault:
        raise WireError(f"a message's header is wrong: {fault.error_count()} fields") from None
    payload = message[72 + size :]
    if len(payload) != header.payload_size or (hash_of(payload) != header.payload_digest):
        raise VerificationError("a message's payload is not the one that was signed")
    return header, payload


def hash_of(payload: bytes) -> str:
    """SHA-256 of some bytes, in hexadecimal."""
    return hashlib.sha256(payload).hexdigest()


def request_digest(message: bytes) -> str:
    """SHA-256 of what a signed request asks for; see `header_digest`."""
    (size,) = struct.unpack(">I", message[4:8])
    return header_digest(_HEADERS.validate_json(message[8 : 8 + size], strict=True))


def header_digest(header: Message) -> str:
    """SHA-256 of a bound header, which binds all that it asks for, its payload included.

    The echo of the ledger's head and the signature are left out: a request that is asked again
    after a restart is the same request.
    """
    return hash_of(canonical(header.model_dump(mode="json", exclude={"echo"})))
