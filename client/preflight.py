"""Preflight: what must hold before a study, checked half by the courier and half by the worker."""

from __future__ import annotations

from pathlib import Path

from ..study.errors import VoxfedError
from .approval import all_approvals
from .check import as_json, check_cohort, unreadable_by
from .manifest import Progress
from .processes import without_network
from .site import Site, read_address

Row = dict[str, str]
LONG_HOURS = 72.0


def check_folder(
    cohort: Path, modality: str = "", *, progress: Progress | None = None
) -> list[Row]:
    """Return a finding for each file of a cohort; see client/check.py."""
    return as_json(check_cohort(cohort, modality, progress=progress))["files"]


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
    """Check the cohort's files and one private step of each plan; return files and checks."""
    try:
        files = check_folder(site.cohort, progress=progress)
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
    for approval in all_approvals(site):
        if approval.state != "rejected":
            rows.append(_rehearsed(site, approval.folder.name))
    return files, rows


def _network_row() -> Row:
    """Say whether the worker will run without network."""
    if without_network():
        return _row("worker's network", "PASS", "none: a namespace of its own", "")
    remedy = "allow network namespaces, or use the container, which has network_mode: none"
    return _row("worker's network", "WARN", "this machine allows no namespaces", remedy)


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
