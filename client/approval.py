"""Approval: a plan that was offered, and what the operator decided about it."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from ..privacy.terms import Terms, agree, declared_size, terms_with
from ..study.errors import LimitRefusal, Refusal, VerificationError, VolumeError, VoxfedError
from ..study.files import write
from ..study.identity import canonical
from ..study.plan import StudyPlan, safe_name
from ..study.schedule import Schedule
from .alignment import align, preprocess_beside
from .check import check_cohort, check_values
from .cohort import Cohort, read_cohort
from .finding import Verdict, shown
from .manifest import Manifest, Progress, freeze
from .site import Site
from .volumes import preprocess

State = Literal["pending", "approved", "rejected"]


@dataclass(frozen=True)
class Approval:
    """One study's folder in the site's approvals."""

    folder: Path

    @property
    def plan(self) -> StudyPlan:
        """The plan as it was offered; its signature was checked when it came."""
        return StudyPlan.read(self.folder / "plan.toml")

    @property
    def state(self) -> State:
        """What the operator decided."""
        return cast(State, self._decision().get("decision", "pending"))

    @property
    def reason(self) -> str:
        """Why the operator rejected the plan; the operator chose to send it."""
        return str(self._decision().get("reason", ""))

    @property
    def declared(self) -> int:
        """The declared size, frozen at approval."""
        return int(str(self._decision().get("declared", 0)))

    @property
    def plan_digest(self) -> str:
        """SHA-256 of the plan that the decision is about."""
        return str(self._decision().get("plan", ""))

    @property
    def terms(self) -> Terms:
        """The constants of the study at this site, fixed at approval by plan and declared size."""
        decision = self._decision()
        schedule = Schedule.read(cast(list[list[object]], decision["schedule"]))
        return terms_with(self.plan, self.declared, float(str(decision["sigma"])), schedule)

    @property
    def manifest(self) -> Manifest:
        """The frozen cohort."""
        return Manifest.read(self.folder / "manifest.json")

    def decide(self, **facts: object) -> None:
        """Write the decision; this is the last write of an approval."""
        write(self._decided, canonical(facts), mode=0o600)

    @property
    def _decided(self) -> Path:
        return self.folder / "decision.json"

    def _decision(self) -> dict[str, object]:
        try:
            decision = json.loads(self._decided.read_bytes())
        except OSError:
            return {}
        except ValueError:
            raise VerificationError(f"{self._decided} is garbled", hint="restore it") from None
        return decision if isinstance(decision, dict) else {}


def all_approvals(site: Site) -> list[Approval]:
    """Return every plan that was offered to the site, by name."""
    return [Approval(path.parent) for path in sorted(site.approvals.glob("*/plan.toml"))]


def find(site: Site, study: str) -> Approval:
    """Return the approval of `study`; raise Refusal where no such plan was offered."""
    approval = Approval(site.approvals / safe_name(study, what="the study"))
    if not (approval.folder / "plan.toml").exists():
        offered = ", ".join(a.folder.name for a in all_approvals(site)) or "none"
        raise Refusal(
            f"no plan named {study} was offered", got=study, expected=f"one of: {offered}"
        )
    return approval


def receive(site: Site, study: str, text: bytes, envelope: bytes) -> Approval:
    """Keep an offered plan with its signature; another plan under a known name is refused.

    Raises:
        Refusal: the name stands for another plan.
        PlanError: the plan is wrong.
    """
    plan = StudyPlan.from_text(text)
    if plan.name != study:
        raise Refusal("the offer names another study", got=plan.name, expected=study)
    approval = Approval(site.approvals / study)
    kept = approval.folder / "plan.toml"
    if kept.exists() and kept.read_bytes() == text:
        return approval  # without the lock, which an approval may hold for as long as it hashes
    with deciding(approval):
        if not kept.exists():
            write(approval.folder / "offer.msg", envelope, mode=0o600)
            write(kept, text, mode=0o600)
        elif kept.read_bytes() != text:
            raise Refusal(
                f"study {study} was offered under another plan",
                hint="offer it under a new name: what an operator reads must be what is approved",
            )
    return approval


@contextmanager
def deciding(approval: Approval) -> Iterator[None]:
    """Hold the approval's lock, so that no two processes decide or receive at once (flock(2))."""
    approval.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (approval.folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def check_limits(site: Site, plan: StudyPlan, terms: Terms) -> None:
    """Raise LimitRefusal, with both numbers, where the plan asks for more than the site allows."""
    limits = site.settings.limits
    _require(
        plan.family in limits.families,
        "the site does not allow this family",
        plan.family,
        ", ".join(limits.families),
    )
    if not plan.privacy.enabled:
        _require(
            limits.without_privacy,
            "the site does not allow training without privacy",
            "privacy.enabled = false",
            "true",
        )
        return
    _require(
        plan.privacy.epsilon <= limits.lifetime_epsilon,
        "the plan asks for more epsilon than the site's lifetime limit",
        plan.privacy.epsilon,
        f"at most {limits.lifetime_epsilon}",
    )
    _require(
        plan.privacy.delta <= limits.delta,
        "the plan's delta is looser than the site's",
        plan.privacy.delta,
        f"at most {limits.delta}",
    )
    _require(
        terms.sigma >= limits.least_noise,
        "the plan's noise multiplier is below the site's least",
        f"{terms.sigma:.3f}",
        f"at least {limits.least_noise}",
    )


def approve(site: Site, study: str, progress: Progress | None = None) -> Approval:
    """Freeze the cohort, reserve the study's whole budget, and write the approval down.

    Raises:
        Refusal: limits, budget, a file that may not be used, a patient without the class or
            attributes of the plan, or a cohort too small; nothing is written then.
    """
    approval = find(site, study)
    with deciding(approval):
        if approval.state == "rejected":
            raise Refusal(
                f"study {study} was rejected", hint="ask the coordinator to offer it anew, renamed"
            )
        if approval.state == "pending":
            _freeze_and_reserve(site, approval, progress)
    return approval


def _freeze_and_reserve(site: Site, approval: Approval, progress: Progress | None) -> None:
    """Approve under the lock; whatever a crash leaves undone is taken up by the next approval."""
    from .training import choose_device

    plan = approval.plan
    frozen = approval.folder / "manifest.json"
    if frozen.exists():
        patients = len(approval.manifest.patients)
    else:
        cohort = read_cohort(site.cohort, plan.volumes.modality, plan.condition)
        patients = len(cohort.patients)
    if site.settings.device == "cuda":
        choose_device("cuda")
    terms = agree(plan, declared_size(patients))
    check_limits(site, plan, terms)
    if not frozen.exists():
        check_values(cohort, plan.condition)
        _check_files(site, plan)
        _read_all(plan, cohort, progress)
        manifest = freeze(
            cohort,
            plan.volumes.modality,
            plan.audit_fraction,
            progress,
            condition=plan.condition,
            canaries=plan.privacy.canaries,
        )
        write(frozen, manifest.model_dump_json().encode(), mode=0o600)
    try:
        site.ledger.reserve(plan.name, plan.digest, terms.whole, delta=plan.privacy.delta)
    except Refusal:
        frozen.unlink()
        raise
    approval.decide(
        decision="approved",
        plan=plan.digest,
        declared=terms.declared,
        sigma=terms.sigma,
        schedule=terms.schedule.written,
    )
    site.journal.append("approved", study=plan.name, plan=plan.digest, declared=terms.declared)


def reject(site: Site, study: str, reason: str) -> None:
    """Say no to a plan; the reason is sent to the coordinator.

    Raises:
        Refusal: the plan was approved already.
    """
    approval = find(site, study)
    with deciding(approval):
        if approval.state == "approved":
            raise Refusal(
                f"study {study} was approved already",
                hint="stop the worker to take no further part",
            )
        approval.decide(decision="rejected", plan=approval.plan.digest, reason=reason)
    site.journal.append("rejected", study=study, plan=approval.plan.digest)


def _check_files(site: Site, plan: StudyPlan) -> None:
    findings = check_cohort(site.cohort, plan.volumes.modality, condition=plan.condition)
    failed = [finding for finding in findings if finding.verdict is Verdict.FAIL]
    if failed:
        raise Refusal(
            f"{len(failed)} files of the cohort cannot be used",
            got=f"{failed[0].path}: {failed[0].reason}",
            expected="no FAIL in `voxfed site check`",
            hint=f"{failed[0].remedy}; `voxfed site check` lists them all",
        )


def _read_all(plan: StudyPlan, cohort: Cohort, progress: Progress | None) -> None:
    """Read every image as training will: a fault that is found later would cost budget."""
    for done, images in enumerate(cohort.patients.values(), start=1):
        for image in images:
            other = image.beside(plan.condition)
            try:
                if plan.condition is None or other is None:
                    preprocess(image.path, plan.volumes)
                else:
                    preprocess_beside(image.path, other, plan.volumes, plan.condition)
                    align(other, plan.volumes, plan.condition)
            except VolumeError as fault:
                raise Refusal(
                    f"{shown(image.path, cohort.folder)} cannot be used in this study",
                    got=fault.message,
                    hint=fault.hint,
                ) from None
        if progress is not None:
            progress(done, len(cohort.patients))


def _require(holds: bool, what: str, got: object, expected: object) -> None:
    if not holds:
        error: VoxfedError = LimitRefusal(
            what, got=got, expected=expected, hint="ask the coordinator for a stricter plan"
        )
        raise error
