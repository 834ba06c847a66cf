"""Three hospitals, one coordinator and two officers, from `init` to synthetic volumes."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dp_accounting
import nibabel as nib
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant
from federation import PATIENTS, Federation
from voxfed.client.site import Site
from voxfed.privacy.verification import verify
from voxfed.study import messages
from voxfed.study.card import Card
from voxfed.study.errors import VerificationError
from voxfed.study.files import digest

SITES = ("north", "harbour", "valley")
PASSPHRASE = {"VOXFED_PASSPHRASE": "a long one"}
FILES = {
    "weights.safetensors",
    "model.json",
    "MODEL_CARD.md",
    "audit.json",
    "audit.html",
    "attestation.dsse.json",
    "decisions/ada.dsse.json",
    "decisions/ben.dsse.json",
}
OFFICERS = ("ada", "ben")
REASON = "few patients, and only phantoms"


@pytest.fixture(scope="module")
def federation() -> Iterator[Federation]:
    """Three hospitals that have trained, audited and released the study `first`."""
    with Federation(*SITES) as made:
        made.start_server()
        for site in SITES:
            made.start_site(site)
        yield made


@pytest.fixture(scope="module")
def trained(federation: Federation) -> dict[str, Any]:
    """What `study run` printed."""
    federation.new_study("first")
    return federation.run_study("first", approve=SITES).json


@pytest.fixture(scope="module")
def after_rounds(federation: Federation, trained: dict[str, Any]) -> dict[str, float]:
    """Epsilon in each ledger when the rounds were done and the audit was not."""
    return {site: federation.ledger(site)["studies"][0]["spent"] for site in SITES}


@pytest.fixture(scope="module")
def audited(federation: Federation, after_rounds: dict[str, float]) -> dict[str, Any]:
    """What `audit run` printed, once each operator allowed the audit."""
    found: dict[str, Any] = federation.audit("first", SITES)
    return found


@pytest.fixture(scope="module")
def bundle(federation: Federation, audited: dict[str, Any]) -> Path:
    """A bundle that two officers approved, each on a machine of their own."""
    server = ("--folder", federation.coordinator)
    for name in OFFICERS:
        folder = federation.folder / name
        federation.cli(
            "officer", "init", "--folder", folder, "--name", name, environment=PASSPHRASE
        )
        federation.cli("server", "enroll", *server, "--officer", folder / "officer.card.json")
    built = federation.cli("release", "build", "first", *server, "--json").json
    made = Path(built["bundle"])
    warnings = federation.cli("audit", "show", made, "--json").json["findings"]
    reasons = [f"{one['rule']}={REASON}" for one in warnings if one["verdict"] == "WARN"]
    for name in OFFICERS:
        decision = federation.folder / f"{name}.decision"
        federation.cli(
            *("release", "approve", made, "--folder", federation.folder / name),
            *("--output", decision, *cards(federation)),
            *(word for reason in reasons for word in ("--reason", reason)),
            environment=PASSPHRASE,
        )
        federation.cli("release", "add", made, decision, *server)
    return made


def cards(federation: Federation) -> list[str]:
    """Return the options that name every card."""
    own = federation.coordinator
    paths = [own / "coordinator.card.json", *own.glob("sites/*/card.json")]
    paths += [federation.folder / name / "officer.card.json" for name in OFFICERS]
    return [part for path in paths for part in ("--card", str(path))]


def recorded_epsilon(federation: Federation, site: str) -> float:
    """Return what dp-accounting alone makes of the events in a site's ledger."""
    accountant = PLDAccountant(value_discretization_interval=1e-4)
    for row in Site(federation.sites[site]).ledger.rows():
        if row.kind == "charge":
            for kind, sigma, rate, steps in row.body["events"]:
                event = dp_accounting.GaussianDpEvent(sigma)
                if kind == "sampled-gaussian":
                    event = dp_accounting.PoissonSampledDpEvent(rate, event)
                accountant.compose(event, steps)
    return float(accountant.get_epsilon(1e-5))


