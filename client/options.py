"""What the site's commands share: their options, and how they open a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from .site import Site

Folder = Annotated[Path, typer.Option("--folder", envvar="VOXFED_SITE", help="The site's folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
HERE = Path("site")


def open_site(folder: Path) -> Site:
    """Return the site in `folder`; its settings are read when they are asked for."""
    from .site import Site

    return Site(folder.resolve())
