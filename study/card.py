"""Card: who someone is in the federation: a role, a name and a public key."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from .errors import UsageError
from .files import write as write_file
from .identity import PublicKey

Role = Literal["coordinator", "officer", "site"]


@dataclass(frozen=True)
class Card:
    """A public file to hand over; compare `key.identifier` by telephone before trusting it."""

    role: Role
    name: str
    key: PublicKey

    @classmethod
    def from_facts(cls, facts: Any, *, what: str) -> Card:
        """Read a card from JSON values; raise UsageError saying what is wrong with `what`."""
        try:
            role, name, key = facts["role"], facts["name"], str(facts["key"])
        except (KeyError, TypeError):
            raise UsageError(
                f"{what} is not a card", expected="JSON with role, name, key"
            ) from None
        if role not in get_args(Role) or not isinstance(name, str):
            raise UsageError(
                f"{what} has another role", got=role, expected=" or ".join(get_args(Role))
            )
        return cls(role, name, PublicKey.from_text(key))

    @classmethod
    def read(cls, path: Path) -> Card:
        """Read a card from a file; raise UsageError where it is not one."""
        try:
            facts = json.loads(path.read_bytes())
        except OSError as fault:
            raise UsageError(f"{path} cannot be read: {fault.strerror}") from None
        except ValueError:
            raise UsageError(f"{path} is not a card", expected="JSON") from None
        return cls.from_facts(facts, what=str(path))

    def facts(self) -> dict[str, str]:
        """Return the card as JSON values."""
        return {"role": self.role, "name": self.name, "key": self.key.text}

    def write(self, path: Path) -> None:
        """Write the card whole or not at all."""
        write_file(path, json.dumps(self.facts(), indent=1).encode() + b"\n")
