"""What the coordinator's commands share: their options, and how they open a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..study.plan import safe_name

if TYPE_CHECKING:
    from .coordinator import Coordinator
    from .store import Store

Folder = Annotated[
    Path, typer.Option("--folder", envvar="VOXFED_SERVER", help="The coordinator's folder.")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
Name = Annotated[str, typer.Argument(help="The study's name.")]
HERE = Path("coordinator")


def open_coordinator(folder: Path) -> Coordinator:
    """Return the coordinator in `folder`; raise SettingsError where there is none."""
    from .coordinator import Coordinator

    coordinator = Coordinator(folder.resolve())
    _ = coordinator.settings
    return coordinator


def open_store(coordinator: Coordinator, study: str) -> Store:
    """Return the folder of `study`; raise UsageError where there is no such study."""
    from .store import Store

    store = Store(coordinator.studies / safe_name(study, what="the study"))
    _ = store.plan
    return store
