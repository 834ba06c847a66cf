"""A federation for tests: a coordinator and hospitals as real processes, by the command line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import tomli_w
from machine import answers, free_port, processes_naming, wait_for
from voxfed.client.site import Site
from voxfed.client.socket import exchange
from voxfed.models.phantoms import HOSPITALS, write_cohort
from voxfed.server.coordinator import Coordinator
from voxfed.study import messages
from voxfed.study.plan import StudyPlan

VOXFED = str(Path(sys.executable).with_name("voxfed"))
PATIENTS = 24
"""With every patient's coin flipped, too few on one side has a chance of 3e-6."""

PLAN: dict[str, Any] = {
    "family": "vae",
    "rounds": 2,
    "local_steps": 1,
    "expected_patients": 5,
    "audit_fraction": 1.0,
    "settings": {"channels": [8, 8], "latent_channels": 2},
    "volumes": {"shape": [16, 16, 16], "spacing": [9.0, 9.0, 9.0]},
    "optimiser": {"learning_rate": 1e-3},
    "privacy": {"epsilon": 8.0, "delta": 1e-5, "clip_norm": 0.1},
    "aggregation": {"quorum": 2, "deadline": 150.0, "approval_deadline": 300.0},
}


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    output: str
    errors: str

    @property
    def json(self) -> Any:
        """The one JSON document on standard output."""
        return json.loads(self.output)


