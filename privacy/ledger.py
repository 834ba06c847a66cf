"""A site's lifetime privacy budget: what was reserved and charged, kept in a hash chain.

What is found: any edit, deletion or reordering of rows, by the chain (`chain.py`); missing last
rows and an old copy put back, by the head that the coordinator echoes (`recovery.py` goes on from
there). What is not: a rollback of the whole folder while no coordinator is asked.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..study.errors import BudgetExhausted, DiskError, Refusal
from . import accounting, budget, recovery
from .accounting import Event
from .budget import Account
from .chain import Chain, Head, Row, head_of
from .recovery import Recovery


@dataclass(frozen=True)
class RoundKey:
    """Names one site's part in one round; a rewind opens a new branch."""

    study: str
    branch: str
    stage: str
    round: int


@dataclass(frozen=True)
class Committed:
    """A charged round: the reply with this digest lies in the outbox and may be sent again."""

    reply_digest: str


class Ledger:
    """The site's account book; every answer is read from a chain that was just verified.

    Any number of threads and processes may hold one on the same file: each decision is made
    and written under one lock.

    Guarantee:
        Charged and reserved events together stay within `lifetime_epsilon` at `delta`
        (`accounting.lifetime_epsilon`), and each study within its reservation.
    Assumes:
        Nothing is sent before `commit` returns, and what is sent is what was committed.
    """

    def __init__(self, path: Path, lifetime_epsilon: float, delta: float) -> None:
        self._chain, self._cap, self._delta = Chain(path), lifetime_epsilon, delta

    @classmethod
    def create(cls, path: Path, *, lifetime_epsilon: float, delta: float) -> Ledger:
        """Starts an empty ledger, mode 0600, and opens it.

        Raises:
            UsageError: if the file exists: a budget is never started afresh.
            ProcessError: if it cannot be written.
        """
        Chain(Path(path)).create()
        return cls.open(path, lifetime_epsilon=lifetime_epsilon, delta=delta)

    @classmethod
    def open(cls, path: Path, *, lifetime_epsilon: float, delta: float) -> Ledger:
        """Opens a ledger under the site's limits and verifies its chain.

        Args:
            path: the file, in the worker's folder.
            lifetime_epsilon: the site's cap over all studies.
            delta: the delta of the cap.

        Raises:
            VerificationError: if the file is missing, no ledger, or its chain does not hold.
        """
        ledger = cls(Path(path), lifetime_epsilon, delta)
        ledger.verify_chain()
        return ledger

    def reserve(
        self, study: str, plan_digest: str, events: Sequence[Event], *, delta: float
    ) -> None:
        """Sets aside the budget of a whole study; does nothing if this plan has it already.

        Args:
            study: the study's name.
            plan_digest: SHA-256 of the approved plan, in hex.
            events: everything the study will release.
            delta: the plan's delta.

        Raises:
            Refusal: if the name is known under another plan, or closed.
            BudgetExhausted: if the lifetime budget does not hold it; nothing is written.
            VerificationError: if a refused echo waits for `recover`; nothing is written.
        """
        with self._chain.writing() as page:
            recovery.check_recovered(self._chain.path, page.rows)
            accounts = budget.read_accounts(page.rows)
            known = accounts.get(study)
            if known is not None:
                budget.check_plan(known, plan_digest)
                return
            wanted = (*budget.committed_events(accounts), *events)
            self._check_lifetime(page.rows, wanted, study)
            page.append("reserve", budget.reservation(study, plan_digest, events, delta))

    def begin(
        self, key: RoundKey, request_digest: str, events: Sequence[Event]
    ) -> Committed | None:
        """Asks, before a scan is touched, whether a round may run; writes nothing.

        Returns:
            The committed reply if this very request was answered before, None if it may run.

        Raises:
            Refusal: if the round was charged for another request, or nothing was reserved.
            BudgetExhausted: if the reservation does not cover the events.
            VerificationError: if a refused echo waits for `recover`.
        """
        rows = self.rows()
        recovery.check_recovered(self._chain.path, rows)
        done = _charged(rows, key, request_digest)
        if done is None:
            self._check_affordable(rows, key.study, events)
        return done

    def commit(
        self, key: RoundKey, request_digest: str, reply_digest: str, events: Sequence[Event]
    ) -> Head:
        """Charges a round whose reply lies in the outbox; only then may the reply be sent.

        Asked again with the same digests it changes nothing.

        Raises:
            Refusal: as `begin`, or if the round was charged for other reply bytes.
            BudgetExhausted, VerificationError: as `begin`.
            ProcessError: if the row cannot be written; nothing is charged then.
        """
        with self._chain.writing() as page:
            recovery.check_recovered(self._chain.path, page.rows)
            done = _charged(page.rows, key, request_digest)
            if done is None:
                self._check_affordable(page.rows, key.study, events)
                digests = {"request_digest": request_digest, "reply_digest": reply_digest}
                body = asdict(key) | digests | {"events": budget.write_events(events)}
                page.append("charge", body)
            elif done.reply_digest != reply_digest:
                raise Refusal(
                    f"round {key.round} of study {key.study} was charged for another reply",
                    got=reply_digest,
                    expected=done.reply_digest,
                    hint="send the committed reply from the outbox",
                )
        return head_of(page.rows)

    def close(self, study: str) -> None:
        """Gives back what a study has reserved and not spent; it can be charged no more.

        Raises:
            Refusal: if nothing was reserved for the study.
            VerificationError: if a refused echo waits for `recover`: what seems unspent may not be.
        """
        with self._chain.writing() as page:
            recovery.check_recovered(self._chain.path, page.rows)
            if not budget.account_of(budget.read_accounts(page.rows), study).closed:
                page.append("close", {"study": study})

    def note(self, study: str, reason: str, events: Sequence[Event] = ()) -> None:
        """Writes down what happened to a study, such as a recovery, and charges the worst case.

        The events are charged whether or not they were reserved: they may have left already.

        Raises:
            Refusal: if nothing was reserved for the study.
        """
        with self._chain.writing() as page:
            budget.account_of(budget.read_accounts(page.rows), study)
            body = {"study": study, "reason": reason, "events": budget.write_events(events)}
            page.append("note", body)

    def rows(self) -> list[Row]:
        """Returns all rows in their order, after verifying the chain.

        Raises:
            VerificationError: naming the first row that was altered, deleted or reordered.
        """
        return self._chain.rows()

    def verify_chain(self) -> Head:
        """Verifies every row and returns the head; raises as `rows`."""
        return head_of(self.rows())

    def head(self) -> Head:
        """Returns the chain's length and last digest, to be signed into each reply."""
        return self.verify_chain()

    def check_echo(self, echo: Head | None) -> None:
        """Checks that the chain still contains the head that the coordinator last received.

        Args:
            echo: the coordinator's copy, or None if it has never had one. One that is refused is
                kept beside the ledger, and nothing is granted until `recover` accounts for it.

        Raises:
            VerificationError: if it does not, or one refused before waits for `recover`: an old
                copy was put back, or rows were replaced.
            DiskError: if the refused echo cannot be kept.
        """
        rows = self.rows()
        if echo is not None and not recovery.accounts_for(rows, echo):
            recovery.keep_refused(self._chain.path, echo)
        recovery.check_recovered(self._chain.path, rows)

    def refused_echo(self) -> Head | None:
        """Returns the coordinator's head that was refused last, or None if all is well."""
        return recovery.read_refused(self._chain.path)

    def recover(self, plan: Recovery) -> Head:
        """Appends all that a recovery found, or nothing, and forgets the echo it accounts for.

        Raises:
            Refusal: if the ledger grew since the recovery was decided.
            VerificationError: if copied rows do not follow the ledger's.
        """
        with self._chain.writing() as page:
            if head_of(page.rows) != plan.start:
                raise Refusal("the ledger grew while the recovery was decided", hint="run it again")
            for row in plan.copied:
                page.adopt(row)
            for kind, body in plan.entries:
                page.append(kind, body)
            budget.read_accounts(page.rows)
        echo = self.refused_echo()
        if echo is not None and recovery.accounts_for(page.rows, echo):
            recovery.forget_refused(self._chain.path)
        return head_of(page.rows)

    def accounts(self) -> dict[str, Account]:
        """Returns each study's account, by name."""
        return budget.read_accounts(self.rows())

    def spent(self, study: str) -> float:
        """Returns the epsilon of the study's charged events, at the plan's delta."""
        return budget.account_of(self.accounts(), study).spent

    def left(self, study: str) -> float:
        """Returns the epsilon that the study has reserved and not spent, at the plan's delta."""
        return budget.account_of(self.accounts(), study).left

    def lifetime_spent(self) -> float:
        """Returns the lifetime epsilon of everything charged."""
        rows = self.rows()
        events = budget.charged_events(budget.read_accounts(rows))
        spent = accounting.lifetime_epsilon(events, self._delta)
        return max(spent, self._cap) if recovery.exhausted(rows) else spent

    def lifetime_left(self) -> float:
        """Returns the cap less the lifetime epsilon of everything charged or reserved.

        A further study whose own lifetime epsilon is at most this is always admitted.
        """
        rows = self.rows()
        events = budget.committed_events(budget.read_accounts(rows))
        left = self._cap - accounting.lifetime_epsilon(events, self._delta)
        return 0.0 if recovery.exhausted(rows) else max(0.0, left)

    def _check_lifetime(self, rows: Sequence[Row], events: Sequence[Event], study: str) -> None:
        if recovery.exhausted(rows):
            raise BudgetExhausted(
                f"nothing is left of the lifetime budget for study {study}",
                hint="a recovery charged it to the cap, since what was spent was not known",
            )
        cost = accounting.lifetime_epsilon(events, self._delta)
        if cost > self._cap:
            raise BudgetExhausted(
                f"the lifetime budget does not hold study {study}",
                got=f"epsilon {cost:.4g} in all with it, at delta {self._delta:.3g}",
                expected=f"at most {self._cap:.4g}",
                hint="ask for less, or give back what is over with `voxfed site close STUDY`",
            )

    def _check_affordable(self, rows: Sequence[Row], study: str, events: Sequence[Event]) -> None:
        accounts = budget.read_accounts(rows)
        account = budget.account_of(accounts, study)
        if not account.covers(events):
            wanted = accounting.epsilon((*account.charged, *events), account.delta)
            reserved = accounting.epsilon(account.reserved, account.delta)
            raise BudgetExhausted(
                f"the reservation of study {study} does not cover this round",
                got=f"epsilon {wanted:.4g} with it",
                expected=f"the {reserved:.4g} reserved"
                + (", closed" if account.closed else f", {account.spent:.4g} spent"),
                hint="a study cannot outgrow its plan; propose a new one",
            )
        self._check_lifetime(rows, (*budget.charged_events(accounts), *events), study)


def require_space(folder: Path, needed: int) -> None:
    """Checks, before training, that a folder's disk has room for what a round will write.

    Args:
        folder: where it will be written.
        needed: bytes.

    Raises:
        DiskError: if there is less.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DiskError(
            f"the disk of {folder} is too full for a round",
            got=f"{free} bytes free",
            expected=f"at least {needed} bytes",
            hint="make room, then start again; no budget was spent",
        )


def _charged(rows: Sequence[Row], key: RoundKey, request_digest: str) -> Committed | None:
    """Finds what was committed under a key; refuses another request under it."""
    wanted = asdict(key)
    for row in rows:
        if row.kind == "charge" and all(row.body[name] == wanted[name] for name in wanted):
            if row.body["request_digest"] != request_digest:
                raise Refusal(
                    f"round {key.round} of {key.study}, stage {key.stage}, branch {key.branch},"
                    " was charged for another request",
                    got=request_digest[:12],
                    expected=row.body["request_digest"][:12],
                    hint="a rewind needs a new branch, signed by the coordinator",
                )
            return Committed(row.body["reply_digest"])
    return None
