"""How likely a grid of codes is: MONAI's transformer over the codes in raster order."""

from __future__ import annotations

import math

import torch
from monai.networks.blocks.transformerblock import TransformerBlock
from monai.networks.nets.transformer import DecoderOnlyTransformer
from torch import Tensor, nn
from torch.nn import functional

from .causal_codes import choose_codes


class TransformerCodes(nn.Module):
    """A causal transformer; each grid begins with a token that tells its class.

    Args:
        grid: of the codes, (D, H, W).
        entries: of the codebook.
        classes: beginnings, 1 where there is no class.
        width: of the attention layers, a multiple of the heads.
        depth: blocks.
        heads: of each block.
    """

    def __init__(
        self,
        grid: tuple[int, int, int],
        entries: int,
        classes: int,
        *,
        width: int,
        depth: int,
        heads: int,
    ) -> None:
        super().__init__()
        self.grid, self.entries = grid, entries
        self.network = DecoderOnlyTransformer(
            num_tokens=entries + classes,
            max_seq_len=math.prod(grid),
            attn_layers_dim=width,
            attn_layers_depth=depth,
            attn_layers_heads=heads,
            use_flash_attention=True,
        )
        for module in list(self.network.modules()):
            # what MONAI makes and a causal block without cross-attention never uses
            if isinstance(module, TransformerBlock):
                module.register_module("norm_cross_attn", nn.Identity())
                del module.attn.causal_mask
        self.network.to_logits = nn.Linear(width, entries)

    def forward(self, indices: Tensor, classes: Tensor) -> Tensor:
        """Return the log probability of codes (B, d, h, w) of classes (B,), (B,), in nats."""
        tokens = indices.flatten(1)
        before = torch.cat([self.entries + classes[:, None], tokens[:, :-1]], dim=1)
        logits = self.network(before).transpose(1, 2)
        return -functional.cross_entropy(logits, tokens, reduction="none").sum(1)

    @torch.no_grad()
    def draw(self, classes: Tensor, generator: torch.Generator) -> Tensor:
        """Draw the codes (n, d, h, w) of classes (n,), one after the other."""
        tokens = self.entries + classes[:, None]
        for _ in range(math.prod(self.grid)):
            chosen = choose_codes(self.network(tokens)[:, -1], generator)
            tokens = torch.cat([tokens, chosen[:, None]], dim=1)
        return tokens[:, 1:].reshape(len(classes), *self.grid)
