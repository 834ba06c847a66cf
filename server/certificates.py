"""The coordinator's own certificate authority and the certificate that its server shows."""

from __future__ import annotations

import datetime
import ipaddress
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ..study.errors import ProcessError, VerificationError

AUTHORITY_DAYS = 3650
SERVER_DAYS = 730
# Clocks of hospitals differ; a certificate of today must not be one of tomorrow.
BACKDATED_DAYS = 1


def create_certificates(folder: Path, names: Sequence[str]) -> None:
    """Write the authority (ca.pem, ca.key) and server certificate (server.pem, server.key).

    What is there already is kept, so that removing server.pem renews it under the same authority
    and no site needs a new file. Keys are ECDSA P-256, mode 0600. 127.0.0.1 and localhost are
    always among the names, since Flower's own processes call the server by them.

    Args:
        folder: where the four files go.
        names: host names and IP addresses by which sites reach the coordinator (SANs, RFC 5280).
    """
    folder.mkdir(parents=True, exist_ok=True)
    authority, authority_key = folder / "ca.pem", folder / "ca.key"
    if not authority.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        _write_key(authority_key, key)
        _write(authority, _sign_authority(key).public_bytes(serialization.Encoding.PEM), 0o644)
    if not (folder / "server.pem").exists():
        key = ec.generate_private_key(ec.SECP256R1())
        signed = _sign_server(key, _load(authority), _load_key(authority_key), names)
        _write_key(folder / "server.key", key)
        _write(folder / "server.pem", signed.public_bytes(serialization.Encoding.PEM), 0o644)


def inspect_certificate(certificate: Path, authority: Path, name: str) -> None:
    """Check that `certificate` (PEM) is valid today, made for `name`, and signed by `authority`.

    Raises:
        ProcessError: a file is missing or is no certificate.
        VerificationError: it is expired, not yet valid, foreign, or made for other names.
    """
    shown, trusted = _load(certificate), _load(authority)
    try:
        shown.verify_directly_issued_by(trusted)
    except (ValueError, TypeError, InvalidSignature):
        raise VerificationError(
            f"the certificate {certificate} is foreign",
            got=shown.issuer.rfc4514_string(),
            expected=f"one signed by {authority}",
            hint="use the two files of the same coordinator",
        ) from None
    now = datetime.datetime.now(datetime.UTC)
    for what, one in ((certificate, shown), (authority, trusted)):
        if not one.not_valid_before_utc <= now <= one.not_valid_after_utc:
            raise VerificationError(
                f"the certificate {what} is not valid today",
                got=f"{now:%F}",
                expected=f"{one.not_valid_before_utc:%F} to {one.not_valid_after_utc:%F}",
                hint="remove server.pem and start the coordinator again to renew it",
            )
    if _general_name(name) not in _names(shown):
        raise VerificationError(
            f"the certificate {certificate} is made for other names",
            got=name,
            expected=", ".join(str(one.value) for one in _names(shown)),
            hint=f"remove server.pem and name {name} when the coordinator is started",
        )


def _sign_authority(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = _subject("voxfed coordinator authority")
    builder = _builder(name, name, key, AUTHORITY_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    return builder.sign(key, hashes.SHA256())


def _sign_server(
    key: ec.EllipticCurvePrivateKey,
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    names: Sequence[str],
) -> x509.Certificate:
    everyone = dict.fromkeys([*names, "localhost", "127.0.0.1"])
    builder = _builder(_subject("voxfed coordinator"), authority.subject, key, SERVER_DAYS)
    for extension, critical in (
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_usage(signs_certificates=False), True),
        (x509.SubjectAlternativeName([_general_name(name) for name in everyone]), False),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), False),
    ):
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(authority_key, hashes.SHA256())


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=BACKDATED_DAYS))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _names(certificate: x509.Certificate) -> list[x509.GeneralName]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return list(found.value)


def _load(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        raise ProcessError(
            f"no readable certificate at {path}", hint="run `voxfed server init` first"
        ) from None


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError):
        raise ProcessError(f"no readable key at {path}", hint="restore it from a backup") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ProcessError(f"the key at {path} is of another kind", expected="ECDSA P-256")
    return key


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    content = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    _write(path, content, 0o600)


def _write(path: Path, content: bytes, mode: int) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "wb") as file:
        os.fchmod(handle, mode)
        file.write(content)
        file.flush()
        os.fsync(handle)
    os.replace(temporary, path)
