"""A release as a folder that data-egress checkers know: the layout of SACRO-ML's attack reports.

    target.yaml           what is to leave: the model, its sizes and digests
    attack_results.json   what each attack found at each hospital, the copies, and the verdict
    report.html           the page of the audit
    release_dir/          the release bundle, untouched, so that its signatures can be checked

Keys are SACRO-ML's where they mean the same (AUC, TPR@0.1, n_pos_test_examples and the like); each
score at each hospital is an attack with one instance. Left out is what needs single patients'
scores, which never leave a hospital: TPR, FPR, ACC and their kin at one threshold, Advantage, the
FDIF family, TPR at rates that so few patients cannot support, and the points of the ROC curve.
Instead of P_HIGHER_AUC stand the ends of the interval, `AUC_low` and `AUC_high`, and of that which
is corrected for the number of attacks. Left out of target.yaml are training data and every path to
code: there is nothing in it that SACRO-ML's `Target.load` would run.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from .. import __version__
from ..models.base import Family
from ..models.state import tensors_of
from ..study.files import new_folder, write
from ..study.plan import StudyPlan
from .audit.report import AuditReport
from .audit.statistics import Interval
from .bundle import PAGE, WEIGHTS, bundle_digest, read_report
from .evidence import TOGETHER, Membership
from .samples import open_model

TARGET, RESULTS, REPORT, RELEASE = (
    "target.yaml",
    "attack_results.json",
    "report.html",
    "release_dir",
)


def export(bundle: Path, folder: Path) -> Path:
    """Writes a release in SACRO-ML's layout, whole or not at all, and returns its folder.

    Raises:
        VerificationError: a file of the release was changed, or it was revoked.
        Refusal: its audit blocked it.
        UsageError: the folder exists.
        DiskError: it cannot be written.
    """
    plan, family = open_model(bundle)
    report, digest = read_report(bundle), bundle_digest(bundle)
    size = (bundle / WEIGHTS).stat().st_size
    target = _target(plan, family, report, size, digest)
    lines = [f"{key}: {json.dumps(value)}\n" for key, value in target.items()]  # JSON is YAML
    results = json.dumps(attack_results(report, digest), indent=1, sort_keys=True)
    with new_folder(folder) as draft:
        write(draft / TARGET, "".join(lines).encode())
        write(draft / RESULTS, results.encode() + b"\n")
        shutil.copytree(bundle, draft / RELEASE)
        shutil.copyfile(bundle / PAGE, draft / REPORT)
    return folder


def attack_results(report: AuditReport, digest: str) -> dict[str, Any]:
    """Returns the attacks by name and log_id, the copies and the release's verdict.

    Args:
        report: the audit, from which every number is taken as it stands.
        digest: SHA-256 of the release, from which each log_id follows.
    """
    found: dict[str, Any] = {}
    for membership in (*report.memberships, *report.blind):
        entry = _entry(report, digest, membership.score, membership.site)
        instances = {"instance_0": _instance(report, membership)}
        entry["attack_experiment_logger"] = {"attack_instance_logger": instances}
        found[f"{membership.score}_{entry['log_id']}"] = entry
    for site in report.sites:
        for likeness, counts in site.copies.items():
            name = f"copies alike in {likeness}"
            entry = _entry(report, digest, name, site.site)
            entry["metadata"]["global_metrics"] = dict(counts)
            found[f"{name}_{entry['log_id']}"] = entry
    found["release"] = {
        "verdict": report.verdict.value,
        "findings": [asdict(finding) for finding in report.findings],
        "epsilon": report.epsilon,
        "delta": report.delta,
        "not_covered": list(report.not_covered),
        "not_tested": list(report.not_tested),
        "weights_sha256": report.weights_digest,
        "plan_sha256": report.plan_digest,
        "release_sha256": digest,
    }
    return found


def _target(
    plan: StudyPlan, family: Family, report: AuditReport, size: int, digest: str
) -> dict[str, Any]:
    """Returns what target.yaml says; a model_type that SACRO-ML does not know, so never loads."""
    return {
        "dataset_name": plan.name,
        "features": {},
        "safemodel": [],
        "model_type": "voxfed",
        "model_name": plan.family,
        "model_params": plan.settings,
        "model_path": f"{RELEASE}/{WEIGHTS}",
        "train_params": {"rounds": plan.rounds, "local_steps": plan.local_steps},
        "epsilon": report.epsilon,
        "delta": report.delta,
        "volume_shape": list(plan.volumes.shape),
        "volume_spacing_mm": list(plan.volumes.spacing),
        "parameters": sum(tensor.numel() for tensor in tensors_of(family).values()),
        "weights_bytes": size,
        "weights_sha256": report.weights_digest,
        "plan_sha256": report.plan_digest,
        "release_sha256": digest,
        "voxfed_version": __version__,
    }


def _entry(report: AuditReport, digest: str, name: str, site: str) -> dict[str, Any]:
    """Returns an attack's entry without its numbers."""
    return {
        "log_id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{digest}/{name}/{site}")),
        "log_time": datetime.fromisoformat(report.created).strftime("%d/%m/%Y %H:%M:%S"),
        "metadata": {
            "voxfed_version": report.versions.get("voxfed", ""),
            "attack_name": name,
            "attack_params": {"site": site, "counts": report.counts},
            "target_model": report.family,
            "global_metrics": {},
        },
    }


def _instance(report: AuditReport, membership: Membership) -> dict[str, Any]:
    """Returns one attack's numbers at one place; at all hospitals together, each within its own."""
    name, place = membership.score, membership.site
    sites = [site for site in report.sites if place in (site.site, TOGETHER)]
    scores = [site.scores[name] for site in sites if name in site.scores]
    numbers: dict[str, Any] = {
        "n_pos_test_examples": sum(sum(score.members) for score in scores),
        "n_neg_test_examples": sum(sum(score.non_members) for score in scores),
        **_with_interval("AUC", membership.auc),
        "AUC_corrected_low": membership.corrected.low,
        "AUC_corrected_high": membership.corrected.high,
    }
    if place != TOGETHER:
        for rate in scores[0].rates:
            numbers |= _with_interval(f"TPR@{rate.false_positive_rate}", rate.found)
    for bound in report.bounds:
        if (bound.place, bound.score) == (place, name):
            numbers |= {"epsilon_at_least": bound.general, "epsilon_most_provable": bound.cap}
    return numbers


def _with_interval(name: str, interval: Interval) -> Mapping[str, float]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