class Federation:
    """Processes and folders of one test, all gone afterwards.

    Args:
        sites: the hospitals' names.
    """

    def __init__(self, *sites: str) -> None:
        # short, since the path of a Unix socket has at most 100 bytes
        self.folder = Path(tempfile.mkdtemp(prefix="vx-"))
        self.coordinator = self.folder / "c"
        self.sites = {name: self.folder / name for name in sites}
        self.port = free_port()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.commands: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        """Make the folders of coordinator and sites, and enrol the sites."""
        try:
            self._initialise()
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop what was started, and fail where anything of this federation still runs."""
        for command in self.commands:  # left by a test that failed
            if command.poll() is None:
                command.kill()
                command.communicate()
        for name in reversed(list(self.processes)):
            self.stop(name)
        try:
            wait_for(lambda: not self.running(), 60, "end of all processes")
        finally:
            for number in self.running():
                os.kill(number, signal.SIGKILL)
            shutil.rmtree(self.folder, ignore_errors=True)

    def cli(
        self,
        *arguments: object,
        code: int = 0,
        seconds: float = 240,
        environment: Mapping[str, str] | None = None,
    ) -> Done:
        """Run `voxfed ARGUMENTS` to its end; check the exit code, and that no traceback shows."""
        return self.finish(self.spawn(*arguments, environment=environment), code, seconds)

    def spawn(
        self, *arguments: object, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start `voxfed ARGUMENTS` and do not wait; `finish` does."""
        command = subprocess.Popen(
            [VOXFED, *map(str, arguments)],
            env=_environment() | (environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.commands.append(command)
        return command

    def finish(self, process: subprocess.Popen[bytes], code: int = 0, seconds: float = 240) -> Done:
        """Wait for a command of `spawn`."""
        try:
            output, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            output, errors = process.communicate()
        done = Done(process.returncode, output.decode(), errors.decode())
        if done.code != code:
            self._show_logs()
        assert done.code == code, f"{process.args}: exit {done.code}\n{done.output}\n{done.errors}"
        assert "Traceback" not in done.errors, done.errors
        return done

    def start(self, name: str, *command: object) -> subprocess.Popen[bytes]:
        """Start a long-lived process; its output goes to `folder`/NAME.log."""
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [str(part) for part in command],
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.processes[name] = process
        return process

    def start_server(self) -> None:
        """Start the SuperLink under its keeper."""
        self.start("server", VOXFED, "server", "start", "--folder", self.coordinator)
        self.wait(lambda: answers(self.port), 150, "the SuperLink")

    def start_site(self, site: str) -> None:
        """Start worker and courier under their watcher."""
        self.start(site, VOXFED, "site", "start", "--folder", self.sites[site])

    def start_role(self, site: str, role: str, *before: object) -> subprocess.Popen[bytes]:
        """Start one of a site's two processes; `before` is a program that executes it."""
        command = (VOXFED, "site", "start", "--role", role, "--folder", self.sites[site])
        process = self.start(f"{site}-{role}", *before, *command)
        if role == "worker":
            self.wait_for_worker(site)
        return process

    def wait_for_worker(self, site: str) -> None:
        """Wait until the worker's socket is there."""
        self.wait(Site(self.sites[site]).socket.exists, 150, f"the worker of {site}")

    def wait(self, holds: Callable[[], object], seconds: float, what: str) -> None:
        """Wait until something holds; show the logs and fail where it does not."""
        try:
            wait_for(holds, seconds, what)
        except AssertionError:
            self._show_logs()
            raise

    def stop(self, name: str) -> None:
        """End a process of `start` in order, or by force where it does not."""
        process = self.processes.pop(name)
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def running(self, word: str = "", site: str = "") -> list[int]:
        """Return the ids of this federation's processes, at `site`, with `word` in the command."""
        place = str(self.sites[site]) if site else str(self.folder)
        return [n for n, command in processes_naming(place).items() if word in command]

    def new_study(self, name: str, code: int = 0, **changes: Any) -> Path:
        """Make a study of the coordinator from PLAN with changes, and return its folder."""
        path = self.folder / f"{name}.toml"
        path.write_bytes(plan_text(name, **changes))
        self.cli("study", "new", name, "--plan", path, "--folder", self.coordinator, code=code)
        return self.coordinator / "studies" / name

    def run_study(self, name: str, *, approve: Sequence[str] = (), code: int = 0) -> Done:
        """Run a study to its end, approving it at some sites once the plan has come."""
        run = self.spawn("study", "run", name, "--folder", self.coordinator, "--json")
        self.approve(name, approve)
        return self.finish(run, code, 500)

    def approve(self, study: str, sites: Sequence[str]) -> None:
        """Approve a study at each site, once its plan has come."""
        for site in sites:
            offered = self.sites[site] / "worker" / "approvals" / study / "plan.toml"
            self.wait(offered.exists, 150, f"the offer at {site}")
            self.cli("site", "approve", study, "--folder", self.sites[site], "--json")

    def audit(self, study: str, sites: Sequence[str]) -> Any:
        """Audit a study, each operator allowing it, and return what `audit run` printed."""
        run = self.spawn(
            *("audit", "run", study, "--folder", self.coordinator),
            *("--samples", 4, "--deadline", 300, "--json"),
        )
        for site in sites:
            asked = self.sites[site] / "worker" / "approvals" / study / "audits"
            self.wait(lambda asked=asked: list(asked.glob("*.json")), 150, f"the audit at {site}")
            self.cli("site", "approve", study, "--audit", "--folder", self.sites[site])
        return self.finish(run, seconds=400).json

    def settle(self, site: str, **changes: Any) -> None:
        """Change settings in a site's site.toml; tables are merged."""
        place = Site(self.sites[site])
        values = place.settings.model_dump(exclude_none=True)
        for key, value in changes.items():
            values[key] = {**values[key], **value} if isinstance(value, dict) else value
        (place.worker / "site.toml").write_text(tomli_w.dumps(values))

    def ask(self, site: str, request: messages.Request, payload: bytes = b"") -> bytes:
        """Give the worker a request that the coordinator signed, without any network."""
        return self.ask_raw(
            site, messages.encode(request, Coordinator(self.coordinator).key, payload)
        )

    def ask_raw(self, site: str, message: bytes) -> bytes:
        """Give the worker any bytes and return its reply."""
        return exchange(Site(self.sites[site]).socket, message, timeout=120)

    def answer(self, site: str, request: messages.Request, payload: bytes = b"") -> Any:
        """Return the header of what `ask` returns."""
        return messages.decode(self.ask(site, request, payload), Site(self.sites[site]).key.public)[
            0
        ]

    def offer(self, site: str, name: str, **changes: Any) -> StudyPlan:
        """Offer a plan to a worker without any network, and return it."""
        text = plan_text(name, **changes)
        plan = StudyPlan.from_text(text)
        request = messages.OfferRequest(site=site, study=name, plan_digest=plan.digest)
        assert self.answer(site, request, text).decision == "pending"
        return plan

    def ledger(self, site: str) -> dict[str, Any]:
        """Return `site ledger` as a document."""
        found: dict[str, Any] = self.cli(
            "site", "ledger", "--folder", self.sites[site], "--json"
        ).json
        return found

    def charges(self, site: str, study: str) -> list[tuple[str, int]]:
        """Return stage and round of each charge in order, after checking the ledger's chain."""
        rows = Site(self.sites[site]).ledger.rows()
        return [
            (row.body["stage"], row.body["round"])
            for row in rows
            if row.kind == "charge" and row.body["study"] == study
        ]

    def journal(self, site: str) -> list[dict[str, Any]]:
        """Return the lines of the worker's journal, after checking their chain."""
        return list(Site(self.sites[site]).journal.entries())

    def _initialise(self) -> None:
        options = ("--name", "uni", "--public-host", "127.0.0.1", "--host", "127.0.0.1")
        self.cli("server", "init", *options, "--port", self.port, "--folder", self.coordinator)
        for number, (name, folder) in enumerate(self.sites.items()):
            cohort = self.folder / f"cohort-{name}"
            write_cohort(cohort, PATIENTS, HOSPITALS[number % len(HOSPITALS)], seed=number)
            invitation = self.coordinator / "invitation.json"
            options = ("--name", name, "--cohort", str(cohort), "--folder", str(folder))
            self.cli("site", "init", invitation, *options)
            enrolment = folder / "enrolment.json"
            self.cli("server", "enroll", "--folder", self.coordinator, "--site", enrolment)

    def _show_logs(self) -> None:
        logs = [
            *self.folder.glob("*.log"),
            *self.folder.glob("*/*.log"),
            *self.folder.glob("*/worker/*.log"),
            *self.folder.glob("*/courier/*.log"),
        ]
        for log in logs:
            print(f"--- {log.relative_to(self.folder)}\n{log.read_text()[-3000:]}")


def plan_text(name: str, **changes: Any) -> bytes:
    """Return PLAN under a name as TOML; tables in `changes` are merged, the rest replaced."""
    plan = {"name": name, **PLAN}
    for key, value in changes.items():
        merged = isinstance(value, dict) and key != "settings"  # those are the family's own
        plan[key] = {**plan.get(key, {}), **value} if merged else value
    return tomli_w.dumps(plan).encode()


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200"}
