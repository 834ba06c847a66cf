"""The errors of voxfed, one tree.

    VoxfedError               exit 1
    ├── UsageError            exit 2  an option, a key or a file that is not what it should be
    │   ├── PlanError                 a study file with wrong, missing or unknown keys
    │   ├── SettingsError             site.toml or coordinator.toml
    │   └── VolumeError               a scan that cannot be used
    ├── Refusal               exit 3  a policy, a limit or a budget forbids it
    │   ├── LimitRefusal              the plan asks for more than the site allows
    │   ├── BudgetExhausted           the ledger cannot pay
    │   └── CohortChanged             a file differs from what was approved
    ├── VerificationError     exit 4  a digest, signature, chain or lineage does not hold
    ├── WireError             exit 1  a message that is garbled, too large or of another version
    └── ProcessError          exit 1  a process, port or device that is not there
        └── DiskError                 a disk without room, or a folder that cannot be written

Every error says what was wrong, `got X, expected Y`, and what to do. Texts stay on the machine
where they are raised: across the wire a site sends only a `RefusalCode` (study/messages.py).
"""

from __future__ import annotations


class VoxfedError(Exception):
    """Says what went wrong, what was got and expected, and what to do about it.

    Args:
        what: the fault, lower case, without a full stop.
        got: the value found, if one was.
        expected: what it should have been.
        hint: what the person should do next.
    """

    exit_code = 1

    def __init__(
        self, what: str, *, got: object = None, expected: object = None, hint: str = ""
    ) -> None:
        self.what, self.got, self.expected, self.hint = what, got, expected, hint
        super().__init__(self.message)

    @property
    def message(self) -> str:
        """The fault in one line, with what was got and what was expected."""
        parts = []
        if self.got is not None:
            parts.append(f"got {self.got}")
        if self.expected is not None:
            parts.append(f"expected {self.expected}")
        return f"{self.what} ({', '.join(parts)})" if parts else self.what


class UsageError(VoxfedError):
    """A wrong option, key or file."""

    exit_code = 2


class PlanError(UsageError):
    """A study file with wrong, missing or unknown keys."""


class SettingsError(UsageError):
    """A site.toml or coordinator.toml with wrong, missing or unknown keys."""


class VolumeError(UsageError):
    """A scan that cannot be used; `reason` and `hint` never quote the file's header text."""


class Refusal(VoxfedError):
    """A policy, a limit or a budget forbids it."""

    exit_code = 3


class LimitRefusal(Refusal):
    """A plan asks for more than the site allows."""


class BudgetExhausted(Refusal):
    """The ledger cannot pay for what is asked."""


class CohortChanged(Refusal):
    """A file differs from what was approved."""


class VerificationError(VoxfedError):
    """A digest, a signature, a chain or a lineage does not hold."""

    exit_code = 4


class WireError(VoxfedError):
    """A message that is garbled, too large or of another version."""


class ProcessError(VoxfedError):
    """A process, port or device that is not there."""


class DiskError(ProcessError):
    """A disk without room, or a folder that cannot be written."""