def test_rounds_finish_and_every_number_for_epsilon_is_the_same(
    federation: Federation, trained: dict[str, Any], after_rounds: dict[str, float]
) -> None:
    """What the coordinator shows is what each ledger holds, within the plan, charged once."""
    assert (trained["state"], trained["rounds"], trained["of"]) == ("finished", 2, 2)
    server = ("--folder", federation.coordinator)
    shown = federation.cli("study", "status", "first", *server).output
    for site in SITES:
        told = trained["sites"][site]
        assert (told["decision"], told["patients, at least"], told["rounds"]) == ("approved", 20, 2)
        assert told["epsilon"] == pytest.approx(after_rounds[site], abs=1e-9)
        assert 0 < told["epsilon"] <= 8
        assert f"{told['epsilon']:.4f}" in shown


def test_epsilon_after_the_audit_is_the_same_in_ledger_table_and_report(
    federation: Federation, after_rounds: dict[str, float], bundle: Path
) -> None:
    """One number everywhere, and it is dp-accounting's on the recorded events."""
    server = ("--folder", federation.coordinator, "--json")
    table = federation.cli("study", "status", "first", *server).json["sites"]
    report = json.loads((bundle / "audit.json").read_bytes())
    assert {site["site"] for site in report["sites"]} == set(SITES)
    for told in report["sites"]:
        site = told["site"]
        ledger = federation.ledger(site)
        (study,) = ledger["studies"]
        assert after_rounds[site] < study["spent"] <= 8
        assert federation.charges(site, "first") == [
            ("autoencoder", 1),
            ("autoencoder", 2),
            ("audit", 1),
        ]
        assert study["spent"] == pytest.approx(recorded_epsilon(federation, site), abs=1e-9)
        assert told["epsilon"] == pytest.approx(study["spent"], abs=1e-9)
        assert table[site]["epsilon"] == pytest.approx(study["spent"], abs=1e-9)
        assert study["curve"][-1]["epsilon"] == study["spent"]
    most = max(told["epsilon"] for told in report["sites"])
    assert report["epsilon"] == pytest.approx(most, abs=1e-9)


def test_the_bundle_verifies_by_command_and_is_whole(federation: Federation, bundle: Path) -> None:
    """An officer's machine with nothing but cards confirms the release."""
    assert {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()} == FILES
    found = federation.cli("release", "verify", bundle, *cards(federation), "--json").json
    assert found["verified"] is True
    assert found["verdict"] == "WARN", "24 patients cannot show that nothing leaks"
    assert set(found["sites"]) == set(SITES)
    assert list(found["approvals"]) == list(OFFICERS)
    assert found["approvals"]["ada"]["enough patients"] == REASON
    shown = federation.cli("audit", "show", bundle, "--json").json
    assert shown["verdict"] == "WARN"
    page = (bundle / "audit.html").read_text()
    assert not re.search(r'(?:src|href)="(?!data:|#)', page), "the page needs the network"


