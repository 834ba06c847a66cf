"""The coordinator's certificates are found out when expired, foreign or made for another name."""

import stat
from pathlib import Path

import pytest
from cryptography import x509
from voxfed.server import certificates
from voxfed.server.certificates import create_certificates, inspect_certificate
from voxfed.study.errors import ProcessError, VerificationError


def test_names_lifetimes_and_modes(tmp_path: Path) -> None:
    create_certificates(tmp_path, ["10.1.2.3", "fed.example.org"])
    for name in ("10.1.2.3", "fed.example.org", "127.0.0.1", "localhost"):
        inspect_certificate(tmp_path / "server.pem", tmp_path / "ca.pem", name)
    authority = x509.load_pem_x509_certificate((tmp_path / "ca.pem").read_bytes())
    assert (authority.not_valid_after_utc - authority.not_valid_before_utc).days == 3651
    for name in ("ca.key", "server.key"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_another_name_is_refused_and_listed(tmp_path: Path) -> None:
    create_certificates(tmp_path, ["10.1.2.3"])
    with pytest.raises(VerificationError, match=r"10\.1\.2\.4.*10\.1\.2\.3"):
        inspect_certificate(tmp_path / "server.pem", tmp_path / "ca.pem", "10.1.2.4")


def test_a_foreign_authority_is_refused(tmp_path: Path) -> None:
    """Same names, same subject, another key."""
    for name in ("ours", "theirs"):
        create_certificates(tmp_path / name, [])
    with pytest.raises(VerificationError, match="foreign"):
        inspect_certificate(
            tmp_path / "theirs" / "server.pem", tmp_path / "ours" / "ca.pem", "localhost"
        )


def test_an_expired_certificate_is_renewed_under_the_same_authority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sites keep their ca.pem when the server's certificate is renewed."""
    with monkeypatch.context() as past:
        past.setattr(certificates, "SERVER_DAYS", -1)
        past.setattr(certificates, "BACKDATED_DAYS", 3)
        create_certificates(tmp_path, [])
    authority = (tmp_path / "ca.pem").read_bytes()
    with pytest.raises(VerificationError, match="not valid today") as told:
        inspect_certificate(tmp_path / "server.pem", tmp_path / "ca.pem", "localhost")
    assert "remove server.pem" in told.value.hint
    (tmp_path / "server.pem").unlink()
    create_certificates(tmp_path, [])
    inspect_certificate(tmp_path / "server.pem", tmp_path / "ca.pem", "localhost")
    assert (tmp_path / "ca.pem").read_bytes() == authority


@pytest.mark.parametrize("content", [None, b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_a_missing_or_garbled_file_is_said(tmp_path: Path, content: bytes | None) -> None:
    create_certificates(tmp_path, [])
    (tmp_path / "ca.pem").unlink()
    if content is not None:
        (tmp_path / "ca.pem").write_bytes(content)
    with pytest.raises(ProcessError, match="no readable certificate"):
        inspect_certificate(tmp_path / "server.pem", tmp_path / "ca.pem", "localhost")
