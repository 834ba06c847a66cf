"""The tour: set up, train, audit, decide, and try what must be refused."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape

from ..client import commands as site_commands
from ..client.socket import exchange
from ..models.pictures import contact_sheet, curve
from ..models.registry import check
from ..privacy import commands as officer_commands
from ..privacy.audit.report import AuditReport
from ..privacy.samples import draw_samples
from ..server import commands as server_commands
from ..server.coordinator import Coordinator
from ..server.store import Store
from ..study.errors import Refusal, UsageError, VerificationError
from ..study.messages import Receipt, Refused, TrainRequest, decode, encode
from ..study.plan import StudyPlan
from ..study.terminal import console, progress, show_table
from .base import public_base
from .cohorts import NAMES, Cohorts, make_cohorts
from .federation import Federation, free_port, network_of
from .measures import draw, flip_a_byte, held_out_errors, split_of
from .plans import BASE, overtrained_plan, private_plan

MARKER = ".voxfed-demo"
SAMPLES = 60
SHOWN = 6


@dataclass
class Tour:
    """What the steps of the demonstration hand to each other."""

    folder: Path
    cohorts: Cohorts
    federation: Federation
    main: StudyPlan
    overtrained: StudyPlan
    base: bytes
    began: float

    @property
    def coordinator(self) -> Coordinator:
        """The coordinator's folder."""
        return self.federation.coordinator

    def store(self, plan: StudyPlan) -> Store:
        """The coordinator's folder of one study."""
        return Store(self.coordinator.studies / plan.name)

    def weights(self, plan: StudyPlan) -> bytes:
        """The last global tensors of a study."""
        return self.store(plan).latest(self.coordinator.key.public).weights


def run_demo(folder: Path, *, data: Path | None, family: str, private: bool) -> None:
    """Run the whole job on this machine; everything started is stopped at the end.

    Raises:
        VoxfedError: whatever went wrong; the processes are stopped all the same.
    """
    began = time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
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
        _finish(tour, reports, bundles)
    finally:
        console.print("[dim]stopping every process[/]")
        tour.federation.stop()


def _set_up(folder: Path, data: Path | None, family: str, private: bool, began: float) -> Tour:
    _headline("the cohorts", "NIfTI files in one folder a hospital")
    cohorts = make_cohorts(folder / "cohorts", data)
    console.print(f"  {cohorts.patients} patients of {cohorts.source} in three hospitals")
    if cohorts.pseudo_patients:
        console.print("  [yellow]volumes stand as patients: no patient-level claim holds here[/]")
    sketch = StudyPlan.from_text(private_plan(cohorts, family, b"", private=private))
    check(sketch)
    _headline("the public base", "fitted to other phantoms; no hospital is asked")
    with progress("public base") as shown:
        base = public_base(folder / "public", sketch, shown)
    _headline("the folders", "keys for the coordinator, the officer and each hospital")
    coordinator = folder / "coordinator"
    server_commands.init(
        "university", "127.0.0.1", folder=coordinator, host="127.0.0.1", port=free_port()
    )
    officer_commands.init(folder / "officer", "ada")
    console.print("  in this demonstration the officer's key lies on the same machine")
    server_commands.enroll(coordinator, site=None, officer=folder / "officer/officer.card.json")
    sites = {name: _hospital(folder, name, cohorts) for name in NAMES}
    plans = []
    for text, weights in (
        (private_plan(cohorts, family, base, private=private), base),
        (overtrained_plan(cohorts, family), None),
    ):
        plan = StudyPlan.from_text(text)
        (folder / f"{plan.name}.toml").write_bytes(text)
        if weights is not None:
            (folder / BASE).write_bytes(weights)
        server_commands.new(
            plan.name,
            coordinator,
            plan=folder / f"{plan.name}.toml",
            weights=folder / BASE if weights is not None else None,
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
        defaced="not-head" if cohorts.volumes.find("ct") < 0 else "no",
    )
    settings = target / "worker" / "site.toml"
    text = settings.read_text().replace("without_privacy = false", "without_privacy = true")
    text = text.replace(
        "pseudo_patients = false", f"pseudo_patients = {str(cohorts.pseudo_patients).lower()}"
    )
    text = text.replace("delta = 1e-05", "delta = 1e-3").replace(
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
        (tour.overtrained, "no privacy, few patients, far too long: the audit must catch it"),
    ):
        _headline(f"training: {plan.name}", words)
        server_commands.run(plan.name, tour.coordinator.folder)


def _audit(tour: Tour) -> dict[str, AuditReport]:
    reports = {}
    for plan in (tour.main, tour.overtrained):
        _headline(f"audit: {plan.name}", "each hospital scores its own members and non-members")
        server_commands.audit_run(
            plan.name, tour.coordinator.folder, deadline=180.0, samples=SAMPLES
        )
        page = tour.store(plan).audits()[-1] / "audit.json"
        reports[plan.name] = AuditReport.from_text(page.read_bytes())
    return reports


