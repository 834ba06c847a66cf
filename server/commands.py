"""`voxfed server …`, `voxfed study …`, `audit run`, `release build`: what the coordinator does."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..privacy.commands import audit as audit_app
from ..privacy.commands import release as release_app
from ..study.errors import UsageError, VoxfedError
from ..study.files import write
from ..study.plan import StudyPlan, safe_name
from ..study.terminal import console, progress, show_json, show_table

if TYPE_CHECKING:
    from .coordinator import Coordinator
    from .store import Store

server_app = typer.Typer(no_args_is_help=True, help="The coordinator's server.")
study_app = typer.Typer(no_args_is_help=True, help="Studies: plans and rounds.")

Folder = Annotated[
    Path, typer.Option("--folder", envvar="VOXFED_SERVER", help="The coordinator's folder.")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
Name = Annotated[str, typer.Argument(help="The study's name.")]
HERE = Path("coordinator")


def _coordinator(folder: Path) -> Coordinator:
    from .coordinator import Coordinator

    coordinator = Coordinator(folder.resolve())
    _ = coordinator.settings
    return coordinator


def _store(coordinator: Coordinator, study: str) -> Store:
    from .store import Store

    store = Store(coordinator.studies / safe_name(study, what="the study"))
    _ = store.plan
    return store


@server_app.command()
def init(
    name: Annotated[str, typer.Option(help="Who coordinates, e.g. university-x.")],
    public_host: Annotated[str, typer.Option(help="The name or address that sites connect to.")],
    folder: Folder = HERE,
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "0.0.0.0",  # noqa: S104
    port: Annotated[int, typer.Option(help="The one TCP port.")] = 8000,
) -> None:
    """Make the coordinator's folder, keys and certificates, and write invitation.json."""
    from .coordinator import CoordinatorSettings, create

    values = {"name": name, "host": host, "public_host": public_host, "port": port}
    settings = CoordinatorSettings.checked(values, file="the options")
    coordinator = create(folder, settings)
    invitation = {
        "address": f"{settings.public_host}:{settings.port}",
        "coordinator": coordinator.card.facts(),
        "certificate": (coordinator.folder / "certificates" / "ca.pem").read_text(),
    }
    target = coordinator.folder / "invitation.json"
    write(target, json.dumps(invitation, indent=1).encode())
    console.print(f"made {coordinator.folder}")
    console.print(
        f"send {target} to each hospital; your key is {coordinator.key.public.identifier}"
    )


@server_app.command()
def enroll(
    folder: Folder = HERE,
    site: Annotated[Path | None, typer.Option(help="A hospital's enrolment.json.")] = None,
    officer: Annotated[Path | None, typer.Option(help="An officer's card.")] = None,
) -> None:
    """Enrol a hospital or a privacy officer."""
    from .superlink import register_sites

    coordinator = _coordinator(folder)
    if (site is None) == (officer is None):
        raise UsageError("name what to enrol", expected="either --site FILE or --officer FILE")
    if officer is not None:
        card = coordinator.enrol_officer(officer)
    else:
        assert site is not None  # noqa: S101, tells the type checker
        card = coordinator.enrol_site(site)
        register_sites(coordinator.folder, coordinator.settings.port, coordinator.node_keys())
    console.print(f"enrolled {card.name}, key {card.key.identifier}: compare by telephone")


@server_app.command()
def start(
    folder: Folder = HERE,
    health_port: Annotated[int | None, typer.Option(help="For container probes.")] = None,
) -> None:
    """Run the SuperLink until stopped; start it again if it dies."""
    from .superlink import keep_running

    coordinator = _coordinator(folder)
    settings = coordinator.settings
    keep_running(
        coordinator.folder,
        host=settings.host,
        port=settings.port,
        health_port=health_port,
        node_keys=coordinator.node_keys,
    )


