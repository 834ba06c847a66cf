"""A release carries the evaluation of its own weights, and of no others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from voxfed.server.release import evaluation_of
from voxfed.server.store import Store
from voxfed.study.errors import VerificationError
from voxfed.study.files import write

OURS, OTHER = "ab" * 32, "cd" * 32


def keep(store: Store, subject: str, weights: str, created: str) -> bytes:
    """Write a report as `voxfed evaluate` leaves it."""
    facts = {
        "created": created,
        "weights_digest": weights,
        "extractor": subject,
        "sites": [],
        "refused": {},
        "together": [],
        "worst": {},
    }
    text = json.dumps(facts).encode()
    write(store.folder / "evaluations" / subject / "evaluation.json", text)
    return text


def test_the_last_evaluation_of_the_very_weights_is_taken(tmp_path: Path) -> None:
    """By date, whatever the folders are called; other rounds' figures never get in."""
    store = Store(tmp_path)
    assert evaluation_of(store, OURS) is None
    keep(store, "c", OTHER, "2026-03-01T00:00:00+00:00")
    assert evaluation_of(store, OURS) is None
    last = keep(store, "a", OURS, "2026-02-01T00:00:00+00:00")
    keep(store, "b", OURS, "2026-01-01T00:00:00+00:00")
    assert evaluation_of(store, OURS) == last


def test_an_evaluation_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A half-written report is no silence."""
    write(tmp_path / "evaluations" / "a" / "evaluation.json", b"{")
    with pytest.raises(VerificationError, match=r"a/evaluation\.json cannot be read"):
        evaluation_of(Store(tmp_path), OURS)
