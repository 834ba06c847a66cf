"""The demonstration as a visitor runs it, and that nothing of it is left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def _start(folder: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "voxfed.cli", "demo", "--folder", str(folder), *options]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # a shell that runs the tests in the background has children ignore Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def _left_over(folder: Path) -> list[str]:
    """Return the command lines of processes that name the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line:
            found.append(line)
    return found


def _wait_until_gone(folder: Path) -> None:
    ends = time.monotonic() + 90
    while _left_over(folder) and time.monotonic() < ends:
        time.sleep(0.5)
    assert _left_over(folder) == []


@pytest.mark.timeout(1500)
def test_the_whole_job_on_real_ct(short_folder: Path, real_data: Path) -> None:
    """The gate must block the over-trained model and not the private one, on real scans too."""
    folder = short_folder / "d"
    run = _start(folder, "--data", str(real_data / "openkbp_ct"))
    said, _ = run.communicate(timeout=1450)
    assert run.returncode == 0, said[-3000:]
    for words in ("verdict, private", "weights.safetensors was changed", "learns budget"):
        assert words in said
    for picture in ("contact_sheet.png", "epsilon.png"):
        assert (folder / picture).stat().st_size > 10_000
    verdicts = {
        line.split("│")[1].strip(): line for line in said.splitlines() if "verdict," in line
    }
    assert "WARN" in verdicts["verdict, private"]
    assert "BLOCK" in verdicts["verdict, overtrained"]
    assert list((folder / "samples").glob("*.nii.gz"))
    _wait_until_gone(folder)


@pytest.mark.timeout(600)
def test_ctrl_c_leaves_nothing_running(short_folder: Path) -> None:
    """A visitor who stops the demonstration must not find its hospitals running tomorrow."""
    folder = short_folder / "d"
    run = _start(folder)
    socket = folder / "hospital-a" / "run" / "worker.sock"
    ends = time.monotonic() + 240
    while not socket.exists() and time.monotonic() < ends:
        time.sleep(0.5)
    assert socket.exists()
    time.sleep(5)
    os.kill(run.pid, signal.SIGINT)
    run.communicate(timeout=180)
    assert run.returncode == 130
    _wait_until_gone(folder)
