"""`voxfed study …`: plans and rounds."""

from __future__ import annotations

import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..study.errors import PlanError, UsageError
from ..study.files import write
from ..study.plan import StudyPlan, safe_name
from ..study.terminal import console, progress, show_json, show_table
from .options import HERE, AsJson, Folder, Name, open_coordinator, open_store

if TYPE_CHECKING:
    from .needs import Needs
    from .store import Store

study_app = typer.Typer(no_args_is_help=True, help="Studies: plans and rounds.")


@study_app.command()
def new(
    name: Name,
    folder: Folder = HERE,
    plan: Annotated[Path | None, typer.Option(help="A study file to start from.")] = None,
    weights: Annotated[
        list[Path] | None, typer.Option(help="Public weights that it names; may be repeated.")
    ] = None,
) -> None:
    """Make a study from a study file, or from a template to edit."""
    from .template import TEMPLATE

    coordinator = open_coordinator(folder)
    target = coordinator.studies / safe_name(name, what="the study") / "plan.toml"
    if target.exists():
        raise UsageError(f"study {name} exists already", got=target)
    text = TEMPLATE.format(name=name).encode()
    if plan is not None:
        text = StudyPlan.read(plan).text
    checked = StudyPlan.from_text(text, file=str(plan or "the template"))
    if checked.name != name:
        raise UsageError("the study file has another name", got=checked.name, expected=name)
    for file in weights or []:
        if not file.is_file():
            raise UsageError(f"there is no file {file}", hint="name public weights, or none")
    for file in weights or []:
        write(target.parent / file.name, file.read_bytes())
    write(target, text)
    console.print(f"made {target}; edit it, then `voxfed study validate {name}`")


@study_app.command()
def validate(
    study: Annotated[str, typer.Argument(help="A study's name, or a study file.")],
    folder: Folder = HERE,
    as_json: AsJson = False,
) -> None:
    """Explain every wrong key, and print what the study takes and means at each described site.

    Memory and bytes are worked out, not run; q, sigma and noise-to-signal follow from the plan.
    """
    from ..models.registry import check, schedule_of
    from .forecast import forecast
    from .needs import SAVING, needs
    from .start import first_weights, left_random
    from .store import Store

    path = Path(study)
    coordinator = open_coordinator(folder) if (folder / "coordinator.toml").exists() else None
    if path.suffix != ".toml" and coordinator is not None:
        path = coordinator.studies / safe_name(study, what="the study") / "plan.toml"
    plan = _read_whole(path)
    check(plan)
    first_weights(plan, Store(path.parent))
    random = left_random(plan, schedule_of(plan))
    usual, saving = needs(plan), needs(plan, SAVING)
    trained = usual.trained
    described = coordinator.descriptions() if coordinator is not None else {}
    found = [forecast(plan, site, said, trained) for site, said in described.items()]
    if as_json:
        show_json(
            {
                "plan": plan.digest,
                "trained": trained,
                "needs": vars(usual),
                "needs_saving_memory": vars(saving),
                "left_random": random,
                "sites": [vars(f) for f in found],
            }
        )
        return
    counts = f"{usual.parameters:,} parameters, {trained:,} trained parameters"
    console.print(f"{plan.name}: the study file is right; {counts}")
    for stage in random:
        console.print(f"the stage {stage} stays at random weights: samples will be noise")
    _show_needs(usual, saving)
    if found:
        show_table(
            "at the lower end of each site's band of patients",
            ("site", "patients", "q", "sigma", "noise to signal", "verdict", "advice"),
            [
                (
                    f.site,
                    f.patients,
                    f"{f.rate:.3f}",
                    f"{f.sigma:.3f}",
                    f"{f.noise_to_signal:.1f}",
                    f.verdict,
                    f.advice,
                )
                for f in found
            ],
        )
    else:
        console.print("no site has described itself yet: `voxfed server status` asks them")


