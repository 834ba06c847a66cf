"""`voxfed evaluate`: from the command to two hospitals, their operators, and back to a report."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conditions import CONDITIONED, MARKER, tell
from families import TINY
from federation import Federation
from voxfed.client import approval
from voxfed.client.scans import Scans
from voxfed.client.site import Site
from voxfed.models.phantoms import HOSPITALS, write_cohort
from voxfed.models.quality.contrast import train_encoder
from voxfed.study.files import digest

pytestmark = pytest.mark.slow

SITES = ("north", "harbour")
PATIENTS = 60
"""With every coin flipped, fewer than the 8 on a side that figures need has a chance of 1e-9."""
SAMPLES = 10
WINDOW = 128
"""Voxels of a mask, in a row, that are searched for."""


@pytest.fixture(scope="module")
def federation() -> Iterator[Federation]:
    """Two hospitals whose phantoms have a class and a mask each."""
    with Federation(*SITES) as made:
        for number, site in enumerate(SITES):
            cohort = made.folder / f"cohort-{site}"
            write_cohort(cohort, PATIENTS, HOSPITALS[number], seed=number)
            tell(cohort)
            made.settle(site, limits={"families": ["vae", *CONDITIONED], "lifetime_epsilon": 99.0})
        made.start_server()
        for site in SITES:
            made.start_site(site)
        yield made


def train(federation: Federation, study: str, **changes: Any) -> None:
    """Train a study that allows one evaluation."""
    privacy = {"epsilon": 6.0, "evaluations": 1}
    changes |= {"volumes": {"modality": "phantom"}, "privacy": privacy}
    federation.new_study(study, **changes)
    federation.run_study(study, approve=SITES)


def ask(federation: Federation, study: str, extractor: Path) -> dict[str, Any]:
    """Return what `evaluate` printed, once each operator allowed it."""
    asked = ("evaluate", study, "--folder", federation.coordinator, "--extractor", extractor)
    run = federation.spawn(*asked, "--samples", SAMPLES, "--json")
    for site in SITES:
        folder = federation.sites[site]
        waits = folder / "worker" / "approvals" / study / "evaluations"
        federation.wait(
            lambda waits=waits: run.poll() is not None or list(waits.glob("*.json")),
            100,
            f"the request at {site}",
        )
        assert run.poll() is None, run.communicate()
        (waiting,) = federation.cli("site", "approve", "--folder", folder, "--json").json["pending"]
        assert "evaluation of round 2: weights sha256" in waiting["waiting"]
        assert "EXACT figures of at most 1 evaluations" in waiting["what leaves"]
        federation.cli("site", "approve", study, "--evaluation", "--folder", folder)
    done: dict[str, Any] = federation.finish(run, seconds=400).json
    return done


@pytest.fixture(scope="module")
def extractor(federation: Federation) -> Path:
    """An encoder that learned for a moment."""
    path = federation.folder / "extractor.safetensors"
    train_encoder((16, 16, 16), steps=3, generator=torch.Generator().manual_seed(0)).save(path)
    return path


@pytest.fixture(scope="module")
def evaluated(federation: Federation, extractor: Path) -> dict[str, Any]:
    """The evaluation of a model that is told nothing."""
    train(federation, "first")
    return ask(federation, "first", extractor)


def test_the_report_holds_both_hospitals(evaluated: dict[str, Any], extractor: Path) -> None:
    """Every figure is there by site and joined, with n, interval and real against real."""
    assert evaluated["refused"] == {}
    assert [site["site"] for site in evaluated["sites"]] == sorted(SITES)
    names = {"FID", "KID", "MMD", "precision", "recall", "density", "coverage"}
    names |= {"cosine distance to members", "cosine distance to held-out"}
    names |= {"MS-SSIM between samples"}
    for rows in [evaluated["together"], *(site["figures"] for site in evaluated["sites"])]:
        assert names <= {row["name"] for row in rows}
        for row in (row for row in rows if row["group"] == "all"):
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
    cohorts = [federation.folder / f"cohort-{site}" for site in SITES]
    patients = {path.name for cohort in cohorts for path in cohort.iterdir() if path.is_dir()}
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


def test_a_model_that_is_told_a_class(federation: Federation, extractor: Path) -> None:
    """Its utility is told at each site, where real volumes teach a class that can be seen.

    Where a patient were told another's class they would teach nothing. What a model of two noisy
    rounds teaches is left to chance.
    """
    train(federation, "classes", **conditioned("conditional-vae"))
    done = ask(federation, "classes", extractor)
    assert done["refused"] == {}
    for site in done["sites"]:
        rows = {row["name"]: row for row in site["figures"] if row["group"] == "all"}
        for name in ("balanced accuracy", "AUC"):
            found = [rows[f"{name}, {way}"] for way in ("real only", "synthetic only", "both")]
            assert all(0 <= row["low"] <= row["high"] <= 1 for row in found)
            assert all(
                row["n"] == len(held_out(federation, site["site"], "classes")) for row in found
            )
            assert found[0]["value"] > 0.8
    assert not [line for line in done["notes"] if "not measured" in line or "no utility" in line]


def test_a_model_that_is_told_masks(federation: Federation, extractor: Path) -> None:
    """Its samples are held against the site's own held-out masks, of which none leaves the site."""
    train(federation, "masks", **conditioned("pix2pix"))
    done = ask(federation, "masks", extractor)
    assert done["refused"] == {}
    for site in done["sites"]:
        rows = {row["name"]: row for row in site["figures"] if row["group"] == "all"}
        structures = ("Dice", "Dice, structure 1", "Dice, structure 2")
        assert {"HD95, mm", *structures} <= set(rows)
        assert rows["Dice"]["n"] == SAMPLES, "one sample each, of as many held-out patients"
        assert rows["Dice"]["real"] > 0.5
        assert rows["Dice"]["high"] < rows["Dice"]["real"], "two noisy rounds teach no anatomy"
        others = len(held_out(federation, site["site"], "masks")) // 2
        assert rows["Dice, real only"]["n"] == max(others, 5)
        assert rows["Dice, synthetic only"]["value"] < rows["Dice, real only"]["value"]
    assert not [line for line in done["notes"] if "not measured" in line or "no utility" in line]
    page = (Path(done["folder"]) / "evaluation.html").read_text()
    assert "Not shown: " in page
    assert page.count("data:image/png") == 2
    for site in SITES:
        masks = held_out_masks(federation, site)
        inside = federation.sites[site] / "worker" / "cache"
        there = carriers(masks, inside.rglob("*"))
        assert len(there) >= len(held_out(federation, site, "masks")), "the search finds them"
        outside = [*federation.folder.glob("*.log"), *federation.coordinator.rglob("*")]
        for other in SITES:
            outside += (federation.sites[other] / "courier").rglob("*")
            outside += (federation.sites[other] / "worker" / "outbox").rglob("*")
            outside += (federation.sites[other] / "worker").glob("*.log")
        assert any(path.suffix == ".reply" for path in outside)
        assert any(path.name == "superlink.sqlite" for path in outside)
        assert carriers(masks, outside) == []


