"""All randomness of a forward pass, so that a second pass can draw the same again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Draws:
    """The generator of a loss, and the global states that layers such as dropout draw from.

    Args:
        generator: what the loss is given, on the device of the volumes.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        cuda = generator.device.type == "cuda"
        self._devices = [generator.device] if cuda else []

    @contextmanager
    def put_back(self) -> Iterator[None]:
        """Set every state back at the end: what follows draws the same again."""
        state = self.generator.get_state()
        with torch.random.fork_rng(devices=self._devices):
            yield
        self.generator.set_state(state)
