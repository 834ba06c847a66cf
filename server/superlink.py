"""Starts and stops Flower's SuperLink: TLS, registered nodes only, SQLite, nothing sent home."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from ..study.errors import ProcessError
from .certificates import inspect_certificate
from .gate import TOKEN_VARIABLE, control_token

EXECUTOR_POLL_SECONDS = 0.05
START_SECONDS = 60.0
RESTART_SECONDS = 1.0
FOLDER_VARIABLE = "VOXFED_COORDINATOR_FOLDER"


class SuperLink:
    """A running SuperLink with all that it started; `stop` ends it."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process, self.port, self.log = process, port, log

    def stop(self, grace: float = 10.0) -> None:
        """Ask it to end, and kill what is left after `grace` seconds.

        Flower starts its executor in a session of its own, which ends by itself when it finds the
        SuperLink gone (it looks every 0.2 s), and the ServerApp after it.
        """
        for sign in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, sign)
                self.process.wait(grace)
            except ProcessLookupError:
                self.process.wait()
                return
            except subprocess.TimeoutExpired:
                continue


def start_superlink(
    folder: Path, *, host: str, port: int | None = None, health_port: int | None = None
) -> SuperLink:
    """Start the SuperLink of the coordinator's `folder` and wait until it answers.

    The certificates lie in `folder`/certificates (see `certificates.py`), the state in
    `folder`/superlink.sqlite, the log in `folder`/superlink.log, the token that opens the Control
    API in `folder`/control.token (0600). The ServerApp it starts finds `folder` in the environment
    as VOXFED_COORDINATOR_FOLDER.

    Args:
        folder: the coordinator's folder.
        host: address to listen at; "127.0.0.1" for a demo, "0.0.0.0" for hospitals.
        port: TCP port, or None for a free one.
        health_port: port for Flower's gRPC health service, for containers.

    Raises:
        ProcessError: the port is in use, or the SuperLink did not start.
        VerificationError: the certificate is expired or foreign.
    """
    certificates = folder / "certificates"
    inspect_certificate(certificates / "server.pem", certificates / "ca.pem", "127.0.0.1")
    port = _reserve(host, port)
    command = [
        *(sys.executable, "-m", "voxfed.server.gate", "--host", host, "--port", str(port)),
        *("--ssl-ca-certfile", str(certificates / "ca.pem")),
        *("--ssl-certfile", str(certificates / "server.pem")),
        *("--ssl-keyfile", str(certificates / "server.key")),
        *("--database", str(folder / "superlink.sqlite"), "--isolation", "subprocess"),
        *("--enable-supernode-auth", "--disable-runtime-dependency-installation"),
    ]
    if health_port is not None:
        command += ["--health-server-address", f"0.0.0.0:{health_port}"]
    log = folder / "superlink.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            env=_environment(folder),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    link = SuperLink(process, port, log)
    _wait_until_up(link)
    return link


def keep_running(
    folder: Path,
    *,
    host: str,
    port: int,
    health_port: int | None,
    node_keys: Callable[[], Mapping[str, bytes]],
) -> None:
    """Run the SuperLink until SIGTERM or SIGINT, with every enrolled site registered.

    Raises:
        ProcessError: the port is in use.
        VerificationError: the certificate is expired or foreign.
    """
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    while not stopped.is_set():
        link = start_superlink(folder, host=host, port=port, health_port=health_port)
        try:
            register_sites(folder, port, node_keys())
            while not stopped.wait(0.5) and link.process.poll() is None:
                pass
        finally:
            link.stop()
        stopped.wait(RESTART_SECONDS)


def register_sites(folder: Path, port: int, node_keys: Mapping[str, bytes]) -> None:
    """Register every enrolled node that the SuperLink does not know; do nothing if it is down.

    It is asked again at each start, so that an enrolment made before counts too.
    """
    from .control import Control

    control = Control(folder, port)
    try:
        known = {node.name for node in control.nodes()}
    except ProcessError:
        return
    for name, key in node_keys.items():
        if name not in known:
            control.enrol(name, key)


def _environment(folder: Path) -> dict[str, str]:
    programs = str(Path(sys.executable).parent)
    return os.environ | {
        "PATH": os.pathsep.join([programs, os.environ.get("PATH", os.defpath)]),
        "FLWR_HOME": str(folder / "flower"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": str(EXECUTOR_POLL_SECONDS),
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        TOKEN_VARIABLE: control_token(folder),
        FOLDER_VARIABLE: str(folder),
    }


def _reserve(host: str, port: int | None) -> int:
    """Return `port`, or a free one, after making sure that we can listen there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port or 0))
        except OSError as error:
            raise ProcessError(
                f"cannot listen at {host}:{port}",
                got=error.strerror,
                hint="stop what listens there, or choose another port in coordinator.toml",
            ) from None
        return int(probe.getsockname()[1])


def _wait_until_up(link: SuperLink) -> None:
    ends = time.monotonic() + START_SECONDS
    while time.monotonic() < ends and link.process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", link.port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    status = link.process.poll()
    link.stop(grace=1)
    raise ProcessError(
        "the SuperLink did not start",
        got="no answer" if status is None else f"exit status {status}",
        hint=f"its last lines in {link.log} say why",
    )
