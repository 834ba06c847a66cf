"""The processes of the demonstration: started, watched, and gone at the end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..client import processes
from ..client.approval import all_approvals, approve, reject
from ..client.permission import permissions, permit
from ..client.site import Site
from ..server.control import Control
from ..server.coordinator import Coordinator
from ..study.errors import ProcessError, VoxfedError
from ..study.terminal import console

ONLINE_SECONDS = 90.0


@dataclass
class Federation:
    """A coordinator and its sites as processes of this machine."""

    coordinator: Coordinator
    sites: Mapping[str, Site]
    _children: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _stopped: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        """Start the SuperLink and every site, and wait until all are online.

        Raises:
            ProcessError: one of them did not come up.
        """
        self._spawn(self.coordinator.folder, "server", "start")
        self._wait_for(lambda: bool(self._control().nodes()), "the SuperLink")
        for site in self.sites.values():
            self._spawn(site.folder, "site", "start")
        self._wait_for(
            lambda: (
                all(node.online for node in self._control().nodes())
                and all(site.socket.exists() for site in self.sites.values())
            ),
            "the hospitals",
        )

    @contextlib.contextmanager
    def operators(self) -> Iterator[None]:
        """Approve what is offered, as the operators would at their own sites."""
        watching = threading.Thread(target=self._operate, daemon=True)
        self._stopped.clear()
        watching.start()
        try:
            yield
        finally:
            self._stopped.set()
            watching.join(30)

    def stop(self) -> None:
        """Stop every process that was started, and kill what does not stop."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        for child in reversed(self._children):
            child.terminate()
        for child in reversed(self._children):
            try:
                child.wait(25)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        self._children.clear()

    def _operate(self) -> None:
        while not self._stopped.wait(0.5):
            for name, site in self.sites.items():
                self._decide(name, site)

    def _decide(self, name: str, site: Site) -> None:
        for approval in all_approvals(site):
            if approval.state == "pending":
                try:
                    terms = approve(site, approval.folder.name).terms
                except VoxfedError as fault:
                    console.print(f"  {name} rejects it: {fault.message}", markup=False)
                    reject(site, approval.folder.name, fault.message[:500])
                    continue
                noise = (
                    f"sigma {terms.sigma:.2f}, q {terms.rate:.2f}" if terms.sigma else "NO NOISE"
                )
                console.print(f"  {name} approves {approval.folder.name}: {noise}", markup=False)
            if any(not asked.number for asked in permissions(approval, "audit")):
                permit(site, approval, "audit")
                console.print(f"  {name} allows the audit of {approval.folder.name}", markup=False)

    def _control(self) -> Control:
        return Control(self.coordinator.folder, self.coordinator.settings.port)

    def _spawn(self, folder: Path, *command: str) -> None:
        with (folder / "start.log").open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "voxfed.cli", *command, "--folder", str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )
        self._children.append(child)

    def _wait_for(self, holds: Callable[[], bool], what: str) -> None:
        ends = time.monotonic() + ONLINE_SECONDS
        while time.monotonic() < ends:
            if any(child.poll() is not None for child in self._children):
                break
            with contextlib.suppress(ProcessError):
                if holds():
                    return
            time.sleep(0.3)
        logs = ", ".join(str(s.folder / "start.log") for s in self.sites.values())
        raise ProcessError(f"{what} did not come up", hint=f"see {logs}")


def network_of(site: Site) -> list[str]:
    """Return the network interfaces that a site's worker sees."""
    number = processes.running(site, "worker")
    return processes.interfaces(number) if number is not None else []


def free_port() -> int:
    """Return a TCP port of loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
