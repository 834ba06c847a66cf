"""Warm: what the worker keeps in memory between the rounds of one study."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .approval import Approval
    from .scans import Scans
    from .training import Trainer


@dataclass
class Warm:
    """A study's approval, its model on the device, and its scans."""

    approval: Approval
    trainer: Trainer
    scans: Scans
