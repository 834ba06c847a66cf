"""The ledger's chain: tampering, restored copies, writes cut short."""
# ruff: noqa: S608, the statements are the test's own

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing

import pytest
from voxfed.privacy.accounting import Event
from voxfed.privacy.chain import Head
from voxfed.privacy.ledger import Ledger
from voxfed.study.errors import ProcessError, UsageError, VerificationError

DELTA = 1e-5
CAP = 10.0
PLAN = "a" * 64
STUDY = [Event("sampled-gaussian", 2.0, 0.2, 8), Event("gaussian", 20.0, 1, 8)]
ROUND = [Event("sampled-gaussian", 2.0, 0.2, 1), Event("gaussian", 20.0, 1, 1)]


def reopen(path):
    return Ledger.open(path, lifetime_epsilon=CAP, delta=DELTA)


def path_of(ledger):
    return ledger._chain.path


GUARDS_OFF = "DROP TRIGGER no_update; DROP TRIGGER no_delete; DROP INDEX one_charge;"


def tamper(ledger, *statements):
    """Changes the file as someone with the operator's rights would: what guards it off first."""
    with closing(sqlite3.connect(path_of(ledger), isolation_level=None)) as connection:
        connection.executescript(GUARDS_OFF)
        for statement in statements:
            connection.execute(statement)


@pytest.mark.parametrize(
    ("statement", "row"),
    [
        ("UPDATE rows SET body = replace(body, 'reply-1', 'reply-x') WHERE seq = 3", "row 3"),
        ("UPDATE rows SET body = replace(body, '20.0', '90.0') WHERE seq = 1", "row 1"),
        ("UPDATE rows SET kind = 'note' WHERE seq = 2", "row 2"),
        ("UPDATE rows SET digest = '00' WHERE seq = 4", "row 4"),
        ("UPDATE rows SET previous = '00' WHERE seq = 4", "row 4"),
        ("DELETE FROM rows WHERE seq = 1", "row 1"),
        ("DELETE FROM rows WHERE seq = 3", "row 3"),
        ("UPDATE rows SET seq = 9 WHERE seq = 4", "row 4"),
    ],
)
def test_an_edited_or_deleted_row_is_found_and_named(busy, statement, row, key):
    """The first wrong row, by every way of asking."""
    tamper(busy, statement)
    for ask in (
        busy.verify_chain,
        busy.head,
        lambda: reopen(path_of(busy)),
        lambda: busy.begin(key(3), "request", ROUND),
        lambda: busy.commit(key(3), "request", "reply", ROUND),
    ):
        with pytest.raises(VerificationError, match=row):
            ask()


def test_two_rows_in_each_others_place_are_found(busy):
    tamper(
        busy,
        "UPDATE rows SET seq = 100 WHERE seq = 2",
        "UPDATE rows SET seq = 2 WHERE seq = 3",
        "UPDATE rows SET seq = 3 WHERE seq = 100",
    )
    with pytest.raises(VerificationError, match="row 2"):
        busy.verify_chain()


def test_rows_cannot_be_changed_by_accident(busy):
    with closing(sqlite3.connect(path_of(busy), isolation_level=None)) as connection:
        for statement in ("DELETE FROM rows WHERE seq = 4", "UPDATE rows SET kind = 'note'"):
            with pytest.raises(sqlite3.IntegrityError, match="append only"):
                connection.execute(statement)
    busy.verify_chain()


def test_a_restored_copy_is_found_by_the_echoed_head(busy, tmp_path, key):
    """Also a deleted tail, which the chain alone cannot show."""
    copy = tmp_path / "copy.sqlite"
    shutil.copy(path_of(busy), copy)
    head = busy.commit(key(3), "request-3", "reply-3", ROUND)
    old = reopen(copy)
    old.check_echo(None)
    with pytest.raises(VerificationError, match="does not continue") as fault:
        old.check_echo(head)
    assert "row 5" in fault.value.message
    # The old copy then goes another way: as long as the true one, with another last row.
    old.note("knee", "another way", ROUND)
    with pytest.raises(VerificationError, match="does not continue"):
        old.check_echo(head)
    tamper(busy, "DELETE FROM rows WHERE seq = 5")
    assert busy.verify_chain().length == 4
    with pytest.raises(VerificationError, match="does not continue"):
        busy.check_echo(head)


