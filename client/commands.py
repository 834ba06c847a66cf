"""`voxfed site …`: what the site operator does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ..study.card import Card
from ..study.errors import UsageError
from ..study.terminal import console, progress, show_json, show_table
from .ledger_commands import ledger_app
from .options import HERE, AsJson, Folder, open_site

site_app = typer.Typer(no_args_is_help=True, help="What the site operator of a hospital does.")

site_app.add_typer(ledger_app, name="ledger")

RoleOption = Annotated[
    str, typer.Option("--role", help="worker or courier; both where it is left out.")
]


@site_app.command()
def init(
    invitation: Annotated[Path, typer.Argument(help="The coordinator's invitation.json.")],
    name: Annotated[str, typer.Option(help="The hospital's name, e.g. hospital-a.")],
    cohort: Annotated[Path, typer.Option(help="The folder that holds the patients.")],
    folder: Folder = HERE,
    defaced: Annotated[str, typer.Option(help="yes, no or not-head.")] = "no",
) -> None:
    """Make the site's folder, its keys and an empty ledger, and write enrolment.json."""
    from .site import SiteSettings, create
    from .supernode import node_key

    try:
        facts = json.loads(invitation.read_bytes())
        address, certificate = str(facts["address"]), str(facts["certificate"])
        coordinator = Card.from_facts(facts["coordinator"], what=str(invitation))
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(
            f"{invitation} is no invitation", hint="ask the coordinator for invitation.json"
        ) from None
    values = {
        "name": name,
        "cohort": str(cohort.resolve()),
        "coordinator": address,
        "defaced": defaced,
    }
    settings = SiteSettings.checked(values, file="the options")
    site = create(folder, settings, coordinator, certificate.encode())
    _, public = node_key(site.courier)
    card = Card.read(site.worker / "keys" / "site.card.json")
    enrolment = {**card.facts(), "node_key": public.read_text()}
    target = site.folder / "enrolment.json"
    target.write_text(json.dumps(enrolment, indent=1))
    console.print(f"made {site.folder}, limits in worker/site.toml")
    if not cohort.is_dir():
        console.print(f"there is no folder {cohort} yet: put the patients there")
    console.print(f"the coordinator's key is {coordinator.key.identifier}: compare by telephone")
    console.print(f"send {target} to the coordinator; your key is {card.key.identifier}")


