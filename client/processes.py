"""The two processes of a site, and the one that watches over both."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from ..study.errors import ProcessError, VoxfedError
from ..study.terminal import show_error
from .site import Site, read_address

Role = Literal["worker", "courier"]
ROLES: tuple[Role, ...] = ("worker", "courier")
RESTART_SECONDS = 2.0


def run_worker(site: Site) -> None:
    """Serve the socket until SIGTERM or SIGINT.

    Raises:
        ProcessError: another worker serves there, or the directory is open to others.
        VerificationError: the ledger's chain does not hold.
    """
    from .socket import serve
    from .worker import Worker

    site.ledger.verify_chain()
    worker = Worker(site)
    with _noted(site.run, "worker"):
        server = serve(site.socket, worker.answer, allowed_uids=frozenset({os.geteuid()}))
        try:
            _wait_for_signal()
        finally:
            server.stop(grace=1.0)


def run_courier(site: Site, health_port: int | None = None) -> None:
    """Keep the SuperNode running until SIGTERM or SIGINT; reads nothing but courier/ and run/.

    Raises:
        ProcessError: the coordinator does not answer, or the SuperNode ended by itself.
        VerificationError: the coordinator's certificate is expired or foreign.
    """
    from .supernode import check_coordinator, node_key, start_supernode

    address, certificate = read_address(site.courier), site.courier / "ca.pem"
    check_coordinator(address, certificate)
    private, _ = node_key(site.courier)
    with _noted(site.run, "courier"):
        node = start_supernode(
            site.courier,
            address=address,
            root_certificate=certificate,
            key=private,
            worker_socket=site.socket,
            health_port=health_port,
        )
        try:
            ended = not _wait_for_signal(node.process)
        finally:
            node.stop()
    if ended:
        raise ProcessError(
            "the SuperNode ended by itself",
            hint="after a crash the coordinator takes a site back within a minute; if it does not, "
            f"ask it whether this site is enrolled; the log is {node.log}",
        )


def watch(site: Site, health_port: int | None = None) -> None:
    """Start both processes and start again whichever ends, until SIGTERM or SIGINT.

    Raises:
        VoxfedError: what a process said when it ended by wrong use, a refusal or a failed
            verification: to start it again would not help.
    """
    children: dict[Role, subprocess.Popen[bytes]] = {}
    with _noted(site.run, "site"), _stopping(children):
        stopped = _Signals()
        while not stopped.came:
            for role in ROLES:
                child = children.get(role)
                if child is None or child.poll() is not None:
                    if child is not None:
                        _report(site, role, child.returncode)
                        time.sleep(RESTART_SECONDS)
                    children[role] = _start(site, role, health_port)
            stopped.wait(0.5)


def running(site: Site, name: str) -> int | None:
    """Return the process id of a running part of the site ("site", "worker", "courier")."""
    return _process_in(site.run / f"{name}.pid")


def _process_in(path: Path) -> int | None:
    try:
        number, started = path.read_text().split()
        alive = _start_time(int(number)) == started
    except (OSError, ValueError, IndexError):
        return None
    return int(number) if alive else None


def stop(site: Site, seconds: float = 20.0) -> list[str]:
    """Stop what runs at this site, the watcher first, and return the names of what was stopped.

    Raises:
        ProcessError: something still runs after `seconds`.
    """
    stopped = []
    for name in ("site", "courier", "worker"):
        number = running(site, name)
        if number is None:
            continue
        os.kill(number, signal.SIGTERM)
        stopped.append(name)
        ends = time.monotonic() + seconds
        while running(site, name) is not None:
            if time.monotonic() > ends:
                raise ProcessError(f"the {name} still runs", got=f"process {number}")
            time.sleep(0.1)
    return stopped


class _Signals:
    """Remembers SIGTERM and SIGINT."""

    def __init__(self) -> None:
        self.came = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: object) -> None:
        self.came = True

    def wait(self, seconds: float) -> None:
        """Sleep, at most `seconds`; a signal ends it early."""
        ends = time.monotonic() + seconds
        while not self.came and time.monotonic() < ends:
            time.sleep(0.1)


def _wait_for_signal(child: subprocess.Popen[bytes] | None = None) -> bool:
    """Return True once a signal came, or False once `child` ended."""
    signals = _Signals()
    while not signals.came:
        signals.wait(0.5)
        if child is not None and child.poll() is not None:
            return signals.came
    return True


def without_network() -> list[str]:
    """Return the command that starts another without network, or nothing where none is allowed.

    A new network namespace holds one interface, loopback, which is down (network_namespaces(7)).
    """
    for options in (["--net"], ["--user", "--map-root-user", "--net"]):
        command = ["unshare", *options, "--"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run([*command, "true"], check=True, capture_output=True, timeout=10)
            return command
    return []


def interfaces(number: int) -> list[str]:
    """Return the names of the network interfaces that a process can see (proc(5), net/dev)."""
    try:
        lines = Path(f"/proc/{number}/net/dev").read_text().splitlines()[2:]
    except OSError:
        return []
    return sorted(line.split(":")[0].strip() for line in lines)


def _start(site: Site, role: Role, health_port: int | None) -> subprocess.Popen[bytes]:
    command = without_network() if role == "worker" else []
    command += [sys.executable, "-m", "voxfed.cli", "site", "start", "--role", role]
    command += ["--folder", str(site.folder)]
    if health_port is not None and role == "courier":
        command += ["--health-port", str(health_port)]
    with _log_of(site, role).open("ab") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )


def _log_of(site: Site, role: Role) -> Path:
    """Return a role's log; the worker's may name patients and lies where no courier reads."""
    return (site.worker if role == "worker" else site.courier) / f"{role}.log"


def _report(site: Site, role: Role, status: int) -> None:
    """Tell the operator why a process ended; raise its error where another start cannot help."""
    lines = _log_of(site, role).read_text(errors="replace").splitlines()[-12:]
    said = [line for line in lines if line.startswith("voxfed: ")][-2:]
    what = next((x.partition("error: ")[2] for x in said if "error: " in x), "it left no error")
    hint = next((x.partition("hint: ")[2] for x in said if "hint: " in x), "")
    fault = VoxfedError(f"the {role} ended: {what}", got=f"exit status {status}", hint=hint)
    if status in (2, 3, 4):
        fault.exit_code = status
        raise fault
    show_error(fault)


@contextlib.contextmanager
def _stopping(children: dict[Role, subprocess.Popen[bytes]]) -> Iterator[None]:
    try:
        yield
    finally:
        for child in children.values():
            child.terminate()
        for child in children.values():
            try:
                child.wait(15)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


@contextlib.contextmanager
def _noted(folder: Path, name: str) -> Iterator[None]:
    """Write down this process while it runs, with its start time: ids are used again."""
    path = folder / f"{name}.pid"
    other = _process_in(path)
    if other is not None:
        raise ProcessError(
            f"the {name} of this site runs already",
            got=f"process {other}",
            hint="stop it first with `voxfed site stop`",
        )
    try:
        path.write_text(f"{os.getpid()} {_start_time(os.getpid())}")
    except OSError as fault:
        error: VoxfedError = ProcessError(
            f"{folder} cannot be written: {fault.strerror}", hint="run `voxfed site init`"
        )
        raise error from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _start_time(number: int) -> str:
    """Return a process's start time in clock ticks since boot (proc(5), field 22)."""
    return Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[19]
