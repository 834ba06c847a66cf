"""`voxfed evaluate`: from the command to two hospitals, their operators, and back to a report."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from federation import Federation
from voxfed.models.phantoms import HOSPITALS, write_cohort
from voxfed.models.quality.contrast import train_encoder
from voxfed.study.files import digest

pytestmark = pytest.mark.slow

SITES = ("north", "harbour")
PATIENTS = 60
"""With every coin flipped, fewer than the 8 on a side that figures need has a chance of 1e-9."""


@pytest.fixture(scope="module")
def federation() -> Iterator[Federation]:
    """Two hospitals that trained the study `first`, which allows one evaluation."""
    with Federation(*SITES) as made:
        for number, site in enumerate(SITES):
            write_cohort(made.folder / f"cohort-{site}", PATIENTS, HOSPITALS[number], seed=number)
        made.start_server()
        for site in SITES:
            made.start_site(site)
        made.new_study("first", privacy={"epsilon": 6.0, "evaluations": 1})
        made.run_study("first", approve=SITES)
        yield made


@pytest.fixture(scope="module")
def extractor(federation: Federation) -> Path:
    """An encoder that learned for a moment."""
    path = federation.folder / "extractor.safetensors"
    train_encoder((16, 16, 16), steps=3, generator=torch.Generator().manual_seed(0)).save(path)
    return path


@pytest.fixture(scope="module")
def evaluated(federation: Federation, extractor: Path) -> dict[str, Any]:
    """What `evaluate` printed, once each operator allowed it."""
    asked = ("evaluate", "first", "--folder", federation.coordinator, "--extractor", extractor)
    run = federation.spawn(*asked, "--samples", 10, "--json")
    for site in SITES:
        folder = federation.sites[site]
        waits = folder / "worker" / "approvals" / "first" / "evaluations"
        federation.wait(
            lambda waits=waits: run.poll() is not None or list(waits.glob("*.json")),
            100,
            f"the request at {site}",
        )
        assert run.poll() is None, run.communicate()
        (waiting,) = federation.cli("site", "approve", "--folder", folder, "--json").json["pending"]
        assert "evaluation of round 2: weights sha256" in waiting["waiting"]
        assert "EXACT figures of at most 1 evaluations" in waiting["what leaves"]
        federation.cli("site", "approve", "first", "--evaluation", "--folder", folder)
    done: dict[str, Any] = federation.finish(run, seconds=300).json
    return done


def test_the_report_holds_both_hospitals(evaluated: dict[str, Any], extractor: Path) -> None:
    """Every figure is there by site and joined, with n, interval and real against real."""
    assert evaluated["refused"] == {}
    assert [site["site"] for site in evaluated["sites"]] == sorted(SITES)
    names = {"FID", "KID", "MMD", "precision", "recall", "density", "coverage"}
    names |= {"cosine distance to members", "cosine distance to held-out"}
    names |= {"MS-SSIM between samples"}
    for rows in [evaluated["together"], *(site["figures"] for site in evaluated["sites"])]:
        assert names <= {row["name"] for row in rows}
        for row in rows:
            assert 8 <= row["n"] <= 20
            assert row["real"] is not None
    assert set(evaluated["worst"].values()) <= set(SITES)
    assert evaluated["extractor_digest"] == digest(extractor)
    assert "phantoms" in evaluated["extractor"]


def test_what_is_kept_names_no_patient_and_needs_no_network(
    federation: Federation, evaluated: dict[str, Any]
) -> None:
    """The page can be sent to whoever asks."""
    folder = Path(evaluated["folder"])
    page = (folder / "evaluation.html").read_text()
    assert not re.search(r'(?:src|href)="(?!data:|#)', page), "the page needs the network"
    assert page.count("data:image/png") == 3
    patients = {p.name for site in SITES for p in (federation.folder / f"cohort-{site}").iterdir()}
    assert len(patients) == 2 * PATIENTS
    kept = b"".join(path.read_bytes() for path in folder.iterdir())
    assert not [name for name in patients if name.encode() in kept]
    assert json.loads((folder / "evaluation.json").read_bytes())["study"] == "first"


def test_it_is_counted_and_costs_no_epsilon(
    federation: Federation, evaluated: dict[str, Any], extractor: Path
) -> None:
    """The ledger's row holds no event, and the one evaluation of the plan is spent."""
    for site in SITES:
        assert federation.charges(site, "first")[-1] == ("evaluation", 1)
        assert federation.ledger(site)["studies"][0]["spent"] <= 6
    asked = ("evaluate", "first", "--folder", federation.coordinator, "--extractor", extractor)
    assert "evaluations-spent" in federation.cli(*asked, "--samples", 11, code=3).errors


def test_a_plan_that_allows_none(federation: Federation) -> None:
    """Nobody is asked for what the approved plan leaves out."""
    federation.new_study("second")
    done = federation.cli("evaluate", "second", "--folder", federation.coordinator, code=3)
    assert "privacy.evaluations = 0" in done.errors
