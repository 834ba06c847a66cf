"""`voxfed`: mounts the commands of the roles, and turns errors into two lines and an exit code."""

from __future__ import annotations

import sys

import typer

from . import __version__
from .client.commands import site_app
from .privacy.commands import audit, officer, release
from .server.commands import server_app, study_app
from .study.errors import VoxfedError
from .study.terminal import errors, show_error

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Federated training of 3D generative models with patient-level privacy.",
)
app.add_typer(site_app, name="site")
app.add_typer(server_app, name="server")
app.add_typer(study_app, name="study")
app.add_typer(officer, name="officer")
app.add_typer(audit, name="audit")
app.add_typer(release, name="release")


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
    except KeyboardInterrupt:
        errors.print("voxfed: stopped")
        sys.exit(130)


if __name__ == "__main__":
    main()
