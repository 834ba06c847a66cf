"""A site's lifetime privacy budget: an append-only, hash-chained SQLite file.

What is found: any edit, deletion or reordering of rows, by the chain; missing rows at the end,
and an old copy put back, by the head that the coordinator echoes. What is not: a rollback of the
whole folder while no coordinator is asked. A copy is good only while no process has the ledger
open, since the newest rows may still lie in the -wal file beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ..study.errors import (
    BudgetExhausted,
    ProcessError,
    Refusal,
    UsageError,
    VerificationError,
)
from . import accounting, budget
from .accounting import Event
from .budget import Account

Kind = Literal["reserve", "charge", "close", "note"]

_GENESIS = "0" * 64
_SCHEMA = """
CREATE TABLE rows (
    seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, body TEXT NOT NULL,
    previous TEXT NOT NULL UNIQUE, digest TEXT NOT NULL UNIQUE
);
CREATE UNIQUE INDEX one_charge ON rows (
    json_extract(body, '$.study'), json_extract(body, '$.branch'),
    json_extract(body, '$.stage'), json_extract(body, '$.round')
) WHERE kind = 'charge';
CREATE TRIGGER no_update BEFORE UPDATE ON rows BEGIN SELECT RAISE(ABORT, 'append only'); END;
CREATE TRIGGER no_delete BEFORE DELETE ON rows BEGIN SELECT RAISE(ABORT, 'append only'); END;
"""


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


@dataclass(frozen=True)
class Head:
    """The chain's length and the digest of its last row (64 zeros for an empty one)."""

    length: int
    digest: str


@dataclass(frozen=True)
class Row:
    """One row of the chain; `digest` covers everything else, `previous` the row before."""

    seq: int
    kind: Kind
    body: Mapping[str, Any]
    previous: str
    digest: str


