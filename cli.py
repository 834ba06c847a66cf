"""`voxfed`: mounts the commands of the roles, and turns errors into two lines and an exit code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from . import __version__
from .client.commands import site_app
from .privacy.audit_commands import audit_app
from .privacy.officer_commands import officer_app
from .privacy.release_commands import release_app
from .server import release_commands  # noqa: F401, adds to the audit and release groups
from .server.commands import server_app
from .server.evaluation_commands import evaluate
from .server.study_commands import study_app
from .study.errors import ProcessError, VoxfedError
from .study.terminal import console, errors, progress, show_error, show_json, show_table

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Federated training of 3D generative models with patient-level privacy.",
)
app.add_typer(site_app, name="site")
app.add_typer(server_app, name="server")
app.add_typer(study_app, name="study")
app.add_typer(officer_app, name="officer")
app.add_typer(audit_app, name="audit")
app.add_typer(release_app, name="release")
app.command()(evaluate)


@app.command()
def sample(
    bundle: Annotated[Path, typer.Argument(help="A release bundle.")],
    folder: Annotated[Path, typer.Option("--output", "-o", help="Where the volumes go.")],
    n: Annotated[int, typer.Option("-n", help="How many volumes.")] = 8,
    condition: Annotated[
        str,
        typer.Option(help="A class, numbers (62,1.4), or NIfTI masks or sources to start from."),
    ] = "",
    seed: Annotated[int | None, typer.Option(help="Makes the volumes repeatable.")] = None,
) -> None:
    """Draw synthetic volumes from a bundle: NIfTI marked as synthetic, and a contact sheet."""
    from .client.conditions import asked
    from .privacy.samples import draw_samples

    told = (lambda plan: asked(plan, condition)) if condition else None
    with progress("drawing") as shown:
        files = draw_samples(bundle, n, folder, told=told, seed=seed, progress=shown)
    console.print(f"{len(files)} synthetic volumes and contact_sheet.png in {folder}")


@app.command()
def models(
    name: Annotated[str, typer.Argument(help="A family, to see its settings.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """List the families, their tasks and whether they can be private; or one family's settings."""
    from .models.registry import describe
    from .models.settings import settings

    if name:
        known = settings(name)
        if as_json:
            show_json({"family": name, "settings": [vars(one) for one in known]})
            return
        lines = [(one.name, str(one.default), one.description) for one in known]
        show_table(f"settings of {name}", ("setting", "default", "what it does"), lines)
        return
    rows = describe()
    if as_json:
        show_json({"families": [vars(row) for row in rows]})
        return
    columns = "family", "tasks", "stages", "size", "DP", "source"
    cells = [
        (
            f"{row.name} ({row.title})",
            ", ".join(row.tasks),
            ", ".join(row.stages),
            f"{row.parameters / 1e6:.1f} M",
            row.privacy,
            row.source,
        )
        for row in rows
    ]
    show_table("families", columns, cells)


@app.command("demo")
def demonstrate(
    data: Annotated[Path | None, typer.Option(help="Real scans, one folder a patient.")] = None,
    family: Annotated[str, typer.Option(help="A family that `voxfed models` lists.")] = "vae",
    no_privacy: Annotated[bool, typer.Option("--no-privacy", help="Train without it.")] = False,
    folder: Annotated[Path, typer.Option(help="Where it all goes.")] = Path("voxfed-demo"),
) -> None:
    """Run three hospitals, a coordinator and an officer on this machine, end to end."""
    from .demo.tour import run_demo

    run_demo(folder, data=data, family=family, private=not no_privacy)


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


def main() -> None:
    """Run the command line; exit 2 for wrong use, 3 for a refusal, 4 for a failed verification."""
    try:
        app()
    except VoxfedError as fault:
        show_error(fault)
        sys.exit(fault.exit_code)
    except OSError as fault:
        where = f"{fault.filename}: " if fault.filename else ""
        show_error(ProcessError(f"{where}{fault.strerror or fault}"))
        sys.exit(1)
    except KeyboardInterrupt:
        errors.print("voxfed: stopped")
        sys.exit(130)


if __name__ == "__main__":
    main()
