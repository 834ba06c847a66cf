"""How a ledger goes on after an old copy was put back: what is missing is taken over or charged.

The coordinator's echo shows that rows are missing, never which. A newer copy holds them; without
one each approved study is charged in full, since no study can have spent more than it reserved.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..study.errors import VerificationError
from ..study.files import write
from ..study.identity import canonical
from .budget import Account, write_events
from .chain import Head, Row, head_of

Entry = tuple[str, dict[str, Any]]
"""Kind and body of a row to be appended."""


@dataclass(frozen=True)
class Recovery:
    """What is appended to a ledger, all at once.

    Attributes:
        start: the head of the ledger that it was decided for.
        copied: the rows that a newer copy holds after that head, taken over as they are.
        entries: new rows after those.
    """

    start: Head
    copied: tuple[Row, ...] = ()
    entries: tuple[Entry, ...] = ()

    @property
    def exhausts(self) -> bool:
        """True if the whole lifetime budget is charged."""
        return exhausted(as_rows(self.entries))


def rows_after(rows: Sequence[Row], copy: Sequence[Row]) -> tuple[Row, ...]:
    """Returns what a verified copy holds after the ledger's last row.

    Raises:
        VerificationError: if the copy does not continue the ledger.
    """
    head = head_of(list(rows))
    if head_of(list(copy[: head.length])) != head:
        raise VerificationError(
            "the copy does not continue this ledger",
            got=f"a copy of {len(copy)} rows",
            expected=f"row {head.length} with digest {head.digest[:12]}",
            hint="give a newer copy of this very ledger, or none: the worst case is charged then",
        )
    return tuple(copy[head.length :])


def accounts_for(rows: Sequence[Row], head: Head) -> bool:
    """Says whether the chain contains a head, or a recovery charged all that led to it.

    Guarantee:
        A head that was never in this chain is accepted only if the operator's recovery named it,
        length and digest, in a row of this chain; a copy from before that row refuses it again.
    Assumes:
        The rows were verified.
    """
    if head_of(list(rows[: max(0, head.length)])) == head:
        return True
    named = [row.body["head"] for row in rows if row.kind == "recovery"]
    return {"length": head.length, "digest": head.digest} in named


def worst_case(accounts: Mapping[str, Account], reason: str) -> list[Entry]:
    """Returns notes that charge each open study all that it reserved and has not spent.

    Guarantee:
        What these studies ever released costs at most what is charged afterwards.
    Assumes:
        The accounts hold every study that was ever reserved here, and every charge was checked
        against its reservation.
    """
    return [
        ("note", {"study": name, "reason": reason, "events": write_events(account.unspent)})
        for name, account in accounts.items()
        if not account.closed
    ]


def settlement(
    head: Head | None, reason: str, *, exhausted: bool, journal: str | None = None
) -> Entry:
    """Returns the last row of a recovery: what it accounts for.

    Args:
        head: the coordinator's echo that was refused, or None if none was.
        reason: why the charges are right, for whoever reads the ledger.
        journal: digest of the last line that the site's journal had, or None if unknown.
        exhausted: True charges the whole lifetime, whatever the cap is or becomes.
    """
    named = None if head is None else {"length": head.length, "digest": head.digest}
    return "recovery", {
        "reason": reason,
        "head": named,
        "journal": journal,
        "exhausted": exhausted,
    }


def keep_refused(ledger: Path, echo: Head) -> None:
    """Keeps, beside the ledger, the coordinator's head that its chain does not contain.

    Raises:
        DiskError: if it cannot be written.
    """
    write(_refused(ledger), canonical(asdict(echo)), mode=0o600)


def read_refused(ledger: Path) -> Head | None:
    """Returns the head that was refused last, or None.

    Raises:
        VerificationError: if the file is garbled.
    """
    try:
        facts = json.loads(_refused(ledger).read_bytes())
        return Head(int(facts["length"]), str(facts["digest"]))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):
        raise VerificationError(
            f"{_refused(ledger).name} is garbled",
            hint="remove it: the coordinator's next request writes it anew",
        ) from None


def check_recovered(ledger: Path, rows: Sequence[Row]) -> None:
    """Checks that a ledger's rows account for the echo that was refused last, if one was.

    Raises:
        VerificationError: if they do not: an old copy was put back, or rows were replaced.
    """
    echo = read_refused(ledger)
    if echo is None or accounts_for(rows, echo):
        return
    held = head_of(list(rows[: max(0, echo.length)]))
    raise VerificationError(
        "the ledger does not continue the one that the coordinator has seen",
        got=f"row {held.length} with digest {held.digest[:12]}",
        expected=f"row {echo.length} with digest {echo.digest[:12]}",
        hint="an old copy was put back: nothing trains until `voxfed site ledger recover`",
    )


def forget_refused(ledger: Path) -> None:
    """Removes the head that was refused, once the ledger accounts for it."""
    _refused(ledger).unlink(missing_ok=True)


def exhausted(rows: Iterable[Row]) -> bool:
    """Says whether a recovery charged the whole lifetime, since studies may be unknown."""
    return any(row.kind == "recovery" and row.body["exhausted"] for row in rows)


def as_rows(entries: Iterable[Entry]) -> list[Row]:
    """Returns entries as rows outside any chain, to be added up before they are written."""
    return [Row(0, kind, body, "", "") for kind, body in entries]


def _refused(ledger: Path) -> Path:
    return ledger.with_name(f"{ledger.stem}.refused-echo.json")
