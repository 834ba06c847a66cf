"""What a site's ledger rows add up to: reserved, charged and left, for each study and in all.

Pure functions of the rows: `ledger.py` stores them, this file reads them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..study.errors import Refusal, VerificationError
from .accounting import Event, epsilon, merge
from .chain import Row


@dataclass(frozen=True)
class Account:
    """One study's account at a site.

    Attributes:
        study: the study's name.
        plan_digest: the plan that was approved, SHA-256 in hex.
        delta: the plan's delta.
        reserved: the events of the whole study.
        charged: what has been released, or must be taken as released.
        closed: True once the unspent reservation was given back.
    """

    study: str
    plan_digest: str
    delta: float
    reserved: tuple[Event, ...]
    charged: tuple[Event, ...] = ()
    closed: bool = False

    @property
    def committed(self) -> tuple[Event, ...]:
        """What the site answers for: the larger of reserved and charged, or charged if closed."""
        return self.charged if self.closed else cover(self.reserved, self.charged)

    @property
    def spent(self) -> float:
        """The epsilon of what was charged, at the plan's delta."""
        return epsilon(self.charged, self.delta)

    @property
    def left(self) -> float:
        """The epsilon reserved and not yet spent, at the plan's delta; 0 once closed."""
        return 0.0 if self.closed else max(0.0, epsilon(self.reserved, self.delta) - self.spent)

    def covers(self, events: Sequence[Event]) -> bool:
        """Says whether the reservation still holds all of these events, each kind for itself."""
        wanted = (*self.charged, *events)
        return not self.closed and cover(self.reserved, wanted) == merge(self.reserved)

    @property
    def unspent(self) -> tuple[Event, ...]:
        """The reserved events that were not charged; none once closed."""
        if self.closed:
            return ()
        spent = {_kind(event): event.steps for event in self.charged}
        left = ((event, event.steps - spent.get(_kind(event), 0)) for event in merge(self.reserved))
        return tuple(replace(event, steps=steps) for event, steps in left if steps > 0)


def cover(*lists: Iterable[Event]) -> tuple[Event, ...]:
    """Returns the smallest list of events that holds each list: the most steps of each kind."""
    steps: dict[tuple[str, float, float], Event] = {}
    for events in lists:
        for event in merge(events):
            held = steps.get(_kind(event))
            steps[_kind(event)] = event if held is None or event.steps > held.steps else held
    return merge(steps.values())


def reservation(
    study: str, plan_digest: str, events: Sequence[Event], delta: float
) -> dict[str, Any]:
    """Returns the body of the row that sets a whole study's events aside, at the plan's delta."""
    return {
        "study": study,
        "plan_digest": plan_digest,
        "events": write_events(events),
        "epsilon": epsilon(events, delta),
        "delta": delta,
    }


def read_accounts(rows: Iterable[Row]) -> dict[str, Account]:
    """Adds up the ledger's rows, in their order, to one account per study.

    Raises:
        VerificationError: if a row charges or closes a study that no row reserved.
    """
    accounts: dict[str, Account] = {}
    for row in rows:
        kind, body, study = row.kind, row.body, row.body.get("study", "")
        if kind == "recovery":
            continue
        if kind == "reserve":
            accounts[study] = Account(
                study, body["plan_digest"], body["delta"], read_events(body["events"])
            )
            continue
        if study not in accounts:
            raise VerificationError(
                f"the ledger holds a {kind} of study {study!r}, which nothing reserved"
            )
        account = accounts[study]
        charged = account.charged
        if kind in ("charge", "note"):
            charged = merge((*charged, *read_events(body["events"])))
        closed = account.closed or kind == "close"
        accounts[study] = Account(
            study, account.plan_digest, account.delta, account.reserved, charged, closed
        )
    return accounts


def account_of(accounts: Mapping[str, Account], study: str) -> Account:
    """Returns a study's account.

    Raises:
        Refusal: if nothing was reserved for it.
    """
    if study not in accounts:
        raise Refusal(
            f"nothing is reserved for study {study}", hint="approve the study first: site approve"
        )
    return accounts[study]


def check_plan(account: Account, plan_digest: str) -> None:
    """Checks that a known study is open and stands for this very plan.

    Raises:
        Refusal: if it does not.
    """
    if account.plan_digest != plan_digest:
        raise Refusal(
            f"study {account.study} is known under another plan",
            got=plan_digest[:12],
            expected=account.plan_digest[:12],
            hint="give the new plan another name",
        )
    if account.closed:
        raise Refusal(f"study {account.study} is closed", hint="give a new plan another name")


def charged_events(accounts: Mapping[str, Account]) -> tuple[Event, ...]:
    """Returns everything charged, over all studies."""
    return merge(event for account in accounts.values() for event in account.charged)


def committed_events(accounts: Mapping[str, Account]) -> tuple[Event, ...]:
    """Returns everything charged or still reserved, over all studies."""
    return merge(event for account in accounts.values() for event in account.committed)


def write_events(events: Iterable[Event]) -> list[list[Any]]:
    """Turns events into JSON values: [kind, sigma, rate, steps], merged and sorted."""
    return [[event.kind, event.sigma, event.rate, event.steps] for event in merge(events)]


def read_events(written: Iterable[Sequence[Any]]) -> tuple[Event, ...]:
    """Turns the JSON values of `write_events` back into events."""
    return tuple(Event(kind, sigma, rate, steps) for kind, sigma, rate, steps in written)


def _kind(event: Event) -> tuple[str, float, float]:
    return event.kind, event.sigma, event.rate
