"""A bundle is written whole or not at all."""

import json
from pathlib import Path
from typing import Any

import pytest
from voxfed.privacy.bundle import CONTENT, add_decision, build, bundle_digest, read_report
from voxfed.privacy.decision import ATTESTATION
from voxfed.study.errors import UsageError, VerificationError


def test_bundle_holds_what_the_design_names(scene: Any, plan: Any) -> None:
    people = scene()
    report = people.report(plan())
    bundle = people.bundle(plan(), report=report)
    assert {path.name for path in bundle.iterdir()} == {*CONTENT, ATTESTATION}
    assert read_report(bundle) == report
    assert json.loads((bundle / "model.json").read_bytes())["family"] == "vae"


def test_report_on_other_weights_leaves_nothing_behind(scene: Any, plan: Any) -> None:
    people = scene()
    folder = people.folder / "releases"
    with pytest.raises(VerificationError, match="weights"):
        build(
            folder / "1",
            weights=b"swapped after the audit",
            model={},
            report=people.report(plan()),
            html="",
            card="",
            key=people.keys["coordinator"],
            extra={},
        )
    assert list(folder.iterdir()) == []


def test_a_release_is_never_overwritten(scene: Any, plan: Any) -> None:
    people = scene()
    bundle = people.bundle(plan())
    before = bundle_digest(bundle)
    with pytest.raises(UsageError, match="exists already"):
        people.bundle(plan())
    assert bundle_digest(bundle) == before


def test_decisions_of_enrolled_officers_only_are_added_once(scene: Any, plan: Any) -> None:
    people = scene()
    bundle = people.bundle(plan())
    officers = people.cards["officers"]
    envelope = people.decide(bundle)
    assert add_decision(bundle, envelope, officers).officer == "officer"
    with pytest.raises(UsageError, match="decided already"):
        add_decision(bundle, envelope, officers)
    with pytest.raises(VerificationError, match="not signed by an enrolled officer"):
        add_decision(bundle, people.decide(bundle, officer="second"), {"x": officers["officer"]})
    with pytest.raises(VerificationError, match="not signed"):
        add_decision(bundle, b"garbage", officers)
    names = [path.name for path in (bundle / "decisions").iterdir()]
    assert names == ["officer.dsse.json"]


def test_a_folder_that_is_no_bundle_is_named(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="not a release bundle"):
        bundle_digest(tmp_path)
