"""The coordinator's half of a release: `audit run`, and `release` build, add, revoke and list."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..privacy.audit_commands import audit_app
from ..privacy.release_commands import release_app
from ..study.errors import UsageError
from ..study.terminal import console, progress, show_json, show_table
from .options import HERE, AsJson, Folder, Name, open_coordinator, open_store


@audit_app.command("run")
def audit_run(
    study: Name,
    folder: Folder = HERE,
    deadline: Annotated[float, typer.Option(help="Seconds to wait for the sites.")] = 86400.0,
    samples: Annotated[
        int,
        typer.Option(
            min=0, max=65536, help="Synthetic volumes searched for copies; 0: by minutes."
        ),
    ] = 0,
    minutes: Annotated[
        float, typer.Option(min=0.1, help="How long synthetic volumes may take to draw.")
    ] = 5.0,
    as_json: AsJson = False,
) -> None:
    """Ask each site to audit the last weights on its own patients, and write the report."""
    from .release import report_audit
    from .runs import submit_and_follow
    from .specimens import gather

    coordinator = open_coordinator(folder)
    store = open_store(coordinator, study)
    with progress(f"{study}: synthetic volumes", hidden=as_json) as drawing:
        found = gather(coordinator, store, samples, minutes * 60, drawing)
    with progress(f"{study}: audit", hidden=as_json) as shown:

        def watch(facts: dict[str, Any]) -> None:
            waiting = facts.get("waiting", [])
            shown(0, 1, title=f"waiting for {', '.join(waiting)}" if waiting else "audit")

        task: dict[str, str | int | float | bool] = {
            "task": "audit", "deadline": deadline, "samples": found.samples,
            "drawn": str(found.drawn or ""), "extractor": str(found.extractor or ""),
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

    coordinator = open_coordinator(folder)
    bundle = build_release(coordinator, open_store(coordinator, study))
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

    coordinator = open_coordinator(folder)
    if not decision.is_file():
        raise UsageError(f"there is no file {decision}")
    keys = {name: card.key for name, card in coordinator.officers().items()}
    added = add_decision(bundle, decision.read_bytes(), keys)
    coordinator.journal.append("decision", officer=added.officer, decision=added.decision)
    console.print(f"{added.officer}: {added.decision}")


@release_app.command("revoke")
def release_revoke(
    bundle: Annotated[Path, typer.Argument(help="The bundle.")],
    reason: Annotated[str, typer.Option(help="Why, in your words; it is kept for good.")],
    folder: Folder = HERE,
    as_json: AsJson = False,
) -> None:
    """Take a release back: its bundle says so, and the file it leaves is for whoever has a copy."""
    from .release import revoke

    path = revoke(open_coordinator(folder), bundle, reason)
    if as_json:
        show_json({"revocation": str(path)})
    else:
        console.print(f"revoked; send {path} to everybody who has the bundle")


@release_app.command("list")
def release_list(study: Name, folder: Folder = HERE, as_json: AsJson = False) -> None:
    """List a study's releases: verdict, who decided, and what was revoked."""
    from .release import list_releases

    coordinator = open_coordinator(folder)
    found = list_releases(coordinator, open_store(coordinator, study))
    if as_json:
        show_json({"releases": found})
        return
    columns = ["release", "built of weights", "verdict", "decided", "revoked"]
    rows = [
        [
            release["bundle"],
            release["weights"][:12],
            release["verdict"],
            ", ".join(f"{name}: {word}" for name, word in release["decisions"].items()) or "nobody",
            release["revoked"],
        ]
        for release in found
    ]
    show_table(f"releases of {study}", columns, rows)