def test_an_earlier_head_that_the_chain_contains_is_fine(busy, key):
    """The coordinator may lag behind: it holds the head of the last reply it received."""
    early = busy.head()
    busy.commit(key(3), "request-3", "reply-3", ROUND)
    busy.check_echo(early)
    busy.check_echo(Head(0, "0" * 64))
    with pytest.raises(VerificationError):
        busy.check_echo(Head(0, "1" * 64))


def test_the_file_and_its_companions_are_the_operators_alone(busy):
    with busy._chain.writing():
        names = sorted(path_of(busy).parent.iterdir())
        assert [path.name for path in names][1:] == ["ledger.sqlite-shm", "ledger.sqlite-wal"]
        assert {path.stat().st_mode & 0o777 for path in names} == {0o600}


def test_a_budget_is_never_started_afresh(busy):
    with pytest.raises(UsageError, match="has a ledger already"):
        Ledger.create(path_of(busy), lifetime_epsilon=CAP, delta=DELTA)
    assert busy.head().length == 4
    assert [path.name for path in path_of(busy).parent.iterdir()] == ["ledger.sqlite"]


def test_a_missing_file_is_not_an_empty_ledger(tmp_path):
    with pytest.raises(VerificationError, match="missing"):
        reopen(tmp_path / "ledger.sqlite")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"not a database at all" * 100])
def test_a_file_that_is_no_ledger_is_refused(tmp_path, content):
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(content)
    with pytest.raises(VerificationError):
        reopen(path)


