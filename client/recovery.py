"""Recovery at a site: what the folder still knows of the rows that an old copy lost."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..privacy.accounting import Event
from ..privacy.budget import Account, read_accounts, reservation, write_events
from ..privacy.chain import Chain, Head, Row, head_of
from ..privacy.ledger import RoundKey
from ..privacy.recovery import (
    Entry,
    Recovery,
    accounts_for,
    as_rows,
    rows_after,
    settlement,
    worst_case,
)
from ..privacy.terms import Terms
from ..study.errors import UsageError, VerificationError
from .approval import Approval, all_approvals
from .site import Site

REPLAYED = "an old copy was put back; the journal, as new as the coordinator's head, named these"
WORST = "an old copy was put back; what the missing rows charged is not known"


@dataclass(frozen=True)
class Memory:
    """What journal and outbox remember that no recovery in the ledger has settled.

    Attributes:
        charged: request and reply digest of each journaled round.
        answered: rounds whose reply lies in the outbox; a crash may have kept them unjournaled.
        approved: studies that were approved.
        closed: studies that were closed.
        recoveries: how many recoveries the whole journal names.
        head: digest of the journal's last line.
    """

    charged: dict[RoundKey, tuple[str, str]]
    answered: frozenset[RoundKey]
    approved: frozenset[str]
    closed: frozenset[str]
    recoveries: int
    head: str


def prepare(site: Site, copy: Path | None = None, *, all_known: bool = False) -> Recovery:
    """Return what `site ledger recover` would append; write nothing.

    Rows of a newer copy are taken over. Where they lack what the coordinator's head or the journal
    names, and the journal reaches that head, its charges are repeated with their digests.
    Otherwise each approved study is charged in full, and the lifetime to its cap unless
    `all_known`.

    Guarantee:
        Whatever the site released before, the charges afterwards cover it.
    Assumes:
        The coordinator's head is the last that it received; without one, the journal is as it was
        last written. Journal, outbox and approvals were put back together with each other, if at
        all. With `all_known`, that no study was approved here that neither ledger nor approvals
        hold.

    Raises:
        UsageError: the copy is not there.
        VerificationError: the copy's chain does not hold, or does not continue the ledger; or
            the journal's does not hold, and nothing else says whether rows are missing.
    """
    held, echo = site.ledger.rows(), site.ledger.refused_echo()
    copied = rows_after(held, _read(copy)) if copy is not None else ()
    rows = [*held, *copied]
    lost, memory = _unreserved(site, rows), _memory(site, rows)
    if not lost and (echo is None or accounts_for(rows, echo)):
        if memory is None and echo is None and not copied:
            site.journal.head()  # raises, and names the line
        if memory is None or not _lacks(rows, memory):
            return Recovery(head_of(held), copied)
    entries: list[Entry] = [("reserve", _reservation(approval)) for approval in lost]
    rows += as_rows(entries)
    terms = {a.folder.name: a.terms for a in all_approvals(site) if a.state == "approved"}
    if memory is not None and _reaches(memory, rows, echo, set(terms)):
        entries += _replayed(terms, memory, rows)
        reason, exhausted = REPLAYED, False
    else:
        unknown = memory is not None and memory.approved - set(read_accounts(rows))
        entries += worst_case(read_accounts(rows), WORST)
        reason, exhausted = WORST, bool(unknown) or not all_known
    seen = None if memory is None else memory.head
    entries.append(settlement(echo, reason, exhausted=exhausted, journal=seen))
    return Recovery(head_of(held), copied, tuple(entries))


def apply(site: Site, recovery: Recovery) -> None:
    """Write a recovery to the ledger, all of it or nothing, and note it in the journal.

    Raises:
        Refusal: the ledger grew since.
        ProcessError: the disk is full; nothing is written then.
    """
    head = site.ledger.recover(recovery)
    if recovery.entries:
        site.journal.append("recovered", rows=head.length, exhausted=recovery.exhausts)


def _read(copy: Path) -> list[Row]:
    """Return a copy's rows; read from a second copy, since SQLite writes beside what it opens."""
    if not copy.is_file():
        raise UsageError("there is no such copy of the ledger", got=copy)
    with tempfile.TemporaryDirectory() as folder:
        for ending in ("", "-wal"):
            source = copy.with_name(copy.name + ending)
            if source.is_file():
                shutil.copyfile(source, Path(folder) / f"copy{ending}")
        try:
            return Chain(Path(folder) / "copy").rows()
        except VerificationError as fault:
            raise VerificationError(
                f"{copy} cannot be used: {fault.what}", hint="give another copy, or none"
            ) from None


def _unreserved(site: Site, rows: Sequence[Row]) -> list[Approval]:
    """Return approvals without a reservation: a decision is written after it, so it was lost."""
    known = read_accounts(rows)
    return [
        approval
        for approval in all_approvals(site)
        if approval.state == "approved" and approval.folder.name not in known
    ]


def _reservation(approval: Approval) -> dict[str, Any]:
    delta = approval.plan.privacy.delta
    whole = approval.terms.whole
    return reservation(approval.folder.name, approval.plan_digest, whole, delta)


