"""Journal: any edited line is found, a crash's tail is cut, and processes never interleave."""

import subprocess
import sys
from pathlib import Path

import pytest
from voxfed.study.errors import ProcessError, VerificationError
from voxfed.study.journal import GENESIS, Journal

WRITER = """
import sys
from pathlib import Path
from voxfed.study.journal import Journal
journal = Journal(Path(sys.argv[1]))
for number in range(40):
    journal.append("event", writer=sys.argv[2], number=number)
"""

FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from voxfed.study.errors import ProcessError
from voxfed.study.journal import Journal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    Journal(Path(sys.argv[1])).append("long", text="x" * 5000)
except ProcessError as fault:
    print(fault.message)
"""


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    journal = Journal(tmp_path / "journal.jsonl")
    for number in range(4):
        journal.append("round", number=number, name="zähler")
    return journal


def test_entries_come_back_in_order(journal: Journal) -> None:
    """What was noted is read, with its time and the link to the line before."""
    entries = list(journal.entries())
    assert [entry["number"] for entry in entries] == [0, 1, 2, 3]
    assert entries[0]["previous"] == GENESIS
    assert all(entry["time"].endswith("+00:00") for entry in entries)


def test_head_is_the_last_digest(journal: Journal) -> None:
    """The head that is signed elsewhere binds every line."""
    assert journal.append("last") == journal.head()
    assert Journal(journal.path.with_name("absent")).head() == GENESIS


@pytest.mark.parametrize("number", range(3))
def test_an_edited_line_is_found(journal: Journal, number: int) -> None:
    """Any line but the last, changed by one byte, breaks the chain (the head holds the last)."""
    lines = journal.path.read_bytes().splitlines(keepends=True)
    lines[number] = lines[number].replace(b"round", b"rouna")
    journal.path.write_bytes(b"".join(lines))
    with pytest.raises(VerificationError, match=f"line {number + 2}"):
        journal.head()


@pytest.mark.parametrize("keep", [[1, 2, 3], [0, 2, 3], [0, 2, 1, 3], [0, 0, 1, 2, 3]])
def test_lines_left_out_moved_or_doubled_are_found(journal: Journal, keep: list[int]) -> None:
    """Only the order in which they were written follows."""
    lines = journal.path.read_bytes().splitlines(keepends=True)
    journal.path.write_bytes(b"".join(lines[number] for number in keep))
    with pytest.raises(VerificationError, match="altered at line"):
        list(journal.entries())


@pytest.mark.parametrize("text", [b"[]\n", b"3\n", b"{\n", b"\n", b"\xff\n"])
def test_what_is_no_entry_is_found(journal: Journal, text: bytes) -> None:
    """A garbled line is a finding and no traceback."""
    journal.path.write_bytes(journal.path.read_bytes() + text)
    with pytest.raises(VerificationError, match="line 5"):
        list(journal.entries())


@pytest.mark.parametrize("cut", [1, 20])
def test_a_crash_in_the_middle_of_a_line(journal: Journal, cut: int) -> None:
    """A line cut short never counted: it is not read, and the next one takes its place."""
    journal.path.write_bytes(journal.path.read_bytes()[:-cut])
    assert [entry["number"] for entry in journal.entries()] == [0, 1, 2]
    journal.append("round", number=9)
    assert [entry["number"] for entry in journal.entries()] == [0, 1, 2, 9]


def test_two_processes_at_once(tmp_path: Path) -> None:
    """Under the lock no line is lost, cut or chained to the wrong one."""
    path = tmp_path / "journal.jsonl"
    runs = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), name]) for name in ("a", "b")
    ]
    assert [run.wait() for run in runs] == [0, 0]
    entries = list(Journal(path).entries())
    for name in ("a", "b"):
        assert [e["number"] for e in entries if e["writer"] == name] == list(range(40))


def test_a_full_disk_is_one_error(journal: Journal) -> None:
    """The line that found no room is not there, those before are, and no traceback shows."""
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(journal.path)],
        check=True,
        capture_output=True,
        text=True,
    )
    assert "journal.jsonl cannot be written: File too large" in run.stdout
    assert len(list(journal.entries())) == 4
    journal.append("again")
    assert len(list(journal.entries())) == 5


def test_a_text_that_is_no_unicode(journal: Journal) -> None:
    """A file name of stray bytes, as Linux allows them, is noted and not an exception."""
    journal.append("refused", error="patient \udcff")
    entry = list(journal.entries())[-1]
    assert entry["error"] == "patient \udcff"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    """One clear error with the path."""
    with pytest.raises(ProcessError, match="cannot be written"):
        Journal(tmp_path / "absent" / "journal.jsonl").append("x")
