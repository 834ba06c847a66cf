"""Ports, certificates and strangers: who may talk to whom, and what is said where not."""

from __future__ import annotations

import datetime
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from federation import Federation
from voxfed.server import certificates

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def federation() -> Iterator[Federation]:
    """A coordinator and a hospital, of which nothing runs."""
    with Federation("north") as made:
        yield made


def test_a_port_in_use_is_told(federation: Federation) -> None:
    """The coordinator's server names the port and leaves no process behind."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", federation.port))
        taken.listen()
        done = federation.cli("server", "start", "--folder", federation.coordinator, code=1)
    assert f"cannot listen at 127.0.0.1:{federation.port}" in done.errors
    assert "choose another port" in done.errors
    assert not federation.running("server.gate")


def test_a_foreign_or_expired_certificate_is_refused_by_both(federation: Federation) -> None:
    """A hospital talks to its own coordinator only, and the coordinator says why it cannot."""
    folder = federation.coordinator / "certificates"
    sound = (folder / "server.pem").read_bytes()
    server = ("server", "start", "--folder", federation.coordinator)
    site = ("site", "start", "--role", "courier", "--folder", federation.sites["north"])
    try:
        with serving(folder, federation.port):
            (federation.sites["north"] / "courier" / "ca.pem").write_bytes(foreign(federation))
            done = federation.cli(*site, code=4)
        assert "cannot be trusted" in done.errors
        (federation.sites["north"] / "courier" / "ca.pem").write_bytes(
            (folder / "ca.pem").read_bytes()
        )
        (folder / "server.pem").write_bytes(expired(folder))
        done = federation.cli(*server, code=4)
        assert "is not valid today" in done.errors
        assert "server.pem" in done.errors
        with serving(folder, federation.port):
            done = federation.cli(*site, code=4)
        assert "certificate has expired" in done.errors
    finally:
        (folder / "server.pem").write_bytes(sound)


def test_a_site_that_nobody_enrolled_is_told_so(federation: Federation) -> None:
    """An unknown node gets no message, and its operator learns what is missing."""
    stranger = federation.folder / "stranger"
    cohort = federation.folder / "cohort-north"
    federation.cli(
        *("site", "init", federation.coordinator / "invitation.json", "--name", "stranger"),
        *("--cohort", cohort, "--folder", stranger),
    )
    federation.start_server()
    try:
        courier = ("site", "start", "--role", "courier", "--folder", stranger)
        done = federation.cli(*courier, code=1)
        assert "enrol" in done.errors
        online = federation.cli("server", "status", "--folder", federation.coordinator, "--json")
        assert set(online.json["sites"]) == {"north"}
    finally:
        federation.stop("server")


@contextmanager
def serving(folder: Path, port: int) -> Iterator[None]:
    """Show the coordinator's certificate to whoever connects."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    with socket.create_server(("127.0.0.1", port)) as listening:

        def greet() -> None:
            plain, _ = listening.accept()
            with plain, suppress(OSError):  # who refuses the certificate leaves
                context.wrap_socket(plain, server_side=True).close()

        thread = threading.Thread(target=greet)
        thread.start()
        yield
        thread.join(10)


def foreign(federation: Federation) -> bytes:
    """Return the authority of another coordinator."""
    folder = federation.folder / "foreign"
    certificates.create_certificates(folder, ["127.0.0.1"])
    return (folder / "ca.pem").read_bytes()


def expired(folder: Path) -> bytes:
    """Return the server's certificate as it would be had it ended yesterday."""
    shown = x509.load_pem_x509_certificate((folder / "server.pem").read_bytes())
    key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(shown.subject)
        .issuer_name(shown.issuer)
        .public_key(shown.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=30))
        .not_valid_after(now - datetime.timedelta(days=1))
    )
    for extension in shown.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    signed = builder.sign(key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM)
