"""The documents: a test that they name is there, so that no promise points at nothing."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted((ROOT / "docs").glob("*.md"))
NAMED = re.compile(r"(tests/[\w/]+\.py)::(\w+)")


def missing(text: str) -> list[str]:
    """The tests named in a text as `tests/path.py::test_name` that do not exist."""
    found = []
    for file, name in NAMED.findall(text):
        path = ROOT / file
        tree = ast.parse(path.read_text()) if path.exists() else ast.Module([], [])
        names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        if name not in names or not name.startswith("test_"):
            found.append(f"{file}::{name}")
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_test_that_a_document_names_exists(path: Path) -> None:
    """A renamed test must be renamed in the table that relies on it."""
    assert missing(path.read_text()) == []


def test_what_is_not_there_is_found() -> None:
    """Neither a missing file, nor a missing test, nor a helper counts as a test."""
    here = "tests/test_docs.py"
    named = ["tests/none.py::test_x", f"{here}::test_nothing", f"{here}::missing"]
    assert missing(" ".join([*named, f"{here}::test_what_is_not_there_is_found"])) == named


def test_every_trap_names_a_test() -> None:
    """A row of the table of traps without a test would be a promise alone."""
    table = (ROOT / "docs/privacy.md").read_text().partition("## Known traps")[2]
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
    assert len(rows) >= 15
    assert [row for row in rows if not NAMED.search(row)] == []