def _memory(site: Site, rows: Sequence[Row]) -> Memory | None:
    """Return what journal and outbox hold, or None where the journal's chain does not hold."""
    try:
        head, entries = site.journal.head(), list(site.journal.entries())
    except VerificationError:
        return None
    recoveries = sum(entry["event"] == "recovered" for entry in entries)
    settled = [row.body.get("journal") for row in rows if row.kind == "recovery"]
    ends = {entry["previous"]: n for n, entry in enumerate(entries)} | {head: len(entries)}
    entries = entries[ends.get(settled[-1], 0) if settled else 0 :]
    charged = {
        RoundKey(e["study"], e["branch"], e["stage"], e["round"]): (e["request"], e["reply"])
        for e in entries
        if e["event"] == "charged"
    }
    named = {
        event: frozenset(e["study"] for e in entries if e["event"] == event)
        for event in ("approved", "closed")
    }
    answered = frozenset(_answered(site.worker / "outbox"))
    return Memory(charged, answered, named["approved"], named["closed"], recoveries, head)


def _answered(outbox: Path) -> Iterator[RoundKey]:
    for path in outbox.glob("[!.]*.*.*.*"):
        study, branch, stage, number = path.name.rsplit(".", 3)
        if number.isdigit():
            yield RoundKey(study, branch, stage, int(number))


def _lacks(rows: Sequence[Row], memory: Memory) -> bool:
    """Say whether the journal, which is written after the ledger, names what the rows lack."""
    accounts = read_accounts(rows)
    return (
        not memory.approved <= set(accounts)
        or not memory.closed <= _closed(accounts)
        or not set(memory.charged) <= _keys(rows)
        or memory.recoveries > _recoveries(rows)
    )


def _reaches(memory: Memory, rows: Sequence[Row], echo: Head | None, approved: set[str]) -> bool:
    """Say whether ledger and journal together know as many rows as the coordinator saw."""
    accounts = read_accounts(rows)
    remembered = {key.study for key in (*memory.charged, *memory.answered)}
    if memory.recoveries > _recoveries(rows) or not _only_replayed(rows):
        return False
    if not memory.approved | remembered <= set(accounts) & approved:
        return False
    if echo is None:
        return True
    closed = memory.closed | _closed(accounts)
    notes = sum(row.kind == "note" and "instead" not in row.body for row in rows)
    keys = _keys(rows, ("charge",)) | set(memory.charged)
    return len(accounts) + len(closed) + len(keys) + notes >= echo.length


def _only_replayed(rows: Sequence[Row]) -> bool:
    """Say whether the only recovery, if any, was a replay before any echo, the last thing done.

    The rows then still stand one for one for those that were lost.
    """
    if not _recoveries(rows):
        return True
    last = rows[-1]
    replayed = last.kind == "recovery" and last.body["reason"] == REPLAYED
    return _recoveries(rows) == 1 and replayed and last.body["head"] is None


def _replayed(terms: dict[str, Terms], memory: Memory, rows: Sequence[Row]) -> list[Entry]:
    """Return the journaled charges that the rows lack, unjournaled rounds among them, and closes.

    A crash between charge and journal leaves a round out of the journal, so that rounds below the
    last known one are charged too, whether they took place or not.
    """
    held, known = _keys(rows), {*memory.charged, *memory.answered}
    gaps = set(_gaps(terms, held, known))

    def events(key: RoundKey) -> tuple[Event, ...]:
        own = terms[key.study]
        return own.per_audit if key.stage == "audit" else own.per_round[key.stage]

    entries: list[Entry] = []
    for key in sorted((known | gaps) - held, key=_order):
        body: dict[str, Any] = {"study": key.study, "events": write_events(events(key))}
        place = {"branch": key.branch, "stage": key.stage, "round": key.round}
        if key in memory.charged:
            request, reply = memory.charged[key]
            digests = {"request_digest": request, "reply_digest": reply}
            entries.append(("charge", body | place | digests))
        else:
            reason = f"round {key.round} of {key.stage} may have left: it is not in the journal"
            entries.append(("note", body | {"reason": reason, "instead": place}))
    closed = memory.closed - _closed(read_accounts(rows))
    return entries + [("close", {"study": name}) for name in sorted(closed)]


def _gaps(
    terms: Mapping[str, Terms], held: set[RoundKey], known: set[RoundKey]
) -> Iterator[RoundKey]:
    """Yield the rounds and audits below the last known one that come after those held.

    Rounds count on through the stages of a study; a branch other than "0" begins where it is
    first known.
    """
    for series in {_series(key) for key in known - held}:
        study, branch, audits = series
        numbers = [key.round for key in known if _series(key) == series]
        begin = 1 if branch == "0" else min(numbers)
        begin = max([begin - 1, *(key.round for key in held if _series(key) == series)]) + 1
        schedule = terms[study].schedule
        end = max(numbers) if audits else min(max(numbers), schedule.rounds)
        for n in range(begin, end + 1):
            yield RoundKey(study, branch, "audit" if audits else schedule.stage_of(n).name, n)


def _series(key: RoundKey) -> tuple[str, str, bool]:
    """Return study, branch, and whether it is an audit: each series is numbered by itself."""
    return key.study, key.branch, key.stage == "audit"


def _keys(rows: Sequence[Row], kinds: tuple[str, ...] = ("charge", "note")) -> set[RoundKey]:
    """Return the rounds that were charged, or that a note of a replay charged instead."""
    return {
        RoundKey(row.body["study"], place["branch"], place["stage"], place["round"])
        for row in rows
        if row.kind in kinds and "round" in (place := row.body.get("instead", row.body))
    }


def _recoveries(rows: Sequence[Row]) -> int:
    return sum(row.kind == "recovery" for row in rows)


def _closed(accounts: Mapping[str, Account]) -> set[str]:
    return {name for name, account in accounts.items() if account.closed}


def _order(key: RoundKey) -> tuple[str, str, int, str]:
    return key.study, key.branch, key.round, key.stage