@site_app.command()
def check(
    folder: Folder = HERE,
    cohort: Annotated[Path | None, typer.Option(help="Check this folder, without a site.")] = None,
    role: RoleOption = "",
    uid: Annotated[int | None, typer.Option(help="The container's user, to test reading.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check the cohort's files, the network, and one private step of each offered plan."""
    from .preflight import check_data, check_folder, check_network

    if role not in ("", "worker", "courier"):
        raise UsageError("unknown role", got=role, expected="worker or courier")
    files: list[dict[str, str]] = []
    rows: list[dict[str, str]] = []
    with progress("files", hidden=as_json) as shown:
        if cohort is not None:
            files = check_folder(cohort, progress=shown)
        else:
            site = open_site(folder)
            if role in ("", "courier"):
                rows += check_network(site)
            if role in ("", "worker"):
                files, more = check_data(site, uid=uid, progress=shown)
                rows += more
    if as_json:
        show_json({"files": files, "checks": rows} if cohort is None else {"files": files})
    else:
        _show_checks(files, rows)
    if any(item["verdict"] == "FAIL" for item in [*files, *rows]):
        raise typer.Exit(1)


def _show_checks(files: list[dict[str, str]], rows: list[dict[str, str]]) -> None:
    if rows:
        show_table(
            "site",
            ("check", "verdict", "found", "remedy"),
            [(r["check"], r["verdict"], r["found"], r["remedy"]) for r in rows],
        )
    odd = [f for f in files if f["verdict"] != "PASS"]
    if odd:
        show_table(
            "files",
            ("file", "verdict", "reason", "remedy"),
            [(f["path"], f["verdict"], f["reason"], f["remedy"]) for f in odd],
        )
    if files:
        console.print(f"{len(files) - len(odd)} of {len(files)} files PASS")


@site_app.command()
def suspects(
    study: Annotated[str, typer.Argument(help="The study.")],
    folder: Folder = HERE,
    as_json: AsJson = False,
) -> None:
    """Show which synthetic volumes look like which patients; the pictures stay on this machine."""
    from .suspects import draw_pairs

    found = draw_pairs(open_site(folder), study)
    if as_json:
        show_json({"pairs": found})
        return
    rows = [
        [
            str(pair["sample"]),
            pair["patient"],
            "trained" if pair["member"] else "held out",
            pair["space"],
            f"{pair['similarity']:.3f}" + (" strict" if pair["strict"] else ""),
            Path(pair["picture"]).name,
        ]
        for pair in found
    ]
    columns = ["synthetic", "patient", "", "alike in", "similarity", "picture"]
    show_table(f"{study}: the synthetic volumes most like a patient", columns, rows)
    if found:
        console.print(f"pictures, for your eyes: {Path(found[0]['picture']).parent}")
        console.print("a pair alike by chance is no copy; a held-out patient cannot be copied")


@site_app.command()
def approve(
    study: Annotated[
        str, typer.Argument(help="The study; left out, pending plans are listed.")
    ] = "",
    folder: Folder = HERE,
    audit: Annotated[bool, typer.Option("--audit", help="Allow the audit it asks for.")] = False,
    evaluation: Annotated[
        bool, typer.Option("--evaluation", help="Allow the evaluation it asks for.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List what waits for a decision, or approve a study: the cohort is frozen, its budget set."""
    from .approval import all_approvals, find
    from .approval import approve as approve_plan
    from .permission import KINDS, permit
    from .summary import summary

    site = open_site(folder)
    if not study:
        pending = [summary(site, approval) for approval in all_approvals(site)]
        waiting = [p for p in pending if p["state"] == "pending" or p["waiting"] != "nothing"]
        if as_json:
            show_json({"pending": waiting})
            return
        for item in waiting:
            show_table(str(item["study"]), ("", ""), list(item.items()))
        console.print("approve with `voxfed site approve STUDY`" if waiting else "nothing waits")
        return
    asked = {"audit": audit, "evaluation": evaluation}
    for kind in [kind for kind in KINDS if asked[kind]]:
        allowed = permit(site, find(site, study), kind)
        console.print(
            f"{kind} {allowed.number} of {study} allowed: round {allowed.round}, {allowed.about}"
        )
    if audit or evaluation:
        return
    with progress("freezing the cohort", hidden=as_json) as shown:
        approval = approve_plan(site, study, shown)
    terms = approval.terms
    facts = {
        "study": study,
        "declared_patients": terms.declared,
        "members": len(approval.manifest.members),
        "held_out": len(approval.manifest.held_out),
        "canaries": len(approval.manifest.canaries.names),
        "rate": terms.rate,
        "sigma": terms.sigma,
        "lifetime_left": site.ledger.lifetime_left(),
    }
    if as_json:
        show_json(facts)
    else:
        show_table(f"{study} approved", ("", ""), list(facts.items()))


@site_app.command()
def reject(
    study: Annotated[str, typer.Argument(help="The study.")],
    reason: Annotated[str, typer.Option(help="Why; it is sent to the coordinator.")],
    folder: Folder = HERE,
) -> None:
    """Say no to a study."""
    from .approval import reject as reject_plan

    reject_plan(open_site(folder), study, reason)
    console.print(f"{study} rejected")


@site_app.command()
def start(
    folder: Folder = HERE,
    role: RoleOption = "",
    health_port: Annotated[int | None, typer.Option(help="For container probes.")] = None,
) -> None:
    """Run worker and courier until stopped; whichever dies is started again."""
    from . import processes

    site = open_site(folder)
    if role == "worker":
        processes.run_worker(site)
    elif role == "courier":
        processes.run_courier(site, health_port)
    elif role == "":
        processes.watch(site, health_port)
    else:
        raise UsageError("unknown role", got=role, expected="worker or courier")


@site_app.command()
def stop(folder: Folder = HERE) -> None:
    """Stop what `voxfed site start` started here."""
    from . import processes

    stopped = processes.stop(open_site(folder))
    console.print(f"stopped {', '.join(stopped)}" if stopped else "nothing was running")


@site_app.command()
def status(folder: Folder = HERE, as_json: AsJson = False) -> None:
    """Show what runs here, which studies were offered and decided, and what is left."""
    from . import processes
    from .approval import all_approvals

    site = open_site(folder)
    worker = processes.running(site, "worker")
    facts: dict[str, Any] = {
        "site": site.settings.name,
        **{role: processes.running(site, role) is not None for role in processes.ROLES},
        "worker's network": processes.interfaces(worker) if worker is not None else None,
        "lifetime_spent": site.ledger.lifetime_spent(),
        "lifetime_left": site.ledger.lifetime_left(),
        "studies": {a.folder.name: a.state for a in all_approvals(site)},
    }
    if as_json:
        show_json(facts)
        return
    rows = [(key, _plain(value)) for key, value in facts.items() if key != "studies"]
    show_table(facts["site"], ("", ""), rows[1:])
    show_table("studies", ("study", "state"), list(facts["studies"].items()))


@site_app.command()
def close(
    study: Annotated[str, typer.Argument(help="The study.")],
    folder: Folder = HERE,
) -> None:
    """End a study at this site for good: what it reserved and has not spent is given back."""
    site = open_site(folder)
    site.ledger.close(study)
    site.journal.append("closed", study=study)
    console.print(f"{study} closed, lifetime left: {site.ledger.lifetime_left():.4f}")


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "running" if value else "not running"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
