"""MedicalNet's network computes what its paper's does, not what MONAI's ResNet does."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from voxfed.models.quality.medicalnet import medicalnet


def normalised(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    shape = (1, -1, 1, 1, 1)
    deviation = (weights[f"{name}.running_var"] + 1e-5).sqrt().reshape(shape)
    centred = (x - weights[f"{name}.running_mean"].reshape(shape)) / deviation
    return centred * weights[f"{name}.weight"].reshape(shape) + weights[f"{name}.bias"].reshape(
        shape
    )


def resnet10(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """Return the features by the paper's table: the last two groups keep the grid, dilated."""
    x = functional.conv3d(x, weights["conv1.weight"], stride=2, padding=3)
    x = functional.relu(normalised(x, weights, "bn1"))
    x = functional.max_pool3d(x, 3, stride=2, padding=1)
    for group, stride, spread in (
        ("layer1.0", 1, 1),
        ("layer2.0", 2, 1),
        ("layer3.0", 1, 2),
        ("layer4.0", 1, 4),
    ):
        y = functional.conv3d(
            x, weights[f"{group}.conv1.weight"], stride=stride, padding=spread, dilation=spread
        )
        y = functional.relu(normalised(y, weights, f"{group}.bn1"))
        y = functional.conv3d(y, weights[f"{group}.conv2.weight"], padding=spread, dilation=spread)
        y = normalised(y, weights, f"{group}.bn2")
        if group != "layer1.0":
            x = functional.conv3d(x, weights[f"{group}.downsample.0.weight"], stride=stride)
            x = normalised(x, weights, f"{group}.downsample.1")
        x = functional.relu(x + y)
    return x.mean((2, 3, 4))


def test_it_computes_what_the_paper_describes() -> None:
    """MONAI strides where MedicalNet dilates: the same weights would give other features."""
    draws = torch.Generator().manual_seed(0)
    network = medicalnet(10).to_empty(device="cpu").eval()
    for name, x in network.state_dict().items():
        if x.is_floating_point():
            scale = 1.0 if x.ndim == 1 else (2 / x[0].numel()) ** 0.5
            noise = torch.randn(x.shape, generator=draws) * scale
            x.copy_(noise.abs() + 0.5 if name.endswith(("var", "bn2.weight")) else noise)
    volume = torch.rand(1, 1, 32, 24, 24, generator=draws) * 2 - 1
    with torch.no_grad():
        found = network(volume)
    expected = resnet10(volume, network.state_dict())
    assert found.shape == (1, 512)
    # two orders of summing in float32
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.std()))


def by_hand(blocks: list[int], expansion: int) -> int:
    """Return the parameters of 3D ResNets by the table of He et al. 2016, kernels made cubes."""
    total, inputs = 64 * 7**3 + 2 * 64, 64
    for planes, repeats in zip((64, 128, 256, 512), blocks, strict=True):
        outputs = planes * expansion
        for place in range(repeats):
            if expansion == 1:
                total += 27 * planes * (inputs + planes) + 2 * 2 * planes
            else:
                total += planes * (inputs + 27 * planes + outputs) + 2 * (2 * planes + outputs)
            if place == 0 and inputs != outputs:
                total += inputs * outputs + 2 * outputs
            inputs = outputs
    return total


@pytest.mark.parametrize(
    ("depth", "blocks", "expansion", "megabytes"),
    [(10, [1, 1, 1, 1], 1, 57.4), (50, [3, 4, 6, 3], 4, 184.6)],
)
def test_it_has_the_published_size(
    depth: int, blocks: list[int], expansion: int, megabytes: float
) -> None:
    """Published files are 57 and 185 MB in float32: backbone only, no bias in the shortcuts."""
    network = medicalnet(depth)
    parameters = sum(weight.numel() for weight in network.parameters())
    assert parameters == by_hand(blocks, expansion)
    assert round(parameters * 4 / 1e6, 1) == megabytes
    assert "layer1.0.downsample.0.bias" not in network.state_dict()