@server_app.command()
def status(folder: Folder = HERE, as_json: AsJson = False) -> None:
    """Show the enrolled sites, who is online, and what each agreed to describe."""
    from .control import Control
    from .runs import describe_sites

    coordinator = _coordinator(folder)
    online: set[str] | None = None
    try:
        nodes = Control(coordinator.folder, coordinator.settings.port).nodes()
        online = {node.name for node in nodes if node.online}
        describe_sites(coordinator)
    except VoxfedError as fault:
        if not as_json:
            console.print(f"{fault.message}: what follows is what the sites said last")
    described = coordinator.descriptions()
    document = {
        site: {
            "key": card.key.identifier,
            "online": None if online is None else site in online,
            **(described[site].model_dump(exclude=HIDDEN) if site in described else {}),
        }
        for site, card in coordinator.sites().items()
    }
    if as_json:
        show_json({"sites": document, "officers": sorted(coordinator.officers())})
        return
    columns = ("online", "patients", "modalities", "spacing", "labels", "device",
               "least_epsilon", "lifetime_epsilon", "without_privacy", "defaced")  # fmt: skip
    rows = [[site, *(_cell(facts.get(c)) for c in columns)] for site, facts in document.items()]
    titles = [c.replace("_", " ") for c in columns]
    show_table("sites", ["site", *(f"{t} (mm)" if t == "spacing" else t for t in titles)], rows)
    console.print(f"officers: {', '.join(sorted(coordinator.officers())) or 'none'}")


HIDDEN = {"payload_digest", "payload_size", "kind"}


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(str(v) for v in value)
    return "?" if value is None else str(value)


@study_app.command()
def new(
    name: Name,
    folder: Folder = HERE,
    plan: Annotated[Path | None, typer.Option(help="A study file to start from.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Public weights that it names.")] = None,
) -> None:
    """Make a study from a study file, or from a template to edit."""
    from .template import TEMPLATE

    coordinator = _coordinator(folder)
    target = coordinator.studies / safe_name(name, what="the study") / "plan.toml"
    if target.exists():
        raise UsageError(f"study {name} exists already", got=target)
    text = TEMPLATE.format(name=name).encode()
    if plan is not None:
        text = StudyPlan.read(plan).text
    checked = StudyPlan.from_text(text, file=str(plan or "the template"))
    if checked.name != name:
        raise UsageError("the study file has another name", got=checked.name, expected=name)
    if weights is not None:
        write(target.parent / weights.name, weights.read_bytes())
    write(target, text)
    console.print(f"made {target}; edit it, then `voxfed study validate {name}`")


@study_app.command()
def validate(
    study: Annotated[str, typer.Argument(help="A study's name, or a study file.")],
    folder: Folder = HERE,
    as_json: AsJson = False,
) -> None:
    """Explain every wrong key, and print q, sigma and noise-to-signal for each described site."""
    from ..models.registry import build, check
    from ..models.trained import add_adapters, trained_parameters
    from .forecast import forecast

    path = Path(study)
    coordinator = _coordinator(folder) if (folder / "coordinator.toml").exists() else None
    if path.suffix == ".toml" or coordinator is None:
        plan = StudyPlan.read(path)
    else:
        plan = _store(coordinator, study).plan
    check(plan)
    family = build(plan)
    if plan.trained == "adapters":
        add_adapters(family)
    weights = dict(family.named_parameters())
    trained = sum(weights[n].numel() for n in trained_parameters(family, plan.trained))
    described = coordinator.descriptions() if coordinator is not None else {}
    found = [forecast(plan, site, said, trained) for site, said in described.items()]
    if as_json:
        show_json({"plan": plan.digest, "trained": trained, "sites": [vars(f) for f in found]})
        return
    console.print(f"{plan.name}: the study file is right; {trained:,} trained parameters")
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


