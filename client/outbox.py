"""Outbox: replies on disk before they are charged, so that a crash never costs a second charge."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..privacy.ledger import RoundKey
from ..study.errors import VerificationError
from ..study.files import write


class Outbox:
    """One file a round; a study's earlier rounds go when a later one is put in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, key: RoundKey, reply: bytes) -> str:
        """Write `reply` whole and fsynced, and return its SHA-256."""
        write(self._path(key), reply, mode=0o600)
        return hashlib.sha256(reply).hexdigest()

    def get(self, key: RoundKey, digest: str) -> bytes:
        """Return the committed reply; raise VerificationError where it is gone or altered."""
        path = self._path(key)
        reply = path.read_bytes() if path.exists() else b""
        if hashlib.sha256(reply).hexdigest() != digest:
            raise VerificationError(
                f"the committed reply {path.name} is gone or was altered",
                got=hashlib.sha256(reply).hexdigest()[:12],
                expected=digest[:12],
                hint="the round is charged and cannot be repeated; restore the file from a backup",
            )
        return reply

    def prune(self, key: RoundKey) -> None:
        """Remove the replies of earlier rounds of the same study, branch and stage."""
        for path in self.folder.glob(f"{key.study}.{key.branch}.{key.stage}.*"):
            number = path.name.rsplit(".", 1)[-1]
            if number.isdigit() and int(number) < key.round:
                path.unlink(missing_ok=True)

    def _path(self, key: RoundKey) -> Path:
        return self.folder / f"{key.study}.{key.branch}.{key.stage}.{key.round}"
