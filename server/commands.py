"""`voxfed server …`: the coordinator's own set-up and its running server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ..study.errors import UsageError, VoxfedError
from ..study.files import write
from ..study.terminal import console, show_json, show_table
from .options import HERE, AsJson, Folder, open_coordinator

server_app = typer.Typer(no_args_is_help=True, help="The coordinator's server.")


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

    coordinator = open_coordinator(folder)
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

    coordinator = open_coordinator(folder)
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

    coordinator = open_coordinator(folder)
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
    if not document:
        console.print("no site is enrolled: `voxfed server enroll --site FILE`")
    keys = dict.fromkeys(key for facts in document.values() for key in facts)
    rows = [
        [key.replace("_", " "), *(_cell(facts.get(key)) for facts in document.values())]
        for key in keys
    ]
    if document:
        show_table("sites (spacing in mm)", ["", *document], rows)
    console.print(f"officers: {', '.join(sorted(coordinator.officers())) or 'none'}")


HIDDEN = {"payload_digest", "payload_size", "kind"}


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(str(v) for v in value)
    return "?" if value is None else str(value)
