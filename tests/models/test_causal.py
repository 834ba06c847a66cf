"""No voxel sees itself or a later one, and drawing voxel by voxel computes the same function."""

import pytest
import torch
from voxfed.models.causal import CausalNetwork

SHAPE = (3, 4, 5)


def make(dilations: tuple[int, ...] = (1, 2, 1)) -> CausalNetwork:
    torch.manual_seed(0)
    return CausalNetwork(SHAPE, inputs=2, channels=4, outputs=3, dilations=dilations).double()


@pytest.mark.parametrize("dilations", [(1,), (1, 2, 1)])
def test_no_voxel_sees_itself_or_a_later_one(dilations: tuple[int, ...]) -> None:
    """Exact, by autograd: the Jacobian is strictly lower triangular in raster order."""
    network = make(dilations)
    jacobian = torch.autograd.functional.jacobian(
        lambda x: network(x)[0].sum(0).flatten(), torch.randn(1, 2, *SHAPE).double()
    )
    voxels = 3 * 4 * 5
    seen = jacobian.reshape(voxels, 2, voxels).abs().sum(1)
    assert torch.equal(seen.triu(), torch.zeros_like(seen))
    if len(dilations) > 1:  # enough layers to see the whole past
        assert (seen.tril(-1) > 0).sum() == voxels * (voxels - 1) // 2


def test_drawing_voxel_by_voxel_is_the_forward_pass() -> None:
    """Oracle: the forward pass of what was drawn gives the outputs that it was drawn from."""
    network, used = make(), []
    noise = torch.Generator().manual_seed(1)

    def choose(outputs: torch.Tensor) -> torch.Tensor:
        used.append(outputs)
        return outputs[:, :2] + torch.randn(2, 2, generator=noise)

    drawn = network.draw(2, 2, choose)
    with torch.no_grad():
        expected = network(drawn).flatten(2)
    assert torch.allclose(torch.stack(used, dim=2), expected, atol=1e-10)
    assert list(network.buffers()) == []
