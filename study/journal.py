"""Journal: an append-only log in which each line carries the digest of the line before it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .errors import ProcessError, VerificationError
from .identity import canonical

GENESIS = "0" * 64


class Journal:
    """A file of JSON lines; each holds the time, the event, and the digest of the line before.

    Assumes: who can write the file can also cut its tail; only a head kept elsewhere shows that.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, event: str, **facts: Any) -> str:
        """Write one line, fsync it, and return its digest.

        Raises:
            ProcessError: the file cannot be written.
        """
        try:
            return self._append(event, facts)
        except OSError as fault:
            raise ProcessError(f"{self.path} cannot be written: {fault.strerror}") from None

    def _append(self, event: str, facts: dict[str, Any]) -> str:
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        # Unbuffered, so that a write for which the disk has no room fails once and here.
        with os.fdopen(handle, "r+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            content = file.read()
            whole = content[: content.rfind(b"\n") + 1]
            file.truncate(len(whole))  # a line that a crash cut short never counted
            last = whole.rstrip(b"\n").rsplit(b"\n", 1)[-1] if whole else b""
            previous = hashlib.sha256(last).hexdigest() if last else GENESIS
            time = datetime.now(UTC).isoformat(timespec="milliseconds")
            line = canonical({"time": time, "event": event, "previous": previous, **facts})
            file.seek(len(whole))
            left = memoryview(line + b"\n")
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
        return hashlib.sha256(line).hexdigest()

    def entries(self) -> Iterator[dict[str, Any]]:
        """Yield the lines in order; raise VerificationError at the first that does not follow."""
        if not self.path.exists():
            return
        previous = GENESIS
        content = self.path.read_bytes()
        for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), start=1):
            try:
                entry = json.loads(line)
            except ValueError:
                entry = {}
            if not isinstance(entry, dict) or entry.get("previous") != previous:
                raise VerificationError(
                    f"{self.path.name} was altered at line {number}",
                    got=str(entry.get("previous"))[:16] if isinstance(entry, dict) else "no entry",
                    expected=previous[:16],
                    hint="keep the file as evidence and restore it from a backup",
                )
            previous = hashlib.sha256(line).hexdigest()
            yield entry

    def head(self) -> str:
        """Digest of the last line after checking the whole chain; 64 zeros for an empty journal."""
        for _ in self.entries():
            pass
        content = self.path.read_bytes() if self.path.exists() else b""
        lines = content[: content.rfind(b"\n") + 1].splitlines()
        return hashlib.sha256(lines[-1]).hexdigest() if lines else GENESIS
