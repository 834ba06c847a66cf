"""Codes of every reduction give volumes of the right shape, and what does not fit is refused."""

import pytest
import torch
from voxfed.models.codes import Codes, CodesSpec


@pytest.mark.parametrize(("patch", "channels"), [(1, (8,)), (3, (8,)), (1, (8, 8)), (2, (8, 8))])
def test_shapes(patch: int, channels: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    codes = Codes(CodesSpec(patch=patch, channels=channels, groups=4, entries=9), (12, 12, 24))
    volumes = torch.rand(2, 1, 12, 12, 24)
    found = codes.encode(volumes)
    assert found.indices.shape == (2, *codes.grid)
    decoded, loss = codes(volumes)
    assert decoded.shape == volumes.shape
    assert loss.shape == (2,)


def test_drawn_codes_are_the_decoded_volume() -> None:
    """What is looked up again is what the codebook had put in place of the features."""
    torch.manual_seed(0)
    codes = Codes(CodesSpec(channels=(8, 8), groups=4, entries=9), (8, 8, 8))
    for weight in codes.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    volumes = torch.rand(2, 1, 8, 8, 8)
    with torch.no_grad():
        decoded, _ = codes(volumes)
        again = codes.draw(codes.encode(volumes).indices)
    assert torch.allclose(decoded.clamp(-1, 1), again, atol=1e-5)


def test_the_loss_is_the_error_and_the_codebooks() -> None:
    """Oracle: by hand, for absolute and for squared errors."""
    for kind in ("l1", "l2"):
        torch.manual_seed(0)
        settings = {"channels": (8, 8), "groups": 4, "quantisation": 0.3, "reconstruction": kind}
        codes = Codes(CodesSpec(**settings), (8, 8, 8))
        volumes = torch.rand(2, 1, 8, 8, 8)
        with torch.no_grad():
            decoded, loss = codes(volumes)
            error = decoded - volumes
            size = (error.abs() if kind == "l1" else error**2).mean((1, 2, 3, 4))
            expected = size + 0.3 * codes.encode(volumes).error
        assert torch.allclose(loss, expected)


def test_one_code_a_volume_is_refused() -> None:
    with pytest.raises(ValueError, match="one code"):
        CodesSpec().grid((4, 4, 4))
    with pytest.raises(ValueError, match="does not divide"):
        CodesSpec(channels=(6,), groups=4)
