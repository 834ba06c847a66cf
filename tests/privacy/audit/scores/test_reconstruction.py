"""The reconstruction score by hand."""

import torch
from torch import Tensor
from voxfed.models.base import Batch
from voxfed.privacy.audit.scores.reconstruction import SCORES
from voxfed.privacy.audit.scores.score import Context


class Shift:
    """Gives volumes back with a known error in half of the voxels."""

    def __init__(self, error: float) -> None:
        self.error = error

    def reconstruct(self, batch: Batch) -> Tensor:
        off = torch.zeros_like(batch.volumes)
        off[..., ::2] = self.error
        return batch.volumes + off


def test_it_is_minus_the_mean_squared_error() -> None:
    """A smaller error is a higher score."""
    batch = Batch(torch.rand(1, 1, 4, 4, 4))
    found = [
        SCORES[0].prepare(Shift(error), Context(seed=0))(batch)  # type: ignore[arg-type]
        for error in (0.5, -0.25)
    ]
    assert torch.allclose(torch.stack(found), torch.tensor([[-0.125], [-0.03125]]))
