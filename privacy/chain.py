"""The ledger's store: rows in a SQLite file, each carrying the digest of the one before.

A row exists whole or not at all (WAL, synchronous=FULL, one transaction a row). The chain shows
any edit, deletion or reordering, but not a missing end, nor a rewriting from some row to the
end: both need the head that the coordinator echoes. A copy of the file is whole only while no
process has it open, since the newest rows may still lie in the -wal file beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..study.errors import ProcessError, UsageError, VerificationError
from ..study.identity import canonical
from ..study.journal import GENESIS

_SCHEMA = """
PRAGMA journal_mode = WAL;
BEGIN;
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
COMMIT;
"""
_BACKUP = "keep the file as evidence, put a backup in its place, then `voxfed site ledger recover`"


@dataclass(frozen=True)
class Head:
    """The chain's length and the digest of its last row (64 zeros for an empty one)."""

    length: int
    digest: str


@dataclass(frozen=True)
class Row:
    """One row; `digest` covers all the rest, `previous` is the digest of the row before."""

    seq: int
    kind: str
    body: Mapping[str, Any]
    previous: str
    digest: str


class Page:
    """The verified rows, under the write lock, and the place to append to them."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.rows = _verified(connection)

    def append(self, kind: str, body: Mapping[str, Any]) -> Row:
        """Appends one row, with the time in UTC; it counts once the page is left without error."""
        head = head_of(self.rows)
        time = datetime.now(UTC).isoformat(timespec="seconds")
        text = canonical({**body, "time": time}).decode()
        digest = _digest(head.length + 1, kind, text, head.digest)
        values = (head.length + 1, kind, text, head.digest, digest)
        self._connection.execute("INSERT INTO rows VALUES (?, ?, ?, ?, ?)", values)
        row = Row(head.length + 1, kind, json.loads(text), head.digest, digest)
        self.rows.append(row)
        return row

    def adopt(self, row: Row) -> None:
        """Takes over a row of a newer copy as it is, with its time and digest.

        Raises:
            VerificationError: if it does not follow the last row here.
        """
        if (row.seq - 1, row.previous) != (len(self.rows), head_of(self.rows).digest):
            raise VerificationError(f"row {row.seq} of the copy does not follow the ledger")
        text = canonical(row.body).decode()
        values = (row.seq, row.kind, text, row.previous, row.digest)
        self._connection.execute("INSERT INTO rows VALUES (?, ?, ?, ?, ?)", values)
        self.rows.append(row)


class Chain:
    """The file. Each operation opens it anew, so that threads and processes share nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def create(self) -> None:
        """Writes an empty chain, mode 0600.

        Raises:
            UsageError: if the file exists.
            ProcessError: if it cannot be written.
        """
        draft = self.path.with_name(f"{self.path.name}.{os.urandom(8).hex()}")
        try:
            os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            with closing(sqlite3.connect(draft, isolation_level=None)) as connection:
                connection.executescript(_SCHEMA)
            os.link(draft, self.path)  # unlike a rename, a link never replaces what is there
            _sync(self.path.parent)
        except FileExistsError:
            raise UsageError(
                "this site has a ledger already",
                got=self.path,
                hint="a budget cannot be started afresh",
            ) from None
        except (OSError, sqlite3.Error) as error:
            raise ProcessError("the ledger cannot be created", got=error) from None
        finally:
            draft.unlink(missing_ok=True)

    def rows(self) -> list[Row]:
        """Returns all rows in their order.

        Raises:
            VerificationError: naming the first row that was altered, deleted or reordered.
            ProcessError: if the file cannot be read now.
        """
        with self._connected() as connection:
            return _verified(connection)

    @contextmanager
    def writing(self) -> Iterator[Page]:
        """Holds the write lock while a page is read and appended to; an error undoes it all.

        Raises:
            VerificationError: as `rows`.
            ProcessError: if the file cannot be written now, as when the disk is full.
        """
        with self._connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield Page(connection)
            connection.execute("COMMIT")

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        if not self.path.exists():
            raise VerificationError("the ledger is missing", got=self.path, hint=_BACKUP)
        try:
            uri = f"{self.path.absolute().as_uri()}?mode=rw"
            with closing(sqlite3.connect(uri, uri=True, timeout=60, isolation_level=None)) as held:
                held.execute("PRAGMA synchronous = FULL")
                held.text_factory = _decoded
                yield held
        except sqlite3.OperationalError as error:
            if error.sqlite_errorname == "SQLITE_ERROR":  # a file without our table
                raise VerificationError("this is no ledger", got=error, hint=_BACKUP) from None
            raise ProcessError(
                "the ledger cannot be used now", got=error, hint="see to the disk, then retry"
            ) from None
        except sqlite3.DatabaseError as error:
            raise VerificationError("the ledger is damaged", got=error, hint=_BACKUP) from None


def head_of(rows: list[Row]) -> Head:
    """Returns the head of a list of rows that starts at the first."""
    return Head(len(rows), rows[-1].digest if rows else GENESIS)


def _verified(connection: sqlite3.Connection) -> list[Row]:
    rows: list[Row] = []
    for seq, kind, text, previous, digest in connection.execute(
        "SELECT seq, kind, body, previous, digest FROM rows ORDER BY seq"
    ):
        head = head_of(rows)
        if seq != head.length + 1:
            fault = f"row {head.length + 1} of the ledger is missing"
        elif previous != head.digest:
            fault = f"row {seq} of the ledger does not follow the row before"
        elif not isinstance(text, str) or digest != _digest(seq, str(kind), text, previous):
            fault = f"row {seq} of the ledger was altered"
        else:
            rows.append(Row(seq, kind, json.loads(text), previous, digest))
            continue
        raise VerificationError(fault, hint=_BACKUP)
    return rows


def _decoded(raw: bytes) -> str:
    """Turns stored bytes into text; those that are no UTF-8 fail the digest, not the reading."""
    return raw.decode(errors="replace")


def _digest(seq: int, kind: str, text: str, previous: str) -> str:
    return hashlib.sha256(canonical([seq, kind, text, previous])).hexdigest()


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
