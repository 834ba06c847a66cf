"""Identity: keys in files, signatures, and envelopes whose type cannot be mixed up."""

import base64
import json
import stat
import string
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, x25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from voxfed.study.errors import ProcessError, UsageError, VerificationError
from voxfed.study.identity import (
    PAYLOAD_TYPE,
    PublicKey,
    SigningKey,
    canonical,
    open_envelope,
    pre_authentication,
    sign_envelope,
    statement,
)

# RFC 8032, section 7.1, test 2.
SEED = "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"
PUBLIC = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
SIGNATURE = (
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return SigningKey.create(tmp_path / "key.pem")


def test_signatures_are_those_of_the_standard() -> None:
    """RFC 8032 gives the bytes: another library verifies what we sign."""
    key = SigningKey(ed25519.Ed25519PrivateKey.from_private_bytes(bytes.fromhex(SEED)))
    assert key.public.text == PUBLIC
    assert key.sign(b"\x72").hex() == SIGNATURE
    assert key.public.verify(bytes.fromhex(SIGNATURE), b"\x72")
    assert not key.public.verify(bytes.fromhex(SIGNATURE), b"\x73")
    assert not key.public.verify(b"", b"\x72")


def test_a_key_file_is_private_and_never_overwritten(tmp_path: Path) -> None:
    """Only its owner may read it, and a second `create` keeps the first key."""
    path = tmp_path / "keys" / "key.pem"
    key = SigningKey.create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(UsageError, match="exists already"):
        SigningKey.create(path)
    assert SigningKey.read(path).public == key.public


def test_a_passphrase_protects_the_officers_key(tmp_path: Path) -> None:
    """Without it, or with another, the key does not open."""
    path = tmp_path / "key.pem"
    key = SigningKey.create(path, "correct horse")
    assert b"ENCRYPTED" in path.read_bytes()
    assert SigningKey.read(path, "correct horse").public == key.public
    for wrong in (None, "correct mare"):
        with pytest.raises(UsageError, match="does not open"):
            SigningKey.read(path, wrong)


def test_wrong_key_files(tmp_path: Path) -> None:
    """A missing, garbled or foreign key gives one clear error."""
    with pytest.raises(ProcessError, match="cannot be read"):
        SigningKey.read(tmp_path / "absent")
    (tmp_path / "garbled").write_bytes(b"-----BEGIN PRIVATE KEY-----")
    with pytest.raises(UsageError, match="does not open"):
        SigningKey.read(tmp_path / "garbled")
    other = x25519.X25519PrivateKey.generate()
    (tmp_path / "other").write_bytes(
        other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    with pytest.raises(UsageError, match="another kind of key"):
        SigningKey.read(tmp_path / "other")


@pytest.mark.parametrize("text", ["", "00" * 31, "00" * 33, "zz" * 32, PUBLIC[:-1]])
def test_wrong_public_keys(text: str) -> None:
    """A key cut short or mistyped is refused at once."""
    with pytest.raises(UsageError, match="64 hexadecimal digits"):
        PublicKey.from_text(text)


def test_pre_authentication_is_that_of_dsse() -> None:
    """The published example of the DSSE protocol."""
    expected = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    assert pre_authentication("http://example.com/HelloWorld", b"hello world") == expected


def test_statement_is_canonical() -> None:
    """Equal facts are equal bytes whatever their order; NaN has no canonical form."""
    first = statement({"b": "2", "a": "1"}, "t", {"y": 1, "x": [2]})
    assert first == statement({"a": "1", "b": "2"}, "t", {"x": [2], "y": 1})
    assert json.loads(first)["subject"][0] == {"name": "a", "digest": {"sha256": "1"}}
    with pytest.raises(ValueError, match="JSON"):
        canonical({"x": float("nan")})


def test_envelope_round_trip(key: SigningKey) -> None:
    """The payload comes back as it was signed."""
    assert open_envelope(sign_envelope(b"{}", key), key.public, what="it") == b"{}"


def test_another_key_is_refused(key: SigningKey, tmp_path: Path) -> None:
    """Whoever else signed it, the envelope does not open."""
    other = SigningKey.create(tmp_path / "other.pem")
    with pytest.raises(VerificationError, match="not signed by the expected key"):
        open_envelope(sign_envelope(b"{}", other), key.public, what="it")


def test_types_cannot_be_confused(key: SigningKey) -> None:
    """A signed record is never taken for a signed release, nor when its label is changed."""
    envelope = sign_envelope(b"{}", key, "application/vnd.voxfed.round.v1+json")
    with pytest.raises(VerificationError, match="another type"):
        open_envelope(envelope, key.public, what="it")
    relabelled = json.loads(envelope) | {"payloadType": PAYLOAD_TYPE}
    with pytest.raises(VerificationError, match="not signed"):
        open_envelope(json.dumps(relabelled).encode(), key.public, what="it")


@pytest.mark.parametrize("part", ["payload", "sig"])
def test_every_changed_bit_is_refused(key: SigningKey, part: str) -> None:
    """No bit of payload or signature can change."""
    document = json.loads(sign_envelope(b"a payload", key))
    holder = document if part == "payload" else document["signatures"][0]
    content = base64.b64decode(holder[part])
    for bit in range(8 * len(content)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        holder[part] = base64.b64encode(changed).decode()
        with pytest.raises(VerificationError):
            open_envelope(json.dumps(document).encode(), key.public, what="it")


@pytest.mark.parametrize("payload", [b"a", b"ab", b"abc"])
@pytest.mark.parametrize("part", ["payload", "sig"])
def test_one_content_has_one_text(key: SigningKey, payload: bytes, part: str) -> None:
    """Base64 leaves bits of its last letter unused: with any other of them it is another file."""
    document = json.loads(sign_envelope(payload, key))
    holder = document if part == "payload" else document["signatures"][0]
    text = holder[part]
    last = len(text.rstrip("=")) - 1
    for letter in string.ascii_letters + string.digits + "+/=":
        holder[part] = text[:last] + letter + text[last + 1 :]
        if holder[part] != text:
            with pytest.raises(VerificationError):
                open_envelope(json.dumps(document).encode(), key.public, what="it")


@pytest.mark.parametrize(
    "envelope",
    [
        b"",
        b"[]",
        b"{}",
        b'{"payload": 3, "payloadType": "x", "signatures": []}',
        b'{"payload": "e30=", "payloadType": "x", "signatures": 3}',
        b'{"payload": "e30=", "payloadType": "x", "signatures": [3]}',
        b'{"payload": "!", "payloadType": "x", "signatures": []}',
        b"\xff\xff",
    ],
)
def test_what_is_no_envelope(key: SigningKey, envelope: bytes) -> None:
    """Garbled envelopes give a verification error and no traceback."""
    with pytest.raises(VerificationError):
        open_envelope(envelope, key.public, what="it")


def test_no_signature_is_no_signature(key: SigningKey) -> None:
    """An empty list of signatures opens nothing."""
    document = json.loads(sign_envelope(b"{}", key)) | {"signatures": []}
    with pytest.raises(VerificationError, match="not signed"):
        open_envelope(json.dumps(document).encode(), key.public, what="it")
