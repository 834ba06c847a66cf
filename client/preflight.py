"""Preflight: what must hold before a study, checked half by the courier and half by the worker."""

from __future__ import annotations

from pathlib import Path

from ..study.errors import VoxfedError
from ..study.plan import StudyPlan
from .approval import all_approvals
from .check import as_json, check_cohort, check_values, unreadable_by
from .cohort import read_cohort
from .manifest import Progress
from .processes import without_network
from .site import Site, read_address

Row = dict[str, str]
LONG_HOURS = 72.0


def check_folder(
    cohort: Path, plan: StudyPlan | None = None, *, progress: Progress | None = None
) -> list[Row]:
    """Return a finding for each file that a plan would read, or for every file; see check.py."""
    modality = plan.volumes.modality if plan is not None else ""
    condition = plan.condition if plan is not None else None
    findings = check_cohort(cohort, modality, condition=condition, progress=progress)
    return as_json(findings)["files"]


def check_network(site: Site) -> list[Row]:
    """Check, with what the courier may read alone, that the coordinator can be reached."""
    from .supernode import check_coordinator

    try:
        address = read_address(site.courier)
    except VoxfedError as fault:
        return [_row("coordinator", "FAIL", fault.message, fault.hint)]
    host, _, port = address.rpartition(":")
    rows = [_row("firewall", "PASS", f"outgoing TCP to {host}, port {port}; nothing incoming", "")]
    try:
        check_coordinator(address, site.courier / "ca.pem")
    except VoxfedError as fault:
        return [*rows, _row("coordinator", "FAIL", fault.message, fault.hint)]
    return [*rows, _row("coordinator", "PASS", f"{address} answers, its certificate is ours", "")]


def check_data(
    site: Site, *, uid: int | None = None, progress: Progress | None = None
) -> tuple[list[Row], list[Row]]:
    """Check the cohort's files and one private step of each plan; return files and checks.

    Where plans wait for a decision, the files are judged as each of them would read them.
    """
    try:
        approvals = [approval for approval in all_approvals(site) if approval.state != "rejected"]
        waiting = [approval.plan for approval in approvals if approval.state == "pending"]
        files = _files(site.cohort, waiting, progress)
        head = site.ledger.verify_chain()
    except VoxfedError as fault:
        return [], [_row("site", "FAIL", fault.message, fault.hint)]
    rows = [_row("ledger", "PASS", f"{head.length} rows, chain intact", ""), _network_row()]
    if uid is not None:
        unreadable = unreadable_by(site.cohort, uid, uid)
        found = f"{len(unreadable)} unreadable by user {uid}: {', '.join(unreadable[:5])}"
        rows.append(
            _row("reading", "FAIL", found, "chmod o+r, or run the container as the owner")
            if unreadable
            else _row("reading", "PASS", f"all files readable by user {uid}", "")
        )
    rows += [_patients_row(site.cohort, plan) for plan in waiting]
    rows += [_rehearsed(site, approval.folder.name) for approval in approvals]
    return files, rows


def _files(cohort: Path, plans: list[StudyPlan], progress: Progress | None) -> list[Row]:
    """Return what each plan finds in the cohort, said once; without a plan, of every file."""
    if not plans:
        return check_folder(cohort, progress=progress)
    found = [row for plan in plans for row in check_folder(cohort, plan, progress=progress)]
    return list({(row["path"], row["reason"]): row for row in found}.values())


def _network_row() -> Row:
    """Say whether the worker will run without network."""
    if without_network():
        return _row("worker's network", "PASS", "none: a namespace of its own", "")
    remedy = "allow network namespaces, or use the container, which has network_mode: none"
    return _row("worker's network", "WARN", "this machine allows no namespaces", remedy)


def _patients_row(folder: Path, plan: StudyPlan) -> Row:
    """Say how many patients have all that a plan reads, or what is missing."""
    name = f"patients of {plan.name}"
    try:
        cohort = read_cohort(folder, plan.volumes.modality, plan.condition)
        check_values(cohort, plan.condition)
    except VoxfedError as fault:
        return _row(name, "FAIL", fault.message, fault.hint)
    reads = plan.condition.summary if plan.condition is not None else "an image"
    return _row(name, "PASS", f"{len(cohort.patients)} patients have {reads}", "")


def _rehearsed(site: Site, study: str) -> Row:
    from .approval import find
    from .rehearsal import rehearse

    try:
        measured = rehearse(find(site, study).plan, site.settings.device, site.settings.performance)
    except VoxfedError as fault:
        return _row(f"step of {study}", "FAIL", fault.message, fault.hint)
    found = (
        f"{measured.device}: {measured.seconds:.2f} s a private step, "
        f"{measured.peak_bytes / 1e9:.2f} GB at its peak, about {measured.hours:.2f} hours in all"
    )
    slow = measured.hours > LONG_HOURS
    return _row(
        f"step of {study}",
        "WARN" if slow else "PASS",
        found,
        "use a GPU, or ask for fewer steps" if slow else "",
    )


def _row(check: str, verdict: str, found: str, remedy: str) -> Row:
    return {"check": check, "verdict": verdict, "found": found, "remedy": remedy}