def _show_needs(usual: Needs, saving: Needs) -> None:
    show_table(
        "what a site needs, in MB, worked out for a CPU",
        ("performance in site.toml", "activations", "peak memory", "received", "sent a round"),
        [
            (name, *(f"{size / 1e6:,.2f}" for size in (x.activations, x.peak, x.received, x.sent)))
            for name, x in (("as it comes", usual), ("bfloat16 and checkpointing", saving))
        ],
    )


def _read_whole(path: Path) -> StudyPlan:
    """Read a plan; its error names the wrong keys of the family's settings too."""
    from ..models.registry import faults

    try:
        return StudyPlan.read(path)
    except PlanError as fault:
        try:
            values = tomllib.loads(path.read_text())
        except (OSError, ValueError):
            raise fault from None
        lines = [fault.what, *faults(values)]
        raise PlanError("\n  ".join(lines), hint=fault.hint) from None


@study_app.command()
def run(study: Name, folder: Folder = HERE, as_json: AsJson = False) -> None:
    """Offer the plan, wait for approvals, and run the rounds that are not yet done."""
    from .runs import submit_and_follow
    from .start import ensure_started

    coordinator = open_coordinator(folder)
    store = open_store(coordinator, study)
    ensure_started(coordinator, store)
    began = time.time()
    with progress(f"{study}: asking the sites", hidden=as_json) as shown:

        def watch(facts: dict[str, Any]) -> None:
            done = len(store.rounds()) - 1
            shown(done, store.schedule.rounds, title=_headline(store, facts))

        submit_and_follow(coordinator, store, {"task": "train"}, watch)
    document = _summary(store) | {"seconds": round(time.time() - began, 1)}
    if as_json:
        show_json(document)
    else:
        _show_summary(document)


@study_app.command("status")
def study_status(
    study: Name,
    folder: Folder = HERE,
    as_json: AsJson = False,
) -> None:
    """Show a study's rounds, who took part, and epsilon at each site."""
    store = open_store(open_coordinator(folder), study)
    document = _summary(store)
    if as_json:
        show_json(document)
    else:
        _show_summary(document)


def _headline(store: Store, facts: dict[str, Any]) -> str:
    state = facts.get("state", "")
    if state == "approval":
        return f"waiting for {', '.join(facts['waiting'])} to decide"
    if state != "training":
        return f"{store.folder.name}: {state}"
    done = store.rounds()[-1].facts
    spent = [e for e in done.get("epsilon", {}).values() if e is not None]
    losses = [x for x in done.get("loss", {}).values() if x is not None]
    parts = [f"round {facts['round']}"]
    parts.append(f"loss {sum(losses) / len(losses):.4f}" if losses else "loss stays at the sites")
    parts.append(f"epsilon {max(spent):.3f}" if spent else "no epsilon yet")
    return ", ".join(parts)


def _summary(store: Store) -> dict[str, Any]:
    rounds, spent = store.rounds(), store.spent()
    return {
        "study": store.folder.name,
        "state": store.progress().get("state", "not started"),
        "rounds": max(0, len(rounds) - 1),
        "of": store.schedule.rounds if rounds else store.plan.rounds,
        "delta": store.plan.privacy.delta,
        "curve": [finished.facts for finished in rounds[1:]],
        "sites": {
            site: {
                "decision": facts["decision"],
                "reason": facts["reason"],
                "patients, at least": facts["declared_patients"],
                "rounds": sum(site in r.facts.get("epsilon", {}) for r in rounds),
                "epsilon": spent.get(site),
            }
            for site, facts in store.decisions().items()
        },
    }


def _show_summary(document: dict[str, Any]) -> None:
    rows = [
        (site, s["decision"], s["reason"], s["patients, at least"], s["rounds"],
         "none" if s["epsilon"] is None else f"{s['epsilon']:.4f}")
        for site, s in document["sites"].items()
    ]  # fmt: skip
    title = f"{document['study']}: {document['state']}, {document['rounds']} of {document['of']}"
    show_table(
        f"{title} rounds, epsilon at delta {document['delta']:g}",
        ("site", "decision", "reason", "patients, at least", "rounds", "epsilon"),
        rows,
    )
