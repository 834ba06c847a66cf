"""The ledger's chain: tampering, restored copies, kills and rival processes."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
from voxfed.privacy.accounting import Event
from voxfed.privacy.chain import Head
from voxfed.privacy.ledger import Ledger, RoundKey
from voxfed.study.errors import ProcessError, UsageError, VerificationError

DELTA = 1e-5
CAP = 10.0
PLAN = "a" * 64
STUDY = [Event("sampled-gaussian", 2.0, 0.2, 8), Event("gaussian", 20.0, 1, 8)]
ROUND = [Event("sampled-gaussian", 2.0, 0.2, 1), Event("gaussian", 20.0, 1, 1)]


def key(number, study="knee", branch="main"):
    return RoundKey(study, branch, "autoencoder", number)


@pytest.fixture
def ledger(tmp_path):
    return Ledger.create(tmp_path / "ledger.sqlite", lifetime_epsilon=CAP, delta=DELTA)


@pytest.fixture
def busy(ledger):
    """A ledger with a study of eight rounds, three of them charged: four rows."""
    ledger.reserve("knee", PLAN, STUDY, delta=DELTA)
    for number in range(3):
        ledger.commit(key(number), f"request-{number}", f"reply-{number}", ROUND)
    return ledger


def reopen(path):
    return Ledger.open(path, lifetime_epsilon=CAP, delta=DELTA)


def path_of(ledger):
    return ledger._chain.path


def tamper(ledger, *statements):
    """Changes the file as someone with the operator's rights would: triggers off first."""
    with closing(sqlite3.connect(path_of(ledger), isolation_level=None)) as connection:
        connection.executescript("DROP TRIGGER no_update; DROP TRIGGER no_delete;")
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
def test_an_edited_or_deleted_row_is_found_and_named(busy, statement, row):
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


def test_a_restored_copy_is_found_by_the_echoed_head(busy, tmp_path):
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
    old.commit(key(3), "request-3", "another reply", ROUND)
    with pytest.raises(VerificationError, match="does not continue"):
        old.check_echo(head)
    tamper(busy, "DELETE FROM rows WHERE seq = 5")
    assert busy.verify_chain().length == 4
    with pytest.raises(VerificationError, match="does not continue"):
        busy.check_echo(head)


def test_an_earlier_head_that_the_chain_contains_is_fine(busy):
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


def test_two_studies_in_two_processes_at_once(ledger):
    """Real processes, interleaved at will: sixteen rows, none lost, none twice, one chain."""
    for study in ("knee", "brain"):
        ledger.reserve(study, PLAN, STUDY, delta=DELTA)
    processes = [
        subprocess.Popen([sys.executable, "-c", MANY, path_of(ledger), study])
        for study in ("knee", "brain")
    ]
    assert [process.wait(120) for process in processes] == [0, 0]
    rows = ledger.rows()
    assert len(rows) == 18
    charged = {(row.body["study"], row.body["round"]) for row in rows if row.kind == "charge"}
    assert charged == {(study, number) for study in ("knee", "brain") for number in range(8)}
    assert ledger.left("knee") == ledger.left("brain") == 0


HEADER = """
import os, signal, sys
from pathlib import Path
from voxfed.privacy.accounting import Event
from voxfed.privacy.ledger import Ledger, RoundKey
from voxfed.study.errors import VoxfedError

ROUND = [Event("sampled-gaussian", 2.0, 0.2, 1), Event("gaussian", 20.0, 1, 1)]
path, name = Path(sys.argv[1]), sys.argv[2]
"""

MANY = (
    HEADER
    + """
ledger = Ledger.open(path, lifetime_epsilon=10.0, delta=1e-5)
for number in range(8):
    key = RoundKey(name, "main", "autoencoder", number)
    ledger.commit(key, f"request-{number}", f"reply-{number}", ROUND)
"""
)

RACE = (
    HEADER
    + """
ledger = Ledger.open(path, lifetime_epsilon=10.0, delta=1e-5)
print("ready", flush=True)
sys.stdin.readline()
try:
    ledger.commit(RoundKey("knee", "main", "autoencoder", 7), "request", name, ROUND)
except VoxfedError as error:
    sys.exit(error.exit_code)
"""
)

KILLED = (
    HEADER
    + """
def killed_at(line):
    "Forks a child that kills itself before its line-th line inside the store; True if it did."
    child = os.fork()
    if child == 0:
        seen = 0

        def trace(frame, event, argument):
            nonlocal seen
            if not frame.f_code.co_filename.endswith(("privacy/chain.py", "privacy/ledger.py")):
                return None
            if event == "line":
                seen += 1
                if seen == line:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        sys.settrace(trace)
        key = RoundKey("knee", "main", "autoencoder", 3)
        ledger.commit(key, "request-3", "reply-3", ROUND)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])

original, line = path.read_bytes(), 1
while True:
    path.write_bytes(original)
    ledger = Ledger.open(path, lifetime_epsilon=10.0, delta=1e-5)
    killed = killed_at(line)
    survivors = Ledger.open(path, lifetime_epsilon=10.0, delta=1e-5).rows()
    print(killed, len(survivors), flush=True)
    if not killed:
        break
    # Started again, the round is charged exactly once.
    key = RoundKey("knee", "main", "autoencoder", 3)
    if ledger.begin(key, "request-3", ROUND) is None:
        ledger.commit(key, "request-3", "reply-3", ROUND)
    assert len(ledger.rows()) == 5 and ledger.verify_chain().length == 5
    for companion in ("-wal", "-shm"):
        path.with_name(path.name + companion).unlink(missing_ok=True)
    line += 1
"""
)


def test_a_kill_before_any_line_of_a_commit_leaves_a_valid_chain(busy):
    """Kill -9 before every line that a commit runs: the row is there whole or not at all."""
    result = subprocess.run(
        [sys.executable, "-c", KILLED, path_of(busy), "knee"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    outcomes = [line.split() for line in result.stdout.splitlines()]
    assert len(outcomes) > 60
    lengths = [int(length) for _, length in outcomes]
    assert set(lengths) == {4, 5}
    assert lengths == sorted(lengths)  # before COMMIT nothing, after it the whole row
    assert outcomes[-1] == ["False", "5"]


def test_a_kill_at_any_time_leaves_a_valid_chain(ledger):
    """A process that charges without pause is killed from outside, inside SQLite as well."""
    for study in range(4):
        ledger.reserve(f"study-{study}", PLAN, STUDY, delta=DELTA)
    length = 4
    for study in range(4):
        process = subprocess.Popen([sys.executable, "-c", MANY, path_of(ledger), f"study-{study}"])
        while process.poll() is None and ledger.head().length < length + 2 + study:
            pass
        process.kill()
        process.wait()
        rows = ledger.rows()
        assert length < len(rows) <= length + 8
        charged = [row.body["round"] for row in rows[length:]]
        assert charged == list(range(len(charged)))
        length = len(rows)


def test_two_processes_cannot_both_charge_one_round(busy):
    """Same key and request, other reply bytes, at the same moment: one wins, one is refused."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, path_of(busy), f"reply-{i}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=120)
    assert sorted(process.returncode for process in processes) == [0, 3]
    assert busy.head().length == 5
