"""The release bundle: weights with all that speaks for or against letting them out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..study.errors import UsageError, VerificationError
from ..study.files import digest, new_folder, write
from ..study.identity import PublicKey, SigningKey, sign_envelope, statement
from .audit.report import AuditReport
from .decision import ATTESTATION, Decision, read_decision

RELEASE_TYPE = "https://voxfed.org/release/v1"
WEIGHTS, MODEL, CARD = "weights.safetensors", "model.json", "MODEL_CARD.md"
REPORT, PAGE = "audit.json", "audit.html"
EVALUATION = "evaluation.json"
"""There only where the weights were evaluated."""
CONTENT = (WEIGHTS, MODEL, CARD, REPORT, PAGE)
DECISIONS, SUFFIX = "decisions", ".dsse.json"


def build(
    folder: Path,
    *,
    weights: bytes,
    model: Mapping[str, Any],
    report: AuditReport,
    html: str,
    card: str,
    evaluation: bytes | None = None,
    key: SigningKey,
    extra: Mapping[str, Any],
) -> Path:
    """Writes a bundle to `folder`, whole or not at all, signed by the coordinator; returns it.

    Args:
        folder: the bundle's folder, which must not exist.
        weights: the safetensors file that was audited.
        model: the family's name and specification.
        report: the audit of these very weights.
        html: the officer's page.
        card: the model card.
        evaluation: the report of `voxfed evaluate` on these weights, if there is one.
        key: the coordinator's key.
        extra: what else the attestation states, such as journal heads and software versions.

    Raises:
        UsageError: the folder exists.
        VerificationError: the report is about other weights.
        DiskError: the folder cannot be written.
    """
    content = {
        WEIGHTS: weights,
        MODEL: json.dumps(dict(model), indent=1, sort_keys=True).encode() + b"\n",
        CARD: card.encode(),
        REPORT: report.text,
        PAGE: html.encode(),
    } | ({} if evaluation is None else {EVALUATION: evaluation})
    with new_folder(folder) as draft:
        for name, text in content.items():
            write(draft / name, text)
        subjects = {name: digest(draft / name) for name in content}
        check_same("the report's weights", report.weights_digest, subjects[WEIGHTS])
        predicate = {**claims_of(report), "extra": dict(extra)}
        write(draft / ATTESTATION, sign_envelope(statement(subjects, RELEASE_TYPE, predicate), key))
    return folder


def bundle_digest(bundle: Path) -> str:
    """Returns the SHA-256 of the attestation, which binds every other file.

    Raises:
        VerificationError: there is none.
    """
    if not (bundle / ATTESTATION).is_file():
        raise VerificationError(
            f"{bundle} is not a release bundle", expected=f"a folder with {ATTESTATION}"
        )
    return digest(bundle / ATTESTATION)


def read_report(bundle: Path) -> AuditReport:
    """Returns the report in a bundle without checking any signature, to be looked at."""
    bundle_digest(bundle)
    return AuditReport.from_text(content_of(bundle / REPORT))


def add_decision(bundle: Path, envelope: bytes, officers: Mapping[str, PublicKey]) -> Decision:
    """Puts an officer's detached decision into the bundle and returns it.

    Raises:
        VerificationError: no officer given signed it, or it is about another release.
        UsageError: this officer decided already.
    """
    for name, key in officers.items():
        try:
            decision = decision_of(bundle, envelope, name, key)
        except VerificationError:
            continue
        path = bundle / DECISIONS / f"{name}{SUFFIX}"
        if path.exists():
            raise UsageError(f"{name} decided already", hint="a decision is never overwritten")
        write(path, envelope)
        return decision
    raise VerificationError(
        "the decision is not signed by an enrolled officer, or is about another release",
        expected=", ".join(officers) or "an officer",
        hint="enrol the officer's card, and ask for a decision on this very bundle",
    )


def claims_of(report: AuditReport) -> dict[str, Any]:
    """Returns what the attestation states of the report."""
    return {
        "study": report.study,
        "plan_digest": report.plan_digest,
        "weights_digest": report.weights_digest,
        "verdict": report.verdict.value,
        "epsilon": report.epsilon,
        "delta": report.delta,
        "findings": [[finding.rule, finding.verdict.value] for finding in report.findings],
    }


def decision_of(bundle: Path, envelope: bytes, name: str, key: PublicKey) -> Decision:
    """Returns the decision on this bundle in `envelope`.

    Raises:
        VerificationError: officer `name` did not sign it, or it is about another release.
    """
    what = f"the decision of {name}"
    decision = read_decision(envelope, key, bundle_digest(bundle), what=what)
    check_same(f"{what}: the officer", decision.officer, name)
    return decision


def check_same(what: str, got: object, expected: object) -> None:
    """Raises VerificationError where `got` is not what was expected."""
    if got != expected:
        raise VerificationError(f"{what} is another", got=got, expected=expected)


def content_of(path: Path) -> bytes:
    """Returns a file's bytes; raises VerificationError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as fault:
        raise VerificationError(f"{path.name} cannot be read: {fault.strerror}") from None
