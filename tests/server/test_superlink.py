"""The SuperLink starts with TLS and node keys, or says why not, and leaves nothing behind."""

import socket
from pathlib import Path

import pytest
from voxfed.client.supernode import check_coordinator, node_key
from voxfed.server.certificates import create_certificates
from voxfed.server.control import Control
from voxfed.server.superlink import start_superlink
from voxfed.study.errors import ProcessError, UsageError, VerificationError


def test_it_starts_enrols_expels_and_stops(tmp_path: Path) -> None:
    """The whole life of one SuperLink; its enrolments outlive it."""
    create_certificates(tmp_path / "certificates", [])
    link = start_superlink(tmp_path, host="127.0.0.1")
    try:
        check_coordinator(f"127.0.0.1:{link.port}", tmp_path / "certificates" / "ca.pem")
        control = Control(tmp_path, link.port)
        keys = {}
        for name in ("hospital-a", "hospital-b"):
            (tmp_path / name).mkdir()
            keys[name] = node_key(tmp_path / name)[1].read_bytes()
            assert control.enrol(name, keys[name]) > 0
        with pytest.raises(UsageError, match="enrolled already"):
            control.enrol("hospital-a", keys["hospital-b"])
        with pytest.raises(UsageError, match="enrolled already"):
            control.enrol("hospital-c", keys["hospital-b"])
        with pytest.raises(UsageError, match="no usable node key"):
            control.enrol("hospital-c", b"ssh-ed25519 AAAA")
        control.expel("hospital-b")
        with pytest.raises(UsageError, match="no site hospital-b"):
            control.expel("hospital-b")
    finally:
        link.stop()
    assert link.process.poll() is not None
    with pytest.raises(ProcessError, match="no SuperLink answers"):
        control.nodes()

    again = start_superlink(tmp_path, host="127.0.0.1", port=link.port)
    try:
        assert [node.name for node in control.nodes()] == ["hospital-a"]
        assert not control.nodes()[0].online
    finally:
        again.stop()


def test_a_port_in_use_is_said_before_anything_starts(tmp_path: Path) -> None:
    create_certificates(tmp_path / "certificates", [])
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ProcessError, match=f"cannot listen at 127.0.0.1:{port}") as told:
            start_superlink(tmp_path, host="127.0.0.1", port=port)
    assert "another port" in told.value.hint
    assert not (tmp_path / "superlink.log").exists()


def test_foreign_certificates_start_nothing(tmp_path: Path) -> None:
    for name in ("certificates", "foreign"):
        create_certificates(tmp_path / name, [])
    (tmp_path / "foreign" / "server.pem").replace(tmp_path / "certificates" / "server.pem")
    with pytest.raises(VerificationError, match="foreign"):
        start_superlink(tmp_path, host="127.0.0.1")
    assert not (tmp_path / "superlink.log").exists()


def test_a_superlink_that_cannot_start_is_noticed(tmp_path: Path) -> None:
    """A damaged database ends it at once; the error names the log."""
    create_certificates(tmp_path / "certificates", [])
    (tmp_path / "superlink.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(ProcessError, match="did not start") as told:
        start_superlink(tmp_path, host="127.0.0.1")
    assert "superlink.log" in told.value.hint
