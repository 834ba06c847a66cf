"""Files: whole or not at all, also when the disk is full or the process dies in the middle."""

import hashlib
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from voxfed.study.errors import DiskError, ProcessError, UsageError
from voxfed.study.files import digest, new_folder, write

# A file-size limit gives the same partial write and OSError as a full disk.
FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from voxfed.study.errors import ProcessError
from voxfed.study.files import write
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write(Path(sys.argv[1]), b"n" * 1_000_000)
except ProcessError as fault:
    print(fault.message, "|", fault.hint)
"""

KILLED = """
import os, signal, sys
from pathlib import Path
from voxfed.study import files
os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)
files.write(Path(sys.argv[1]), b"new")
"""


def test_writes_content_and_mode(tmp_path: Path) -> None:
    """Folders are made on the way; the mode is the one asked for whatever the umask."""
    path = tmp_path / "a" / "b"
    write(path, b"x" * 70_000, mode=0o600)
    assert path.read_bytes() == b"x" * 70_000
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    """A partial write never shows: the old bytes stay, no temporary file is left, one error."""
    path = tmp_path / "ledger"
    path.write_bytes(b"old")
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], check=True, capture_output=True, text=True
    )
    assert "ledger cannot be written: File too large | free space" in run.stdout
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_kill_before_the_rename_leaves_the_old_file(tmp_path: Path) -> None:
    """Killed while its bytes reach the disk, a writer has not touched the file itself."""
    path = tmp_path / "ledger"
    path.write_bytes(b"old")
    run = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert run.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"


def test_bytes_reach_the_disk_before_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The content is fsynced, then renamed, then the folder is: a power cut keeps one or other."""
    calls = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda h: (calls.append("fsync"), fsync(h))[1])
    monkeypatch.setattr(Path, "replace", lambda a, b: (calls.append("rename"), replace(a, b))[1])
    write(tmp_path / "x", b"content")
    assert calls == ["fsync", "rename", "fsync"]


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    """A path that cannot be made is one clear error."""
    (tmp_path / "file").touch()
    with pytest.raises(ProcessError, match="cannot be written"):
        write(tmp_path / "file" / "x", b"")


def test_digest(tmp_path: Path) -> None:
    """The digest is SHA-256 of the whole file, also over one read buffer."""
    (tmp_path / "x").write_bytes(b"ab" * 300_000)
    assert digest(tmp_path / "x") == hashlib.sha256(b"ab" * 300_000).hexdigest()


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    """Whatever stops the writing, no half folder and no draft stays behind."""
    with new_folder(tmp_path / "deep" / "whole") as draft:
        write(draft / "a" / "b", b"1")
        assert not (tmp_path / "deep" / "whole").exists()
    assert (tmp_path / "deep" / "whole" / "a" / "b").read_bytes() == b"1"
    assert (tmp_path / "deep" / "whole").stat().st_mode & 0o777 == 0o755

    def stop() -> None:
        with new_folder(tmp_path / "deep" / "half") as draft:
            write(draft / "a", b"1")
            raise KeyError

    with pytest.raises(KeyError):
        stop()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["whole"]


def test_a_folder_that_exists_or_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """A release or an export never replaces another."""
    with pytest.raises(UsageError, match="exists already"), new_folder(tmp_path):
        pass
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DiskError, match="cannot be written"), new_folder(tmp_path / "file" / "x"):
        pass