class Ledger:
    """The site's account book; every answer is read from a chain that was just verified.

    Any number of threads and processes may hold one on the same file. Charges are made under
    SQLite's write lock (WAL, synchronous=FULL), so that a row exists whole or not at all.

    Guarantee:
        Charged and reserved events together stay within `lifetime_epsilon` at `delta`
        (`accounting.lifetime_epsilon`), and each study within its reservation.
    Assumes:
        Nothing is sent before `commit` returns, and what is sent is what was committed.
    """

    def __init__(self, path: Path, lifetime_epsilon: float, delta: float) -> None:
        self._path, self._cap, self._delta = path, lifetime_epsilon, delta

    @classmethod
    def create(cls, path: Path, *, lifetime_epsilon: float, delta: float) -> Ledger:
        """Starts an empty ledger, mode 0600, and opens it.

        Raises:
            UsageError: if the file exists: a budget is never started afresh.
            ProcessError: if it cannot be written.
        """
        draft = path.with_name(f"{path.name}.{os.getpid()}.new")
        try:
            os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            with closing(sqlite3.connect(draft, isolation_level=None)) as connection:
                connection.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
            os.link(draft, path)
            _sync_folder(path.parent)
        except FileExistsError:
            raise UsageError(
                "this site has a ledger already", got=path, hint="a budget cannot be started afresh"
            ) from None
        except (OSError, sqlite3.Error) as error:
            raise ProcessError("the ledger cannot be created", got=error) from None
        finally:
            draft.unlink(missing_ok=True)
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
        """
        with self._writing() as (connection, rows):
            accounts = _accounts(rows)
            known = accounts.get(study)
            if known is not None:
                _same_plan(known, plan_digest)
                return
            self._check_lifetime((*budget.committed_events(accounts), *events), study)
            body = {
                "study": study,
                "plan_digest": plan_digest,
                "events": budget.write_events(events),
                "epsilon": accounting.epsilon(events, delta),
                "delta": delta,
            }
            _append(connection, rows, "reserve", body)

    def begin(
        self, key: RoundKey, request_digest: str, events: Sequence[Event]
    ) -> Committed | None:
        """Asks, before a scan is touched, whether a round may run; writes nothing.

        Returns:
            The committed reply if this very request was answered before, None if it may run.

        Raises:
            Refusal: if the round was charged for another request, or nothing was reserved.
            BudgetExhausted: if the reservation does not cover the events.
        """
        rows = self.rows()
        done = _charged(rows, key, request_digest)
        if done is None:
            self._check_affordable(_accounts(rows), key.study, events)
        return done

    def commit(
        self, key: RoundKey, request_digest: str, reply_digest: str, events: Sequence[Event]
    ) -> Head:
        """Charges a round whose reply lies in the outbox; only then may the reply be sent.

        Asked again with the same digests it changes nothing.

        Raises:
            Refusal: as `begin`, or if the round was charged for other reply bytes.
            BudgetExhausted: as `begin`.
            ProcessError: if the row cannot be written; nothing is charged then.
        """
        with self._writing() as (connection, rows):
            done = _charged(rows, key, request_digest)
            if done is None:
                self._check_affordable(_accounts(rows), key.study, events)
                digests = {"request_digest": request_digest, "reply_digest": reply_digest}
                body = asdict(key) | digests | {"events": budget.write_events(events)}
                rows = [*rows, _append(connection, rows, "charge", body)]
            elif done.reply_digest != reply_digest:
                raise Refusal(
                    f"{_name(key)} was charged for another reply",
                    got=reply_digest,
                    expected=done.reply_digest,
                    hint="send the committed reply from the outbox",
                )
        return _head(rows)

    def close(self, study: str) -> None:
        """Gives back what a study has reserved and not spent; it can be charged no more.

        Raises:
            Refusal: if nothing was reserved for the study.
        """
        with self._writing() as (connection, rows):
            if not _account(_accounts(rows), study).closed:
                _append(connection, rows, "close", {"study": study})

    def note(self, study: str, reason: str, events: Sequence[Event] = ()) -> None:
        """Writes down what happened to a study, such as a recovery, and charges the worst case.

        The events are charged whether or not they were reserved: they may have left already.

        Raises:
            Refusal: if nothing was reserved for the study.
        """
        with self._writing() as (connection, rows):
            _account(_accounts(rows), study)
            body = {"study": study, "reason": reason, "events": budget.write_events(events)}
            _append(connection, rows, "note", body)

    def rows(self) -> list[Row]:
        """Returns all rows in their order, after verifying the chain.

        Raises:
            VerificationError: naming the first row that was altered, deleted or reordered.
        """
        with self._connected() as connection:
            return _verified(connection)

    def verify_chain(self) -> Head:
        """Verifies every row and returns the head; raises as `rows`."""
        return _head(self.rows())

    def head(self) -> Head:
        """Returns the chain's length and last digest, to be signed into each reply."""
        return self.verify_chain()

    def check_echo(self, echo: Head | None) -> None:
        """Checks that the chain still contains the head that the coordinator last received.

        Args:
            echo: the coordinator's copy, or None if it has never had one.

        Raises:
            VerificationError: if it does not: an old copy was put back, or rows were replaced.
        """
        if echo is None:
            return
        rows = self.rows()
        held = _head(rows[: echo.length]) if 0 <= echo.length <= len(rows) else _head(rows)
        if held != echo:
            raise VerificationError(
                "the ledger does not continue the one that the coordinator has seen",
                got=f"row {held.length} with digest {held.digest[:12]}",
                expected=f"row {echo.length} with digest {echo.digest[:12]}",
                hint="an old copy was put back; run voxfed site ledger recover",
            )

    def accounts(self) -> dict[str, Account]:
        """Returns each study's account, by name."""
        return _accounts(self.rows())

    def spent(self, study: str) -> float:
        """Returns the epsilon of the study's charged events, at the plan's delta."""
        return _account(self.accounts(), study).spent

    def left(self, study: str) -> float:
        """Returns the epsilon that the study has reserved and not spent, at the plan's delta."""
        return _account(self.accounts(), study).left

    def lifetime_spent(self) -> float:
        """Returns the lifetime epsilon of everything charged."""
        events = budget.charged_events(self.accounts())
        return accounting.lifetime_epsilon(events, self._delta)

    def lifetime_left(self) -> float:
        """Returns the cap less the lifetime epsilon of everything charged or reserved.

        What a further study may cost is at least this: epsilons add up to less than their sum.
        """
        events = budget.committed_events(self.accounts())
        return max(0.0, self._cap - accounting.lifetime_epsilon(events, self._delta))

    def _check_lifetime(self, events: Sequence[Event], study: str) -> None:
        cost = accounting.lifetime_epsilon(events, self._delta)
        if cost > self._cap:
            raise BudgetExhausted(
                f"the lifetime budget does not hold study {study}",
                got=f"epsilon {cost:.4g} in all with it, at delta {self._delta:.3g}",
                expected=f"at most {self._cap:.4g}",
                hint="ask for less, or close studies that are over",
            )

    def _check_affordable(
        self, accounts: Mapping[str, Account], study: str, events: Sequence[Event]
    ) -> None:
        account = _account(accounts, study)
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
        self._check_lifetime((*budget.charged_events(accounts), *events), study)

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """Opens the file for one operation, so that threads and processes share nothing."""
        try:
            uri = f"{self._path.absolute().as_uri()}?mode=rw"
            with closing(sqlite3.connect(uri, uri=True, timeout=60, isolation_level=None)) as held:
                held.execute("PRAGMA journal_mode = WAL")
                held.execute("PRAGMA synchronous = FULL")
                yield held
        except sqlite3.OperationalError as error:
            if not self._path.exists():
                raise VerificationError(
                    "the ledger is missing", got=self._path, hint="put it back from a backup"
                ) from None
            raise ProcessError("the ledger cannot be used now", got=error) from None
        except sqlite3.DatabaseError as error:
            raise VerificationError(
                "the ledger is damaged", got=error, hint="put it back from a backup"
            ) from None

    @contextmanager
    def _writing(self) -> Iterator[tuple[sqlite3.Connection, list[Row]]]:
        """Holds the write lock from reading the rows to committing the new one."""
        with self._connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection, _verified(connection)
            connection.execute("COMMIT")


def require_space(folder: Path, needed: int) -> None:
    """Checks, before training, that a folder's disk has room for what a round will write.

    Args:
        folder: where it will be written.
        needed: bytes.

    Raises:
        ProcessError: if there is less.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ProcessError(
            f"the disk of {folder} is too full for a round",
            got=f"{free} bytes free",
            expected=f"at least {needed} bytes",
            hint="make room, then start again; no budget was spent",
        )