def conditioned(family: str) -> dict[str, Any]:
    """Return the changes of a plan that make it this family's, told something."""
    return {"family": family, "settings": TINY[family], "condition": CONDITIONED[family]}


def held_out(federation: Federation, site: str, study: str) -> list[str]:
    """Return the patients of a site who were held out of a study."""
    return approval.find(Site(federation.sites[site]), study).manifest.held_out


def held_out_masks(federation: Federation, site: str) -> list[bytes]:
    """Return what betrays a mask of the site's held-out patients: names, files, and voxels."""
    place = Site(federation.sites[site])
    decided = approval.find(place, "masks")
    plan, cache, cpu = decided.plan, place.worker / "cache", torch.device("cpu")
    scans = Scans(decided.manifest, place.cohort, cache, plan.volumes, cpu, plan.condition)
    found = [MARKER.encode()]
    for patient in decided.manifest.held_out:
        found.append(patient.encode())
        found += [path.read_bytes()[:200] for path in (place.cohort / patient).glob("*_tissue*")]
        for batch in scans.batches(patient):
            assert batch.condition.mask is not None
            rows = np.lib.stride_tricks.sliding_window_view(batch.condition.mask.ravel(), WINDOW)
            edges = np.count_nonzero(np.diff(rows, axis=1), axis=1)
            some = rows[edges.argmax()]
            # one 1 and then 0 stand in first weights too, which know of no patient
            assert edges.max() > 10
            found += [some.astype(kind).tobytes() for kind in ("u1", "i2", "i4", "i8", "f4", "f8")]
    return found


def carriers(needles: Iterable[bytes], paths: Iterable[Path]) -> list[str]:
    """Return the files that hold one of the needles."""
    found = []
    for path in paths:
        content = path.read_bytes() if path.is_file() else b""
        if any(needle in content for needle in needles):
            found.append(str(path))
    return found


def test_a_plan_that_allows_none(federation: Federation) -> None:
    """Nobody is asked for what the approved plan leaves out."""
    federation.new_study("second")
    done = federation.cli("evaluate", "second", "--folder", federation.coordinator, code=3)
    assert "privacy.evaluations = 0" in done.errors
