"""Starts Flower's SuperNode so that nothing which the server delivers is ever run at the site.

Flower's executor finds the programs it starts by name on PATH. Ours come first there: as
`flwr-clientapp` the courier, and for every other kind of task a program that refuses.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ..study.errors import ProcessError, VerificationError

EXECUTOR_POLL_SECONDS = 0.05
_REFUSED = ("agentapp", "connector", "model", "serverapp", "simulation")
_KEPT = ("LANG", "LC_ALL", "TZ", "TMPDIR", "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy")


def node_key(folder: Path) -> tuple[Path, Path]:
    """Return the private and public key file of the node in `folder`, creating them if absent.

    The pair is ECDSA on NIST P-384 in OpenSSH format, which is what Flower 1.41 reads; the private
    file has mode 0600 and no passphrase. The coordinator enrols the public one.
    """
    private, public = folder / "node.key", folder / "node.pub"
    if not private.exists():
        key = ec.generate_private_key(ec.SECP384R1())
        _write(
            private,
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.OpenSSH,
                serialization.NoEncryption(),
            ),
            0o600,
        )
    if not public.exists():
        loaded = serialization.load_ssh_private_key(private.read_bytes(), None)
        _write(
            public,
            loaded.public_key().public_bytes(
                serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
            ),
            0o644,
        )
    return private, public


def check_coordinator(address: str, root_certificate: Path) -> None:
    """Check that a coordinator answers at `address` ("host:port") with a certificate we trust.

    Flower itself retries for ever without a word when it does not.

    Raises:
        ProcessError: nothing answers there, or not with TLS.
        VerificationError: its certificate is expired, foreign or made for another name.
    """
    host, _, port = address.rpartition(":")
    try:
        trusted = ssl.create_default_context(cafile=root_certificate)
        with socket.create_connection((host.strip("[]"), int(port)), timeout=10) as plain:
            trusted.wrap_socket(plain, server_hostname=host.strip("[]")).close()
    except ssl.SSLCertVerificationError as error:
        raise VerificationError(
            f"the certificate of the coordinator at {address} cannot be trusted",
            got=error.verify_message,
            expected=f"one signed by {root_certificate}",
            hint="ask the coordinator for the present ca.pem, by a way you trust",
        ) from None
    except (OSError, ValueError) as error:
        raise ProcessError(
            f"no coordinator answers at {address}",
            got=type(error).__name__,
            hint=f"allow outgoing TCP to {address} in the firewall; is the coordinator started?",
        ) from None


class SuperNode:
    """A running SuperNode with all that it started; `stop` ends the whole group."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process, self.log = process, log

    def stop(self, grace: float = 8.0) -> None:
        """Ask the process group to end, and kill what is left after `grace` seconds."""
        for sign in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, sign)
                self.process.wait(grace)
            except ProcessLookupError:
                self.process.wait()
                return
            except subprocess.TimeoutExpired:
                continue


def start_supernode(
    folder: Path,
    *,
    address: str,
    root_certificate: Path,
    key: Path,
    worker_socket: Path,
    health_port: int | None = None,
) -> SuperNode:
    """Start `flower-supernode` in a process group of its own; its log is `folder`/supernode.log.

    Args:
        folder: the courier's folder; holds Flower's home, the programs and the courier's journal.
        address: "host:port" of the coordinator, spelt as in its certificate.
        root_certificate: the coordinator's CA certificate (PEM).
        key: this node's private key, from `node_key`.
        worker_socket: where the courier finds the worker.
        health_port: port on all interfaces for Flower's gRPC health service, for containers.

    Raises:
        ProcessError: the certificate or the key is not there.
    """
    for needed in (root_certificate, key):
        if not needed.is_file():
            raise ProcessError(f"no file {needed}", hint="run `voxfed site init` first")
    programs = _write_programs(folder / "bin")
    command = [
        *(str(Path(sys.executable).with_name("flower-supernode")), "--superlink", address),
        *("--root-certificates", str(root_certificate)),
        *("--auth-supernode-private-key", str(key)),
        *("--isolation", "subprocess", "--host", "127.0.0.1", "--port", str(_free_port())),
    ]
    if health_port is not None:
        command += ["--health-server-address", f"0.0.0.0:{health_port}"]
    log = folder / "supernode.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            env=_environment(folder, programs, worker_socket),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return SuperNode(process, log)


def _environment(folder: Path, programs: Path, worker_socket: Path) -> dict[str, str]:
    """Return the whole environment of the SuperNode: nothing of ours reaches it unlisted."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    local = ",".join(filter(None, [kept.get("NO_PROXY", kept.get("no_proxy")), "127.0.0.1"]))
    path = [str(programs), str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    return kept | {
        "PATH": os.pathsep.join(path),
        "HOME": str(folder),
        "FLWR_HOME": str(folder / "flower"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": str(EXECUTOR_POLL_SECONDS),
        "NO_PROXY": local,
        "no_proxy": local,
        "VOXFED_WORKER_SOCKET": str(worker_socket),
        "VOXFED_COURIER_FOLDER": str(folder),
    }


def _write_programs(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    python = shlex.quote(sys.executable)
    courier = f'#!/bin/sh\nexec {python} -I -m voxfed.client.courier "$@"\n'
    _write(folder / "flwr-clientapp", courier.encode(), 0o755)
    for kind in _REFUSED:
        refusal = f"#!/bin/sh\necho 'voxfed: error: a site runs no flwr-{kind}' >&2\nexit 3\n"
        _write(folder / f"flwr-{kind}", refusal.encode(), 0o755)
    return folder


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _write(path: Path, content: bytes, mode: int) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "wb") as file:
        os.fchmod(handle, mode)
        file.write(content)
        file.flush()
        os.fsync(handle)
    os.replace(temporary, path)
