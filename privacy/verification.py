"""Verification: what the public keys alone establish about a release bundle, offline."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..study.errors import PlanError, VerificationError
from ..study.files import digest
from ..study.identity import PublicKey
from ..study.plan import ReleaseRules, StudyPlan
from ..study.record import RoundRecord
from .audit.answer import read_request
from .audit.report import AuditReport, build_report
from .bundle import (
    CONTENT,
    DECISIONS,
    EVALUATION,
    RELEASE_TYPE,
    REPORT,
    SUFFIX,
    WEIGHTS,
    bundle_digest,
    check_same,
    claims_of,
    content_of,
    decision_of,
    read_report,
)
from .decision import ATTESTATION, open_statement, warnings_of
from .finding import Verdict
from .quality import Quality
from .revocation import REVOCATION, check_not_revoked


@dataclass(frozen=True)
class Verification:
    """What `verify` established.

    Attributes:
        study: the study's name.
        verdict: PASS or WARN.
        weights_digest: SHA-256 of the weights.
        digest: SHA-256 of the attestation, which stands for the whole release.
        epsilon: the most that any site spent, or None without privacy.
        delta: the plan's delta.
        approvals: each officer who approved, with the reason given for each warning.
        sites: the hospitals whose signed replies were checked.
    """

    study: str
    verdict: Verdict
    weights_digest: str
    digest: str
    epsilon: float | None
    delta: float
    approvals: dict[str, dict[str, str]]
    sites: tuple[str, ...]


def verify(
    bundle: Path,
    *,
    coordinator: PublicKey,
    officers: Mapping[str, PublicKey],
    sites: Mapping[str, PublicKey],
    revocations: Mapping[str, bytes] = MappingProxyType({}),
) -> Verification:
    """Checks a bundle with nothing but the public keys.

    In this order: all that `examine` does; whether it was revoked; the verdict; the officers'
    signed decisions, their number and hospitals. The page and the model card are compared with
    nothing but their digests.

    Args:
        bundle: its folder.
        coordinator: the coordinator's key.
        officers: the officers' keys by name.
        sites: the hospitals' keys by name.
        revocations: envelopes, by the name of their file, that came another way than the bundle.

    Raises:
        VerificationError: naming the first thing that is wrong.
    """
    report = examine(bundle, coordinator=coordinator, sites=sites)
    known = dict(revocations)
    if (bundle / REVOCATION).exists():
        known[REVOCATION] = content_of(bundle / REVOCATION)
    check_not_revoked(bundle_digest(bundle), known, coordinator)
    if report.verdict.closes:
        raise VerificationError(
            f"the audit does not let this release go: {report.findings[0].detail}",
            got=report.verdict.value,
            hint="do not use these weights",
        )
    return Verification(
        study=report.study,
        verdict=report.verdict,
        weights_digest=report.weights_digest,
        digest=bundle_digest(bundle),
        epsilon=report.epsilon,
        delta=report.delta,
        approvals=_approvals(bundle, officers, report),
        sites=tuple(site.site for site in report.sites),
    )


def examine(bundle: Path, *, coordinator: PublicKey, sites: Mapping[str, PublicKey]) -> AuditReport:
    """Checks all that stands before the officers' decisions, and returns the report.

    In this order: the files that there are; the coordinator's signature; each file's digest; each
    hospital's signed reply; report and verdict, built again from plan and replies; that no more
    hospitals trained these weights than the report names; the figures of quality that hospitals
    signed, where there is an evaluation. The report's words are those of this software, not those
    in the bundle.

    Raises:
        VerificationError: naming the first thing that is wrong.
    """
    _check_names(bundle)
    envelope = content_of(bundle / ATTESTATION)
    subjects, claims = open_statement(envelope, coordinator, RELEASE_TYPE, what=ATTESTATION)
    _check_digests(bundle, subjects)
    report = AuditReport.from_text(content_of(bundle / REPORT), what=REPORT)
    check_same("the report's weights", report.weights_digest, subjects[WEIGHTS])
    rebuilt = build_report(
        _plan(report),
        report.answers(sites),
        weights_digest=subjects[WEIGHTS],
        absent=report.absent,
        versions=report.versions,
    )
    _check_alike(report.facts, rebuilt.facts, REPORT)
    for name, claim in claims_of(rebuilt).items():
        _check_alike(claims.get(name), claim, f"{ATTESTATION}: {name}")
    _check_nobody_left_out(rebuilt, coordinator)
    if EVALUATION in subjects:
        Quality.from_text(content_of(bundle / EVALUATION)).check(subjects[WEIGHTS], sites)
    return rebuilt.model_copy(update={"created": report.created})


def check_whole(bundle: Path) -> AuditReport:
    """Checks only that the files are those the attestation lists, whoever signed it.

    Raises:
        VerificationError: naming the first file that is not, or saying that it was revoked.
    """
    _check_names(bundle)
    try:
        payload = base64.b64decode(json.loads(content_of(bundle / ATTESTATION))["payload"])
        subjects = {s["name"]: s["digest"]["sha256"] for s in json.loads(payload)["subject"]}
    except (ValueError, KeyError, TypeError):
        raise VerificationError(f"{ATTESTATION} is not a signed statement") from None
    _check_digests(bundle, subjects)
    if (bundle / REVOCATION).exists():
        raise VerificationError(
            "this release was revoked",
            hint="ask the coordinator; `voxfed release verify` says when and why",
        )
    return read_report(bundle)


def _check_nobody_left_out(report: AuditReport, coordinator: PublicKey) -> None:
    """Compare the hospitals in the report with the replies in the lineage that each was shown.

    A hospital refuses a lineage that leaves out its own reply, so that a coordinator who drops one
    must have signed two records of the same round.
    """
    named = len(report.sites) + len(report.absent)
    for site in report.sites:
        lineage = read_request(base64.b64decode(site.request)).lineage.encode()
        record = RoundRecord.open(lineage, coordinator)
        check_same(
            f"the weights of the lineage shown to {site.site}",
            record.weights_digest,
            report.weights_digest,
        )
        if len(record.replies) > named:
            raise VerificationError(
                "hospitals that trained these weights are missing from the report",
                got=f"{named} hospitals",
                expected=f"{len(record.replies)}, as the record of the round says",
                hint="do not use this bundle; ask the coordinator whose answer was left out",
            )


def _check_digests(bundle: Path, subjects: Mapping[str, str]) -> None:
    _check_there(bundle, [name for name in subjects if name == EVALUATION])
    names = _names(bundle)
    check_same("the list of files", sorted(subjects), sorted(names))
    for name in names:
        found = digest(bundle / name)
        if found != subjects[name]:
            raise VerificationError(
                f"{name} was changed",
                got=f"sha256 {found}",
                expected=subjects[name],
                hint="do not use this bundle; ask the coordinator for it again",
            )


def _names(bundle: Path) -> tuple[str, ...]:
    """Returns the files that the attestation must list; an evaluation is one where there is one."""
    return (*CONTENT, EVALUATION) if (bundle / EVALUATION).exists() else CONTENT


def _check_names(bundle: Path) -> None:
    """Checks that every file belongs in a bundle and that none is missing."""
    bundle_digest(bundle)
    known = (*_names(bundle), ATTESTATION, REVOCATION)
    for path in sorted(bundle.rglob("*")):
        name = path.relative_to(bundle).as_posix()
        decision = name.startswith(f"{DECISIONS}/") and name.endswith(SUFFIX)
        if path.is_symlink():
            raise VerificationError(f"{name} is a link", expected="a file")
        if path.is_dir() and name == DECISIONS:
            continue
        if not path.is_file() or not (decision or name in known):
            raise VerificationError(f"{name} does not belong in a bundle", hint="remove it")
    _check_there(bundle, CONTENT)


def _check_there(bundle: Path, names: Iterable[str]) -> None:
    for name in names:
        if not (bundle / name).is_file():
            raise VerificationError(f"{name} is missing from the bundle")


def _approvals(
    bundle: Path, officers: Mapping[str, PublicKey], report: AuditReport
) -> dict[str, dict[str, str]]:
    rules = _plan(report).release
    approved: dict[str, dict[str, str]] = {}
    keys, hospitals = set(), set()
    for path in sorted((bundle / DECISIONS).glob("*")):
        name = path.name.removesuffix(SUFFIX)
        if name not in officers:
            raise VerificationError(
                f"{DECISIONS} holds the word of an unknown officer",
                got=name,
                expected=", ".join(officers) or "an officer's card",
                hint="name the officer's card with --card",
            )
        decision = decision_of(bundle, content_of(path), name, officers[name])
        if decision.decision == "reject":
            raise VerificationError(f"{name} rejected this release: {decision.reason}")
        check_same(
            f"{name}: the warnings that are given a reason",
            sorted(decision.reasons),
            sorted(warnings_of(report.findings)),
        )
        if blank := sorted(rule for rule, reason in decision.reasons.items() if not reason.strip()):
            raise VerificationError(f"{name} gave no reason", got=", ".join(blank))
        if rules.named:
            _check_named(name, officers[name], rules)
            hospitals.add(rules.named[name].hospital)
        approved[name] = decision.reasons
        keys.add(officers[name])
    if len(keys) < rules.officers:
        raise VerificationError(
            "too few officers approved",
            got=len(keys),
            expected=rules.officers,
            hint="ask an officer for `voxfed release approve` and add the signature",
        )
    if missing := sorted(set(rules.hospitals) - hospitals):
        raise VerificationError(
            "a hospital whose officer must approve is missing",
            got=", ".join(sorted(hospitals)) or "none",
            expected=", ".join(missing),
        )
    return approved


def _check_named(name: str, key: PublicKey, rules: ReleaseRules) -> None:
    """Refuse an officer whom the plan that all sites approved does not name with this key."""
    if name not in rules.named:
        raise VerificationError(
            "the plan does not name an officer who decided",
            got=name,
            expected=", ".join(rules.named),
        )
    check_same(f"the key of {name} in the plan", key.text, rules.named[name].key)


def _plan(report: AuditReport) -> StudyPlan:
    try:
        return StudyPlan.from_text(report.plan.encode(), file="the plan in audit.json")
    except PlanError as fault:
        raise VerificationError(fault.message) from None


def _check_alike(got: Any, expected: Any, where: str) -> None:
    """Compares two documents; numbers may differ by the rounding of another machine."""
    if isinstance(got, dict) and isinstance(expected, dict) and got.keys() == expected.keys():
        for key in got:
            _check_alike(got[key], expected[key], f"{where}: {key}")
    elif isinstance(got, list) and isinstance(expected, list) and len(got) == len(expected):
        for i, (one, other) in enumerate(zip(got, expected, strict=True)):
            _check_alike(one, other, f"{where}: {i}")
    elif isinstance(got, float) and isinstance(expected, float):
        if not math.isclose(got, expected, rel_tol=1e-9, abs_tol=1e-9):
            raise VerificationError(f"{where} does not follow", got=got, expected=expected)
    elif got != expected:
        raise VerificationError(
            f"{where} does not follow from the signed replies",
            got=str(got)[:80],
            expected=str(expected)[:80],
        )