def _build(tour: Tour, name: str) -> Path:
    server_commands.release_build(name, tour.coordinator.folder)
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
    _headline("the officer", "signs or rejects on a machine of their own")
    for name, bundle in bundles.items():
        decision = tour.folder / f"{name}.decision.json"
        blocked = reports[name].verdict.value == "BLOCK"
        reason = "a demonstration: small cohorts, nothing leaves this machine"
        arguments = {"bundle": bundle, "folder": tour.folder / "officer", "output": decision}
        try:
            officer_commands.approve(**arguments, reason=reason, card=_cards(tour))
        except Refusal as fault:
            console.print(f"  [red]{name}: {escape(fault.message)}[/]")
            officer_commands.reject(**arguments, reason="the audit blocks it", card=_cards(tour))
        else:
            if blocked:
                raise VerificationError(f"a blocked release of {name} was approved")
        server_commands.release_add(bundle, decision, tour.coordinator.folder)
    _verify(tour, bundles[tour.main.name])


def _verify(tour: Tour, bundle: Path) -> str:
    try:
        officer_commands.verify(bundle, card=_cards(tour))
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


def _finish(tour: Tour, reports: dict[str, AuditReport], bundles: dict[str, Path]) -> None:
    _headline("the result", "")
    plan, store = tour.main, tour.store(tour.main)
    weights = {"before": tour.base, "after": tour.weights(plan)}
    errors = held_out_errors(tour.federation.sites, plan, weights)
    change = 1 - errors["after"] / errors["before"]
    rounds = [finished.facts for finished in store.rounds()[1:]]
    epsilons = {name: [r["epsilon"].get(name) for r in rounds] for name in tour.federation.sites}
    rows = [
        (
            "data",
            tour.cohorts.source
            + (", pseudo-patients: no patient-level claim" if tour.cohorts.pseudo_patients else ""),
        ),
        ("rounds", len(rounds)),
        ("seconds a round", f"{sum(r['seconds'] for r in rounds) / len(rounds):.1f}"),
        *((f"epsilon at {n}", _epsilon(values[-1], plan)) for n, values in epsilons.items()),
        ("held-out error, mean volume", f"{errors['mean volume']:.4f}"),
        ("held-out error, before (public base)", f"{errors['before']:.4f}"),
        ("held-out error, after", f"{errors['after']:.4f} ({_learnt(change)})"),
        (f"verdict, {plan.name}", reports[plan.name].verdict.value),
        (f"verdict, {tour.overtrained.name}", reports[tour.overtrained.name].verdict.value),
        ("seconds in all", f"{time.monotonic() - tour.began:.0f}"),
    ]
    _pictures(tour, epsilons)
    bundle = bundles[plan.name]
    if reports[plan.name].verdict.value != "BLOCK":
        draw_samples(bundle, 4, tour.folder / "samples", seed=1)
        rows.append(("synthetic volumes", str(tour.folder / "samples")))
    show_table("voxfed demo", ("", ""), rows)
    _next_commands(tour, bundle)


def _epsilon(value: float | None, plan: StudyPlan) -> str:
    if value is None:
        return "none: trained without privacy"
    return f"{value:.4f} at delta {plan.privacy.delta:g}, of {plan.privacy.epsilon:g}"


def _learnt(change: float) -> str:
    return f"{change:.0%} lower" if change > 0 else "it did not learn"


def _pictures(tour: Tour, epsilons: dict[str, list[float | None]]) -> None:
    """Write the contact sheet and the curve; real scans stay on this machine."""
    held_out = [split_of(s, tour.main.name)[1] for s in tour.federation.sites.values()]
    real = held_out[0][:0]
    for volumes in held_out:
        real = volumes[: SHOWN // 3] if not len(real) else _joined(real, volumes[: SHOWN // 3])
    contact_sheet(
        [
            ("real, held out", real),
            ("public base", draw(tour.main, tour.base, SHOWN)),
            (tour.main.name, draw(tour.main, tour.weights(tour.main), SHOWN)),
            (tour.overtrained.name, draw(tour.overtrained, tour.weights(tour.overtrained), SHOWN)),
        ],
        tour.folder / "contact_sheet.png",
    )
    spent = {n: [v for v in values if v is not None] for n, values in epsilons.items()}
    if any(spent.values()):
        curve(
            spent,
            tour.folder / "epsilon.png",
            across="round",
            up="epsilon",
            limit=tour.main.privacy.epsilon,
        )


def _joined(one: Any, other: Any) -> Any:
    import numpy as np

    return np.concatenate([one, other])


def _cards(tour: Tour) -> list[Path]:
    sites = [s.worker / "keys" / "site.card.json" for s in tour.federation.sites.values()]
    return [
        tour.coordinator.folder / "coordinator.card.json",
        tour.folder / "officer" / "officer.card.json",
        *sites,
    ]


def _next_commands(tour: Tour, bundle: Path) -> None:
    f = tour.folder
    page = tour.store(tour.main).audits()[-1] / "audit.html"
    site = f / NAMES[0]
    lines = [
        ("look", f"{f / 'contact_sheet.png'}  {f / 'epsilon.png'}"),
        ("officer", f"{page}"),
        ("officer", f"voxfed audit show {bundle}"),
        ("site operator", f"voxfed site ledger --folder {site}"),
        ("site operator", f"voxfed site check --folder {site}"),
        ("coordinator", f"voxfed study status {tour.main.name} --folder {f / 'coordinator'}"),
        ("anyone", f"voxfed sample {bundle} -n 8 -o {f / 'more'}"),
    ]
    console.print()
    for who, line in lines:
        console.print(f"[bold]{who:>13}[/]  {escape(line)}", soft_wrap=True)


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
