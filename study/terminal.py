"""What a person sees: tables, progress bars, errors; and one JSON document for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from .errors import VoxfedError

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False, soft_wrap=True)
COLOURS = {"PASS": "green", "WARN": "yellow", "FAIL": "red", "BLOCK": "bold white on red"}


class Bar(Protocol):
    """Moves a progress bar."""

    def __call__(self, done: int, total: int, title: str = "") -> None:
        """Show `done` of `total`, and another title where one is given."""


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; verdicts come in colour."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(_coloured(str(cell)) for cell in row))
    console.print(table)


def show_json(document: Any) -> None:
    """Print one JSON document on standard output."""
    print(json.dumps(document, indent=1, default=str))


def show_error(fault: VoxfedError) -> None:
    """Print `voxfed: error: …` and `voxfed: hint: …` on standard error."""
    errors.print(f"voxfed: error: {fault.message}", style="red", markup=False)
    if fault.hint:
        errors.print(f"voxfed: hint: {fault.hint}", markup=False)


@contextmanager
def progress(title: str, *, hidden: bool = False) -> Iterator[Bar]:
    """Show a bar while a long work runs; the yielded function moves it.

    Where standard error is no terminal, each new title is a line of its own instead.
    """
    shown = not hidden and sys.stderr.isatty()
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeRemainingColumn(),
        console=errors,
        disable=not shown,
    )
    with bar:
        task = bar.add_task(title, total=None)

        said = ""

        def move(done: int, total: int, title: str = "") -> None:
            nonlocal said
            bar.update(task, completed=done, total=total)
            if title:
                bar.update(task, description=title)
            if title and title != said and not shown and not hidden:
                errors.print(f"  {title} ({done}/{total})", markup=False)
                said = title

        yield move


def _coloured(text: str) -> str:
    from rich.markup import escape

    colour = COLOURS.get(text)
    return f"[{colour}]{text}[/]" if colour else escape(text)