def test_a_truncated_file_is_refused(busy):
    content = path_of(busy).read_bytes()
    path_of(busy).write_bytes(content[: len(content) // 2])
    with pytest.raises(VerificationError, match="damaged"):
        reopen(path_of(busy))


def test_a_ledger_that_cannot_grow_charges_nothing(busy, monkeypatch):
    """SQLite's own limit stands for a full disk: the row is not written, the chain holds."""
    connect = sqlite3.connect

    def small(*arguments, **options):
        connection = connect(*arguments, **options)
        connection.execute("PRAGMA max_page_count = 1")
        return connection

    before = busy.head()
    monkeypatch.setattr("voxfed.privacy.chain.sqlite3.connect", small)
    with pytest.raises(ProcessError, match="cannot be used now"):
        busy.note("knee", "x" * 20_000)
    monkeypatch.undo()
    assert busy.head() == before


EDITS = {
    "kind": ["'note'", "x'00'", "'charge '"],
    "body": [
        "replace(body, 'knee', 'neck')",
        "replace(body, ',', ', ')",
        "body || ' '",
        "x'7b7d'",
        "CAST(x'ff' AS TEXT)",
        "'[]'",
        "''",
    ],
    "previous": ["upper(previous) || '0'", "x'00'"],
    "digest": ["replace(digest, substr(digest, 1, 1), 'g')", "''", "x'00'"],
    "seq": ["seq + 100", "-seq"],
}


@pytest.mark.parametrize("seq", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("column", "value"), [(column, value) for column in EDITS for value in EDITS[column]]
)
def test_every_kind_of_edit_of_every_row_is_named(busy, column, value, seq):
    """Values of another type and text that is no UTF-8 included."""
    tamper(busy, f"UPDATE rows SET {column} = {value} WHERE seq = {seq}")
    # A row that was renumbered downwards stands first, so that row 1 is what is missing.
    named = 1 if value == "-seq" else seq
    with pytest.raises(VerificationError, match=f"row {named} "):
        busy.verify_chain()


@pytest.mark.parametrize(("first", "second"), [(1, 2), (1, 4), (2, 3), (2, 4), (3, 4)])
@pytest.mark.parametrize("relinked", [False, True])
def test_any_two_rows_in_each_others_place_are_named(busy, first, second, relinked):
    """Also where each takes over the link that belongs to its new place."""
    with closing(sqlite3.connect(path_of(busy))) as connection:
        previous = dict(connection.execute("SELECT seq, previous FROM rows"))
    statements = [
        f"UPDATE rows SET seq = 100 WHERE seq = {first}",
        f"UPDATE rows SET seq = {first} WHERE seq = {second}",
        f"UPDATE rows SET seq = {second} WHERE seq = 100",
    ]
    if relinked:
        statements += [
            f"UPDATE rows SET previous = 'x' WHERE seq = {first}",
            f"UPDATE rows SET previous = '{previous[second]}' WHERE seq = {second}",
            f"UPDATE rows SET previous = '{previous[first]}' WHERE seq = {first}",
        ]
    tamper(busy, *statements)
    with pytest.raises(VerificationError, match=f"row {first} "):
        busy.verify_chain()


@pytest.mark.parametrize("rows", [(1,), (2,), (3,), (1, 2), (2, 3), (1, 2, 3)])
@pytest.mark.parametrize("closed_up", [False, True])
def test_any_deleted_rows_are_named(busy, rows, closed_up):
    """Also where the rows after them are renumbered to close the gap."""
    statements = [f"DELETE FROM rows WHERE seq IN ({', '.join(map(str, rows))})"]
    if closed_up:
        later = range(max(rows) + 1, 5)
        statements += [f"UPDATE rows SET seq = {n - len(rows)} WHERE seq = {n}" for n in later]
    tamper(busy, *statements)
    with pytest.raises(VerificationError, match=f"row {min(rows)} "):
        busy.verify_chain()


def test_a_forged_row_at_the_end_is_named(busy):
    """Without the digest that follows from its content, a fifth row is refused."""
    tamper(
        busy,
        "INSERT INTO rows SELECT 5, 'note', body, digest, 'forged' FROM rows WHERE seq = 4",
    )
    with pytest.raises(VerificationError, match="row 5 "):
        busy.verify_chain()


def test_a_rewritten_chain_is_found_by_the_echo_alone(busy, key, tmp_path):
    """Who recomputes every digest leaves a chain that holds, but not the coordinator's head."""
    head = busy.head()
    forged = Ledger.create(tmp_path / "forged.sqlite", lifetime_epsilon=CAP, delta=DELTA)
    forged.reserve("knee", PLAN, STUDY, delta=DELTA)
    for number in range(3):
        cheap = ROUND if number else []
        forged.commit(key(number), f"request-{number}", f"reply-{number}", cheap)
    assert forged.verify_chain().length == head.length
    with pytest.raises(VerificationError, match="does not continue"):
        forged.check_echo(head)


def test_a_write_cut_short_anywhere_leaves_the_row_whole_or_not_at_all(busy, key):
    """The write-ahead log of a commit, cut at every 256th byte as by a kill or a power cut."""
    path = path_of(busy)
    log = path.with_name(path.name + "-wal")
    with closing(sqlite3.connect(path)) as reader:  # keeps the log from being folded in
        reader.execute("SELECT count(*) FROM rows").fetchone()
        busy.commit(key(3), "request-3", "reply-3", ROUND)
        before, written = path.read_bytes(), log.read_bytes()
    lengths = []
    for cut in [*range(0, len(written), 256), len(written)]:
        log.with_name(path.name + "-shm").unlink(missing_ok=True)
        path.write_bytes(before)
        log.write_bytes(written[:cut])
        lengths.append(reopen(path).head().length)
        reopen(path).commit(key(3), "request-3", "reply-3", ROUND)
        assert reopen(path).head().length == 5
    assert set(lengths) == {4, 5}
    assert lengths == sorted(lengths)
