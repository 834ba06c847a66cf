"""Vector quantisation with a codebook that moves by gradient alone."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class Quantised(NamedTuple):
    """Features replaced by entries of a codebook.

    Attributes:
        vectors: (B, C, *grid), the entries; their gradient is handed to the features unchanged.
        indices: int64 (B, *grid), which entries they are.
        error: (B,), what entries and features pay for being apart, the mean over the grid.
    """

    vectors: Tensor
    indices: Tensor
    error: Tensor


class Codebook(nn.Module):
    """Entries on a sphere, each feature replaced by the nearest (van den Oord et al. 2017).

    The usual moving averages of entries would carry raw features of patients past clipping and
    noise; here the first loss of the paper moves the entries, volume by volume, as any weight.
    Features and entries have one length, so that no entry lies out of reach (Yu et al. 2022), and
    the features of a volume are centred and scaled over its own grid, so that they point all ways
    from the first step on: no entry starts unused.

    Args:
        entries: how many there are.
        width: channels of a feature; few keep the entries in use.
        commitment: weight of the term that draws the features to the entries.
    """

    def __init__(self, entries: int, width: int, commitment: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(entries, width)
        self.commitment = commitment
        self.length = math.sqrt(width)

    def forward(self, features: Tensor) -> Quantised:
        """Quantise features (B, C, *grid), of two places or more."""
        grid = features.shape[2:]
        spread = functional.instance_norm(features.flatten(2))
        rows = functional.normalize(spread.transpose(1, 2), dim=2)
        with torch.no_grad():
            entries = functional.normalize(self.embedding.weight, dim=1)
            indices = (rows @ entries.T).argmax(2)
        nearest = functional.normalize(self.embedding(indices), dim=2)
        pull = (rows.detach() - nearest).square().sum(2)
        commitment = (rows - nearest.detach()).square().sum(2)
        through = self.length * (rows + (nearest - rows).detach())
        return Quantised(
            through.transpose(1, 2).reshape(len(rows), -1, *grid),
            indices.reshape(len(rows), *grid),
            (pull + self.commitment * commitment).mean(1),
        )

    def look_up(self, indices: Tensor) -> Tensor:
        """Return the entries (B, C, *grid) that indices (B, *grid) name."""
        rows: Tensor = self.embedding(indices.flatten(1))
        found = self.length * functional.normalize(rows, dim=2).transpose(1, 2)
        return found.reshape(len(rows), -1, *indices.shape[1:])
