"""A data-egress checker gets the audit's numbers, and the release itself, in a known layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner
from voxfed.models.registry import build as build_family
from voxfed.models.state import tensors_of, to_bytes
from voxfed.privacy import egress
from voxfed.privacy.audit.report import AuditReport
from voxfed.privacy.bundle import WEIGHTS, add_decision, bundle_digest
from voxfed.privacy.egress import RELEASE, REPORT, RESULTS, TARGET, export
from voxfed.privacy.release_commands import release_app
from voxfed.privacy.verification import verify
from voxfed.study.errors import Refusal, UsageError, VerificationError
from voxfed.study.files import digest


@pytest.fixture
def released(scene: Any, plan: Any) -> tuple[Any, Path]:
    """A release of a real VAE that an officer approved."""
    people = scene(patients=40, weights=to_bytes(tensors_of(build_family(plan(side=16)))))
    bundle = people.bundle(plan(side=16), evaluation=people.evaluation())
    add_decision(bundle, people.decide(bundle), people.cards["officers"])
    return people, bundle


def test_the_folder_holds_the_four_parts_and_still_verifies(
    released: tuple[Any, Path], tmp_path: Path
) -> None:
    """What leaves is the very release, its signatures included."""
    people, bundle = released
    folder = export(bundle, tmp_path / "egress")
    assert {path.name for path in folder.iterdir()} == {TARGET, RESULTS, REPORT, RELEASE}
    assert verify(folder / RELEASE, **people.cards)
    assert (folder / REPORT).read_bytes() == (bundle / "audit.html").read_bytes()


def test_the_target_names_the_model_by_size_and_digest(
    released: tuple[Any, Path], plan: Any, tmp_path: Path
) -> None:
    """YAML that any reader takes, and digests that match the files beside it."""
    folder = export(released[1], tmp_path / "egress")
    target = yaml.safe_load((folder / TARGET).read_text())
    weights = folder / target["model_path"]
    assert weights == folder / RELEASE / WEIGHTS
    assert target["weights_sha256"] == digest(weights)
    assert target["weights_bytes"] == weights.stat().st_size
    assert target["release_sha256"] == bundle_digest(folder / RELEASE)
    assert (target["dataset_name"], target["model_name"]) == ("trunks", "vae")
    family = build_family(plan(side=16))
    assert target["parameters"] == sum(x.numel() for x in family.state_dict().values())
    assert target["volume_shape"] == [16, 16, 16]
    assert not [key for key in target if key.endswith("_module_path")]  # SACRO-ML would run those


def test_every_number_is_that_of_the_audit(released: tuple[Any, Path], tmp_path: Path) -> None:
    """One entry for each score at each place and each likeness at each hospital; none is lost."""
    folder = export(released[1], tmp_path / "egress")
    report = AuditReport.from_text((folder / RELEASE / "audit.json").read_bytes())
    results = json.loads((folder / RESULTS).read_text())
    release = results.pop("release")
    assert release["verdict"] == report.verdict.value
    assert [x["detail"] for x in release["findings"]] == [x.detail for x in report.findings]
    assert release["weights_sha256"] == digest(folder / RELEASE / WEIGHTS)
    found = {}
    for key, entry in results.items():
        name, site = entry["metadata"]["attack_name"], entry["metadata"]["attack_params"]["site"]
        assert key == f"{name}_{entry['log_id']}"
        logger = entry.get("attack_experiment_logger", {}).get("attack_instance_logger", {})
        found[name, site] = logger.get("instance_0") or entry["metadata"]["global_metrics"]
    attacks = [*report.memberships, *report.blind]
    assert len(found) == len(results) == len(attacks) + sum(len(s.copies) for s in report.sites)
    for attack in attacks:
        numbers = found[attack.score, attack.site]
        told = [numbers[name] for name in ("AUC", "AUC_low", "AUC_high")]
        assert told == [attack.auc.value, attack.auc.low, attack.auc.high]
        assert numbers["AUC_corrected_low"] == attack.corrected.low
    for site in report.sites:
        for name, score in site.scores.items():
            numbers = found[name, site.site]
            assert numbers["n_pos_test_examples"] == sum(score.members) == 40
            assert numbers["n_neg_test_examples"] == sum(score.non_members) == 40
            assert score.rates
            for rate in score.rates:
                key = f"TPR@{rate.false_positive_rate}"
                assert (numbers[key], numbers[f"{key}_low"]) == (rate.found.value, rate.found.low)
        assert found["copies alike in voxels", site.site] == site.copies["voxels"]
    for bound in report.bounds:
        assert found[bound.score, bound.site]["epsilon_at_least"] == bound.general
    together = found[report.memberships[0].score, "all sites together"]
    assert together["n_pos_test_examples"] == 40 * len(report.sites)


def test_two_exports_are_the_same_bytes(released: tuple[Any, Path], tmp_path: Path) -> None:
    """A checker who asks again gets the same identifiers."""
    first, second = (export(released[1], tmp_path / name) for name in ("a", "b"))
    for name in (TARGET, RESULTS, REPORT):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_the_command_writes_either_layout(released: tuple[Any, Path], tmp_path: Path) -> None:
    """MONAI's stays the default."""
    words = ["export", str(released[1]), "-o"]
    sacro = CliRunner().invoke(
        release_app, [*words, str(tmp_path / "a"), "--layout", "sacro", "--json"]
    )
    assert json.loads(sacro.stdout) == {"folder": str(tmp_path / "a")}
    assert (tmp_path / "a" / TARGET).exists()
    told = CliRunner().invoke(release_app, [*words, str(tmp_path / "c"), "--layout", "sacro"])
    assert "data-egress checker" in told.stdout
    monai = CliRunner().invoke(release_app, [*words, str(tmp_path / "b")])
    assert monai.exit_code == 0, monai.output
    assert (tmp_path / "b" / "configs" / "inference.json").exists()


def test_a_blocked_a_changed_and_a_second_export_leave_nothing(
    released: tuple[Any, Path], scene: Any, plan: Any, copies: Any, tmp_path: Path
) -> None:
    """Refusals write no folder, not even a draft."""
    people, bundle = released
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        export(bundle, tmp_path / "there")
    assert not list((tmp_path / "there").iterdir())
    (bundle / "audit.html").write_bytes(b"all is well")
    with pytest.raises(VerificationError, match=r"audit\.html was changed"):
        export(bundle, tmp_path / "egress")
    bundle.rename(tmp_path / "old")
    blocked = scene(weights=people.weights, copies=copies(10, 0)).bundle(plan(side=16))
    with pytest.raises(Refusal, match="blocked this release"):
        export(blocked, tmp_path / "egress")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".", "egress"))]


def test_noised_counts_are_exported_as_they_are(scene: Any, plan: Any) -> None:
    """A report of one noised score, without copies or bounds, has its entries too."""
    report = scene().report(plan(counts="noised"))
    results = egress.attack_results(report, "ab" * 32)
    assert len(results) == len(report.memberships) + 1
    assert {
        x["metadata"]["attack_params"]["counts"] for x in results.values() if "log_id" in x
    } == {"noised"}
