"""How likely a grid of codes is: causal convolutions over the codes (van den Oord et al. 2017)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .causal import CausalNetwork

DILATIONS = (1, 2, 4, 1, 2, 4)


class CausalCodes(nn.Module):
    """The PixelCNN prior of the VQ-VAE, in three dimensions.

    Args:
        grid: of the codes, (D, H, W).
        entries: of the codebook.
        channels: inside.
    """

    def __init__(self, grid: tuple[int, int, int], entries: int, channels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(entries, channels)
        self.network = CausalNetwork(grid, channels, channels, entries, DILATIONS)

    def forward(self, indices: Tensor) -> Tensor:
        """Return the log probability of codes (B, d, h, w), (B,), in nats."""
        rows = self.embedding(indices.flatten(1)).transpose(1, 2)
        logits = self.network(rows.reshape(len(rows), -1, *indices.shape[1:]))
        return -functional.cross_entropy(logits, indices, reduction="none").flatten(1).sum(1)

    @torch.no_grad()
    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw codes (n, d, h, w), one after the other."""
        drawn: list[Tensor] = []

        def choose(logits: Tensor) -> Tensor:
            drawn.append(choose_codes(logits, generator))
            chosen: Tensor = self.embedding(drawn[-1])
            return chosen

        self.network.draw(n, self.embedding.embedding_dim, choose)
        return torch.stack(drawn, dim=1).reshape(n, *self.network.shape)


def choose_codes(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one code for each row of logits (B, K), (B,), by the generator on its device."""
    probabilities = logits.softmax(1).to(generator.device)
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0].to(logits.device)