@study_app.command()
def run(study: Name, folder: Folder = HERE, as_json: AsJson = False) -> None:
    """Offer the plan, wait for approvals, and run the rounds that are not yet done."""
    from .runs import submit_and_follow
    from .start import ensure_started

    coordinator = _coordinator(folder)
    store = _store(coordinator, study)
    stage = ensure_started(coordinator, store)
    began = time.time()
    with progress(f"{study}: asking the sites", hidden=as_json) as shown:

        def watch(facts: dict[str, Any]) -> None:
            done = len(store.rounds()) - 1
            shown(done, store.plan.rounds, title=_headline(store, facts))

        submit_and_follow(coordinator, store, {"task": "train", "stage": stage}, watch)
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
    store = _store(_coordinator(folder), study)
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
    rounds = store.rounds()
    return {
        "study": store.folder.name,
        "state": store.progress().get("state", "not started"),
        "rounds": max(0, len(rounds) - 1),
        "of": store.plan.rounds,
        "delta": store.plan.privacy.delta,
        "curve": [finished.facts for finished in rounds[1:]],
        "sites": {
            site: {
                "decision": facts["decision"],
                "reason": facts["reason"],
                "patients, at least": facts["declared_patients"],
                "rounds": sum(site in r.facts.get("epsilon", {}) for r in rounds),
                "epsilon": _last(rounds, site),
            }
            for site, facts in store.decisions().items()
        },
    }


def _last(rounds: list[Any], site: str) -> float | None:
    found = [r.facts["epsilon"][site] for r in rounds if site in r.facts.get("epsilon", {})]
    return found[-1] if found else None


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


@audit_app.command("run")
def audit_run(
    study: Name,
    folder: Folder = HERE,
    deadline: Annotated[float, typer.Option(help="Seconds to wait for the sites.")] = 86400.0,
    samples: Annotated[int, typer.Option(help="Synthetic volumes searched for copies.")] = 200,
    as_json: AsJson = False,
) -> None:
    """Ask each site to audit the last weights on its own patients, and write the report."""
    from .release import report_audit
    from .runs import submit_and_follow

    coordinator = _coordinator(folder)
    store = _store(coordinator, study)
    with progress(f"{study}: audit", hidden=as_json) as shown:

        def watch(facts: dict[str, Any]) -> None:
            waiting = facts.get("waiting", [])
            shown(0, 1, title=f"waiting for {', '.join(waiting)}" if waiting else "audit")

        task: dict[str, str | int | float | bool] = {
            "task": "audit", "deadline": deadline, "samples": samples,
        }  # fmt: skip
        done = submit_and_follow(coordinator, store, task, watch)
    target = Path(done["folder"])
    report = report_audit(coordinator, store, target)
    if as_json:
        show_json({"folder": str(target), "verdict": report.verdict, "refused": done["refused"]})
        return
    console.print(f"verdict {report.verdict}; the officer's page is {target / 'audit.html'}")


@release_app.command("build")
def release_build(study: Name, folder: Folder = HERE, as_json: AsJson = False) -> None:
    """Bind the last weights and their audit into a bundle, signed by the coordinator."""
    from .release import build_release

    coordinator = _coordinator(folder)
    bundle = build_release(coordinator, _store(coordinator, study))
    if as_json:
        show_json({"bundle": str(bundle)})
    else:
        console.print(f"built {bundle}; hand it to the officers for `voxfed release approve`")


@release_app.command("add")
def release_add(
    bundle: Annotated[Path, typer.Argument(help="The bundle.")],
    decision: Annotated[Path, typer.Argument(help="The officer's signed decision.")],
    folder: Folder = HERE,
) -> None:
    """Put an officer's signed decision into the bundle."""
    from ..privacy.bundle import add_decision

    coordinator = _coordinator(folder)
    if not decision.is_file():
        raise UsageError(f"there is no file {decision}")
    keys = {name: card.key for name, card in coordinator.officers().items()}
    added = add_decision(bundle, decision.read_bytes(), keys)
    coordinator.journal.append("decision", officer=added.officer, decision=added.decision)
    console.print(f"{added.officer}: {added.decision}")
