"""The end of the demonstration: the table, the pictures, and what to type next."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.markup import escape

from ..models.pictures import contact_sheet, curve
from ..privacy.audit.report import AuditReport
from ..privacy.samples import draw_samples
from ..server.coordinator import Coordinator
from ..server.store import Store
from ..study.plan import StudyPlan
from ..study.terminal import console, show_table
from .cohorts import NAMES, Cohorts
from .federation import Federation
from .measures import draw, held_out_errors, split_of

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


def show_result(tour: Tour, reports: dict[str, AuditReport], bundles: dict[str, Path]) -> None:
    """Show the closing table, write the pictures, and name the next commands."""
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
    real = np.concatenate([volumes[: SHOWN // 3] for volumes in held_out])
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
