"""Ed25519 keys, signatures, and DSSE envelopes of in-toto statements.

DSSE: https://github.com/secure-systems-lab/dsse (protocol v1). Statement: in-toto attestation v1.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from .errors import ProcessError, UsageError, VerificationError
from .files import write

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PAYLOAD_TYPE = "application/vnd.in-toto+json"


@dataclass(frozen=True)
class PublicKey:
    """A public Ed25519 key: 32 bytes, known by the SHA-256 of them."""

    raw: bytes

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Read 64 hexadecimal digits; raise UsageError for anything else."""
        try:
            raw = bytes.fromhex(text.strip())
        except ValueError:
            raw = b""
        if len(raw) != 32:
            raise UsageError(
                "a public key cannot be read", got=repr(text[:20]), expected="64 hexadecimal digits"
            )
        return cls(raw)

    @property
    def text(self) -> str:
        """The key as 64 hexadecimal digits."""
        return self.raw.hex()

    @property
    def identifier(self) -> str:
        """The first 16 hexadecimal digits of the key's SHA-256, to compare by telephone."""
        return hashlib.sha256(self.raw).hexdigest()[:16]

    def verify(self, signature: bytes, data: bytes) -> bool:
        """Return whether `signature` over `data` was made with this key (RFC 8032)."""
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, data)
        except InvalidSignature:
            return False
        return True


class SigningKey:
    """A private Ed25519 key, kept in one file of mode 0600."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @classmethod
    def create(cls, path: Path, passphrase: str | None = None) -> Self:
        """Make a key in `path`, encrypted where a passphrase is given; refuse to overwrite one."""
        if path.exists():
            raise UsageError(f"{path} exists already", hint="choose another folder or move the key")
        key = Ed25519PrivateKey.generate()
        protection: KeySerializationEncryption = (
            BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
        )
        write(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection), mode=0o600)
        return cls(key)

    @classmethod
    def read(cls, path: Path, passphrase: str | None = None) -> Self:
        """Read the key in `path`; raise ProcessError or UsageError saying what is wrong with it."""
        try:
            text = path.read_bytes()
        except OSError as fault:
            raise ProcessError(f"{path} cannot be read: {fault.strerror}") from None
        try:
            key = load_pem_private_key(text, passphrase.encode() if passphrase else None)
        except (ValueError, TypeError):
            raise UsageError(f"{path} does not open", hint="check the passphrase") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise UsageError(f"{path} holds another kind of key", expected="Ed25519")
        return cls(key)

    @property
    def public(self) -> PublicKey:
        """The public half."""
        return PublicKey(self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))

    def sign(self, data: bytes) -> bytes:
        """Return the 64 bytes of the signature over `data` (RFC 8032)."""
        return self._key.sign(data)


def pre_authentication(payload_type: str, payload: bytes) -> bytes:
    """Return the bytes that DSSE signs, so that type and payload cannot be mixed up."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def statement(
    subjects: Mapping[str, str], predicate_type: str, predicate: Mapping[str, Any]
) -> bytes:
    """Return an in-toto v1 statement about files (name -> SHA-256) as canonical JSON."""
    document = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": n, "digest": {"sha256": d}} for n, d in sorted(subjects.items())],
        "predicateType": predicate_type,
        "predicate": dict(predicate),
    }
    return canonical(document)


def canonical(document: Any) -> bytes:
    """Return `document` as JSON with sorted keys and no spaces, so that equal means equal bytes."""
    text = json.dumps(
        document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    # A file name may hold bytes that are no UTF-8; backslashreplace makes JSON escapes of them.
    return text.encode(errors="backslashreplace")


def sign_envelope(payload: bytes, key: SigningKey, payload_type: str = PAYLOAD_TYPE) -> bytes:
    """Return a DSSE envelope around `payload`, signed with `key`."""
    signature = key.sign(pre_authentication(payload_type, payload))
    return json.dumps(
        {
            "payloadType": payload_type,
            "payload": base64.b64encode(payload).decode(),
            "signatures": [
                {"keyid": key.public.identifier, "sig": base64.b64encode(signature).decode()}
            ],
        },
        indent=1,
    ).encode()


def open_envelope(
    envelope: bytes, key: PublicKey, *, what: str, payload_type: str = PAYLOAD_TYPE
) -> bytes:
    """Return the payload of a DSSE envelope signed by `key`; raise VerificationError otherwise."""
    try:
        document = json.loads(envelope)
        payload = _decoded(document["payload"])
        kind = str(document["payloadType"])
        signatures = [_decoded(s["sig"]) for s in document["signatures"]]
    except (ValueError, KeyError, TypeError):
        raise VerificationError(f"{what} is not a DSSE envelope") from None
    if kind != payload_type:
        raise VerificationError(f"{what} has another type", got=kind[:60], expected=payload_type)
    data = pre_authentication(kind, payload)
    if not any(key.verify(signature, data) for signature in signatures):
        raise VerificationError(
            f"{what} is not signed by the expected key",
            expected=f"key {key.identifier}",
            hint="ask its sender which key was used; do not use the file",
        )
    return payload


def _decoded(text: str) -> bytes:
    """Return the bytes of base64; raise ValueError for a text that encoding never gives.

    The unused bits of the last letter must be zero (RFC 4648, section 3.5): no signature covers
    them, and a file that was changed there would still verify.
    """
    content = base64.b64decode(text, validate=True)
    if base64.b64encode(content).decode() != text:
        raise ValueError("unused bits")
    return content
