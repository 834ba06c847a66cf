"""The tour: set up, train, audit, decide, and try what must be refused."""

from __future__ import annotations

import itertools
import os
import secrets
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from rich.markup import escape

from ..client import commands as site_commands
from ..client.socket import exchange
from ..models.registry import check
from ..privacy import officer_commands
from ..privacy import release_commands as decisions
from ..privacy.audit.report import AuditReport
from ..privacy.decision import warnings_of
from ..server import commands as server_commands
from ..server import release_commands, study_commands
from ..server.coordinator import Coordinator
from ..study.errors import Refusal, UsageError, VerificationError
from ..study.messages import Receipt, Refused, TrainRequest, decode, encode
from ..study.plan import StudyPlan
from ..study.terminal import console, progress, show_table
from .base import public_base
from .cohorts import NAMES, Cohorts, make_cohorts
from .federation import Federation, free_port, network_of
from .measures import flip_a_byte
from .plans import BASE, FAMILY, open_plan, overtrained_plan, private_plan
from .result import SAMPLES, Tour, show_result

MARKER = ".voxfed-demo"
OFFICERS = ("ada", "ben")
REASON = "a demonstration: small cohorts, nothing leaves this machine"


def run_demo(folder: Path, *, data: Path | None, family: str, private: bool) -> None:
    """Run the whole job on this machine; everything started is stopped at the end.

    Raises:
        VoxfedError: whatever went wrong; the processes are stopped all the same.
    """
    if family != FAMILY:
        raise UsageError(
            "the demonstration is laid out for another family",
            got=family,
            expected=FAMILY,
            hint="train it with a study file of your own; examples/ has one for each family",
        )
    began = time.monotonic()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    folder = _fresh(folder.resolve())
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["VOXFED_PASSPHRASE"] = secrets.token_hex(16)
    if not private:
        console.print("[bold white on red] WITHOUT PRIVACY [/] nothing bounds what leaks")
    tour = _set_up(folder, data, family, private, began)
    try:
        _headline("the processes", "one SuperLink; three hospitals, each a courier and a worker")
        tour.federation.start()
        for name, site in tour.federation.sites.items():
            seen = network_of(site)
            limited = "none but loopback" if seen == ["lo"] else f"{seen}: no namespaces here"
            console.print(f"  the worker of {name} sees these networks: {limited}")
        with tour.federation.operators():
            _train(tour)
            reports = _audit(tour)
        bundles = {name: _build(tour, name) for name in reports}
        _show_verdicts(tour, reports)
        _decide(tour, bundles, reports)
        _try_what_must_fail(tour, bundles[tour.main.name])
        show_result(tour, reports, bundles)
    finally:
        console.print("[dim]stopping every process[/]")
        tour.federation.stop()


def _set_up(folder: Path, data: Path | None, family: str, private: bool, began: float) -> Tour:
    _headline("the cohorts", "NIfTI files in one folder a hospital")
    cohorts = make_cohorts(folder / "cohorts", data)
    console.print(f"  {cohorts.patients} patients of {cohorts.source} in three hospitals")
    if cohorts.pseudo_patients:
        console.print("  [yellow]volumes stand as patients: no patient-level claim holds here[/]")
    main_plan = private_plan if private else open_plan
    sketch = StudyPlan.from_text(main_plan(cohorts, family, b""))
    check(sketch)
    _headline("the public base", "fitted to other phantoms; no hospital is asked")
    with progress("public base") as shown:
        base = public_base(folder / "public", sketch, shown)
    _headline("the folders", "keys for the coordinator, the officers and each hospital")
    coordinator = folder / "coordinator"
    server_commands.init(
        "university", "127.0.0.1", folder=coordinator, host="127.0.0.1", port=free_port()
    )
    for name in OFFICERS:
        officer_commands.init(folder / name, name)
        server_commands.enroll(coordinator, site=None, officer=folder / name / "officer.card.json")
    console.print("  in this demonstration the officers' keys lie on the same machine")
    sites = {name: _hospital(folder, name, cohorts) for name in NAMES}
    plans = []
    for text, weights in (
        (main_plan(cohorts, family, base), base),
        (overtrained_plan(cohorts, family), None),
    ):
        plan = StudyPlan.from_text(text)
        (folder / f"{plan.name}.toml").write_bytes(text)
        if weights is not None:
            (folder / BASE).write_bytes(weights)
        study_commands.new(
            plan.name,
            coordinator,
            plan=folder / f"{plan.name}.toml",
            weights=[folder / BASE] if weights is not None else None,
        )
        plans.append(plan)
    federation = Federation(Coordinator(coordinator), sites)
    return Tour(folder, cohorts, federation, plans[0], plans[1], base, began)


def _hospital(folder: Path, name: str, cohorts: Cohorts) -> Any:
    from ..client.site import Site

    target = folder / name
    site_commands.init(
        folder / "coordinator" / "invitation.json",
        name=name,
        cohort=cohorts.folders[name],
        folder=target,
        defaced="not-head" if "phantom" in cohorts.volumes else "no",
    )
    settings = target / "worker" / "site.toml"
    text = settings.read_text().replace("without_privacy = false", "without_privacy = true")
    text = text.replace(
        "pseudo_patients = false", f"pseudo_patients = {str(cohorts.pseudo_patients).lower()}"
    )
    text = text.replace("delta = 1e-05", "delta = 2e-3").replace(
        "lifetime_epsilon = 10.0", "lifetime_epsilon = 12.0"
    )
    settings.write_text(text)
    server_commands.enroll(folder / "coordinator", site=target / "enrolment.json", officer=None)
    return Site(target)


