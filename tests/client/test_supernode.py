"""The SuperNode is started so that it runs our programs only, and with a key Flower can read."""

import shutil
import socket
import ssl
import stat
import subprocess
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from voxfed.client import supernode
from voxfed.client.supernode import check_coordinator, node_key, start_supernode
from voxfed.server.certificates import create_certificates
from voxfed.study.errors import ProcessError, VerificationError


def test_the_node_key_is_what_flower_reads_and_stays(tmp_path: Path) -> None:
    """P-384 in OpenSSH format, private to its owner, and never replaced once made."""
    private, public = node_key(tmp_path)
    key = serialization.load_ssh_private_key(private.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.curve.name == "secp384r1"
    assert key.public_key() == serialization.load_ssh_public_key(public.read_bytes())
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    before = private.read_bytes()
    public.unlink()
    assert node_key(tmp_path) == (private, public)
    assert private.read_bytes() == before
    assert key.public_key() == serialization.load_ssh_public_key(public.read_bytes())


def test_every_program_that_flower_may_start_is_ours(tmp_path: Path) -> None:
    """A server that sends an agent or a model task gets a refusal, not its code run."""
    from flwr.supercore.constant import TASK_TYPE_TO_COMMAND

    programs = supernode._write_programs(tmp_path / "bin")
    environment = supernode._environment(tmp_path, programs, tmp_path / "worker.sock")
    for program in TASK_TYPE_TO_COMMAND.values():
        found = shutil.which(program, path=environment["PATH"])
        assert found == str(programs / program)
        text = Path(found).read_text()
        assert ("voxfed.client.courier" in text) == (program == "flwr-clientapp")
        if program != "flwr-clientapp":
            ended = subprocess.run([found, "--token", "x"], capture_output=True, check=False)
            assert ended.returncode == 3


def test_nothing_of_ours_reaches_the_supernode_unlisted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Secrets and import paths of the operator's shell stay out; calls home are off."""
    monkeypatch.setenv("DATABASE_PASSWORD", "secret")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", "example.org")
    environment = supernode._environment(tmp_path, tmp_path / "bin", tmp_path / "worker.sock")
    assert "secret" not in environment.values()
    assert "PYTHONPATH" not in environment
    assert environment["HTTPS_PROXY"] == "http://proxy:3128"
    assert environment["NO_PROXY"] == "example.org,127.0.0.1"
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert environment["FLWR_HOME"].startswith(str(tmp_path))


def test_a_missing_certificate_starts_nothing(tmp_path: Path) -> None:
    private, _ = node_key(tmp_path)
    with pytest.raises(ProcessError, match=r"ca\.pem"):
        start_supernode(
            tmp_path,
            address="127.0.0.1:1",
            root_certificate=tmp_path / "ca.pem",
            key=private,
            worker_socket=tmp_path / "worker.sock",
        )
    assert not (tmp_path / "supernode.log").exists()


def test_nobody_at_the_address_is_said_with_the_port_to_open(tmp_path: Path) -> None:
    create_certificates(tmp_path, [])
    with pytest.raises(ProcessError, match="no coordinator answers") as told:
        check_coordinator("127.0.0.1:1", tmp_path / "ca.pem")
    assert "127.0.0.1:1" in told.value.hint


@pytest.mark.parametrize("days", [-1, 30])
def test_an_expired_certificate_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    """The same handshake passes with a valid certificate and fails with one that ended."""
    monkeypatch.setattr("voxfed.server.certificates.SERVER_DAYS", days)
    if days < 0:
        monkeypatch.setattr("voxfed.server.certificates.BACKDATED_DAYS", 3)
    create_certificates(tmp_path, [])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"

        def answer() -> None:
            plain, _ = server.accept()
            with plain:
                try:
                    context.wrap_socket(plain, server_side=True).close()
                except OSError:  # the other side refused, as it should
                    return

        thread = threading.Thread(target=answer)
        thread.start()
        if days < 0:
            with pytest.raises(VerificationError, match="expired"):
                check_coordinator(address, tmp_path / "ca.pem")
        else:
            check_coordinator(address, tmp_path / "ca.pem")
        thread.join()