def test_any_changed_byte_fails_and_its_file_is_named(
    federation: Federation, bundle: Path, tmp_path: Path
) -> None:
    """Weights that are not the audited ones, or a word put in an officer's mouth, are found."""
    own = federation.coordinator
    coordinator = Card.read(own / "coordinator.card.json").key
    officers = {
        name: Card.read(federation.folder / name / "officer.card.json").key for name in OFFICERS
    }
    sites = {s: Card.read(own / "sites" / s / "card.json").key for s in SITES}
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    verify(copy, coordinator=coordinator, officers=officers, sites=sites)
    generator = np.random.default_rng(1)
    for name in sorted(FILES):
        sound = (copy / name).read_bytes()
        drawn = generator.integers(0, len(sound), size=24)
        for place in sorted({0, len(sound) // 2, len(sound) - 1, *map(int, drawn)}):
            altered = bytearray(sound)
            altered[place] ^= 1 << int(generator.integers(0, 8))
            (copy / name).write_bytes(altered)
            with pytest.raises(VerificationError) as caught:
                verify(copy, coordinator=coordinator, officers=officers, sites=sites)
            named = Path(name).name.split(".")[0]
            assert named in caught.value.message, f"byte {place} of {name}: {caught.value.message}"
        (copy / name).write_bytes(sound)
    verify(copy, coordinator=coordinator, officers=officers, sites=sites)


def test_a_flipped_byte_ends_the_command_with_4(
    federation: Federation, bundle: Path, tmp_path: Path
) -> None:
    """The exit code that a script waits for."""
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    weights = bytearray((copy / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "weights.safetensors").write_bytes(weights)
    done = federation.cli("release", "verify", copy, *cards(federation), code=4)
    assert "weights.safetensors was changed" in done.errors
    assert done.output == ""


def test_what_leaves_in_an_audit_is_signed_and_holds_no_patient(
    federation: Federation, bundle: Path
) -> None:
    """A hospital finds its own numbers in the bundle, and nobody finds a patient."""
    report = json.loads((bundle / "audit.json").read_bytes())
    patients = {p.name for site in SITES for p in (federation.folder / f"cohort-{site}").iterdir()}
    assert len(patients) >= PATIENTS
    for told in report["sites"]:
        reply = base64.b64decode(told["reply"])
        site = Card.read(federation.coordinator / "sites" / told["site"] / "card.json")
        header, payload = messages.decode(reply, site.key)
        assert (header.counts, payload) == ("noised", b"")
        (counts,) = header.scores.values()
        assert len(counts.edges) < 2 * PATIENTS, "a bin for each patient"
        assert not [name for name in patients if name.encode() in reply]


def test_samples_say_that_they_are_synthetic_and_whence_they_come(
    federation: Federation, bundle: Path, tmp_path: Path
) -> None:
    """A volume that is found alone on a disk is not taken for a patient."""
    drawn = tmp_path / "drawn"
    federation.cli("sample", bundle, "-n", 2, "--seed", 1, "--output", drawn)
    assert (drawn / "contact_sheet.png").stat().st_size > 0
    volumes = sorted(drawn.glob("*.nii.gz"))
    assert len(volumes) == 2
    for path in volumes:
        image = nib.load(path)
        assert image.shape == (16, 16, 16)
        assert image.header.get_zooms() == pytest.approx((9.0, 9.0, 9.0))
        assert b"synthetic" in bytes(image.header["descrip"]).lower()
        assert np.isfinite(image.get_fdata()).all()
        beside = path.with_name(path.name.removesuffix(".nii.gz") + ".json").read_text()
        assert digest(bundle / "attestation.dsse.json") in beside

    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    (copy / "model.json").write_bytes((copy / "model.json").read_bytes() + b" ")
    done = federation.cli("sample", copy, "-n", 1, "--output", tmp_path / "none", code=4)
    assert "model.json was changed" in done.errors
    assert not (tmp_path / "none").exists()


def test_a_revoked_release_is_listed_and_refused(
    federation: Federation, bundle: Path, tmp_path: Path
) -> None:
    """Whoever has a copy is refused too, once the coordinator's file has reached them."""
    copy, server = tmp_path / "copy", ("--folder", federation.coordinator)
    shutil.copytree(bundle, copy)
    words = ("--reason", "a patient withdrew", *server, "--json")
    path = federation.cli("release", "revoke", bundle, *words).json["revocation"]
    try:
        done = federation.cli("release", "verify", bundle, *cards(federation), code=4)
        assert "a patient withdrew" in done.errors
        federation.cli("release", "verify", copy, *cards(federation))
        federation.cli("release", "verify", copy, *cards(federation), "--revoked", path, code=4)
        federation.cli("sample", bundle, "-n", 1, "--output", tmp_path / "none", code=4)
        (listed,) = federation.cli("release", "list", "first", *server, "--json").json["releases"]
        assert listed["decisions"] == dict.fromkeys(OFFICERS, "approve")
        assert "a patient withdrew" in listed["revoked"]
    finally:
        Path(path).unlink()