def _train(tour: Tour) -> None:
    for plan, words in (
        (
            tour.main,
            "differential privacy per patient" if tour.main.privacy.enabled else "NO PRIVACY",
        ),
        (tour.overtrained, "no privacy, and far too long: the audit must catch it"),
    ):
        _headline(f"training: {plan.name}", words)
        study_commands.run(plan.name, tour.coordinator.folder)


def _audit(tour: Tour) -> dict[str, AuditReport]:
    reports = {}
    for plan in (tour.main, tour.overtrained):
        _headline(f"audit: {plan.name}", "each hospital scores its own members and non-members")
        release_commands.audit_run(
            plan.name, tour.coordinator.folder, deadline=180.0, samples=SAMPLES
        )
        page = tour.store(plan).audits()[-1] / "audit.json"
        reports[plan.name] = AuditReport.from_text(page.read_bytes())
    return reports


def _build(tour: Tour, name: str) -> Path:
    release_commands.release_build(name, tour.coordinator.folder)
    return sorted((tour.coordinator.studies / name / "releases").glob("[0-9]*"))[-1]


def _show_verdicts(tour: Tour, reports: dict[str, AuditReport]) -> None:
    _headline("the gate", "both verdicts side by side")
    names = list(reports)
    rules = dict.fromkeys(f.rule for report in reports.values() for f in report.findings)
    found = {name: {f.rule: f for f in report.findings} for name, report in reports.items()}
    rows = [[rule, *(_finding(found[name].get(rule)) for name in names)] for rule in rules]
    rows.append(["verdict", *(reports[name].verdict.value for name in names)])
    show_table("", ["rule", *names], rows)


def _finding(finding: Any) -> str:
    return "" if finding is None else f"{finding.verdict.value}: {finding.detail}"


def _decide(tour: Tour, bundles: dict[str, Path], reports: dict[str, AuditReport]) -> None:
    _headline("the officers", "sign or reject, each on a machine of their own")
    for (name, bundle), officer in itertools.product(bundles.items(), OFFICERS):
        decision = tour.folder / f"{name}.{officer}.json"
        report, place, cards = reports[name], tour.folder / officer, _cards(tour)
        reasons = [f"{rule}={REASON}" for rule in warnings_of(report.findings)]
        try:
            decisions.approve(bundle, place, decision, reasons, cards)
        except Refusal as fault:
            console.print(f"  [red]{name}: {escape(fault.message)}[/]")
            decisions.reject(bundle, place, decision, "the audit blocks it", cards)
        else:
            if report.verdict.value == "BLOCK":
                raise VerificationError(f"a blocked release of {name} was approved")
        release_commands.release_add(bundle, decision, tour.coordinator.folder)
    _verify(tour, bundles[tour.main.name])


def _verify(tour: Tour, bundle: Path) -> str:
    try:
        decisions.verify(bundle, card=_cards(tour))
    except VerificationError as fault:
        console.print(f"  [red]release verify: {escape(fault.message)}[/]")
        return fault.message
    return ""


def _try_what_must_fail(tour: Tour, bundle: Path) -> None:
    _headline("what must be refused", "one byte of a bundle, and one round too many")
    copy = tour.folder / "tampered"
    shutil.copytree(bundle, copy)
    flip_a_byte(copy / "weights.safetensors")
    if "weights.safetensors" not in _verify(tour, copy):
        raise VerificationError("a changed byte was not found")
    if not tour.main.privacy.enabled:
        return
    name, site = next(iter(tour.federation.sites.items()))
    store = tour.store(tour.main)
    request = TrainRequest(
        site=name,
        study=tour.main.name,
        plan_digest=tour.main.digest,
        stage="autoencoder",
        round=tour.main.rounds + 1,
        echo=tour.coordinator.head(name),
    )
    weights = store.latest(tour.coordinator.key.public).weights
    reply = exchange(site.socket, encode(request, tour.coordinator.key, weights), timeout=60)
    header, _ = decode(reply, site.key.public)
    if not isinstance(header, Refused):
        kind = "charged" if isinstance(header, Receipt) else "answered"
        raise VerificationError(f"a round beyond the budget was {kind}")
    said = [e for e in site.journal.entries() if e["event"] == "refused"][-1]["error"]
    console.print(f"  round {tour.main.rounds + 1}: the coordinator learns [red]{header.code}[/]")
    console.print(f"  at {name} stands why: [red]{escape(said)}[/]")


def _cards(tour: Tour) -> list[Path]:
    sites = [s.worker / "keys" / "site.card.json" for s in tour.federation.sites.values()]
    return [
        tour.coordinator.folder / "coordinator.card.json",
        *(tour.folder / name / "officer.card.json" for name in OFFICERS),
        *sites,
    ]


def _headline(title: str, words: str) -> None:
    console.print(f"\n[bold cyan]{title}[/]  [dim]{escape(words)}[/]")


def _fresh(folder: Path) -> Path:
    """Return an empty folder; only a folder that a demonstration made is emptied."""
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARKER).exists():
            raise UsageError(f"{folder} is not empty", hint="name another with --folder")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).touch()
    return folder
