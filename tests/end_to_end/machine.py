"""What tests ask of the machine: ports, processes, and patience."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path


def wait_for(holds: Callable[[], object], seconds: float, what: str) -> None:
    """Wait until something holds; fail where it does not within `seconds`."""
    ends = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends, f"waited {seconds} s in vain for {what}"
        time.sleep(0.1)


def free_port() -> int:
    """Return a TCP port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    """Return whether something listens at a port of this machine."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def processes_naming(text: str) -> dict[int, str]:
    """Return the command line of each process whose command line or environment names `text`."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
            seen = command + (entry / "environ").read_bytes()
        except (FileNotFoundError, PermissionError, ProcessLookupError):
            continue
        if text.encode() in seen:
            found[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace")
    return found
