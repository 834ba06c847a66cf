"""Inspection: each network that would leak past the engine is refused, and a sound one is not."""

import pytest
import torch
from torch import Tensor, nn
from voxfed.models.base import Batch, Family, Step
from voxfed.models.registry import build
from voxfed.privacy.inspection import inspect_family
from voxfed.study.errors import Refusal
from voxfed.study.plan import StudyPlan

SHAPE = (8, 8, 8)
PLAN = """
name = "x"
family = "vae"
rounds = 1
local_steps = 1
expected_patients = 2
[settings]
channels = [8, 8]
[volumes]
shape = [8, 8, 8]
spacing = [6.0, 6.0, 6.0]
[optimiser]
learning_rate = 3e-4
[privacy]
epsilon = 8.0
"""


class Toy(Family):
    """A convolution, one more layer, and a loss a volume."""

    stages = ("only",)

    def __init__(self, layer: nn.Module, *, reads_patients: bool = True) -> None:
        super().__init__()
        self.convolution = nn.Conv3d(1, 4, 3, padding=1)
        self.layer = layer
        self.reads_patients = reads_patients

    def steps(self, stage: str) -> tuple[Step, ...]:
        names = tuple(name for name, _ in self.named_parameters())
        return (Step("turn", names, self.reads_patients, self.loss),)

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        return self.layer(self.convolution(batch.volumes)).square().flatten(1).mean(1)

    def sample(
        self, n: int, *, condition: Tensor | None = None, generator: torch.Generator
    ) -> Tensor:
        return torch.zeros((n, 1, *SHAPE))


class Average(nn.Module):
    """Remembers what it saw, as an EMA codebook does."""

    def __init__(self, *, persistent: bool = True) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros(4), persistent=persistent)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.average.mul_(0.9).add_(x.detach().mean((0, 2, 3, 4)), alpha=0.1)
        return x


class Drifting(nn.Module):
    """Moves a frozen weight by what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.codebook = nn.Parameter(torch.zeros(4), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        self.codebook.data.add_(x.detach().mean())
        return x


class Centred(nn.Module):
    """Subtracts the mean over the batch: batch statistics without a layer's name."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class Following(nn.Module):
    """Adds to each volume the ones before it in the batch, never those after it."""

    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(0)


class Summed(Toy):
    """Returns one loss for the whole batch."""

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        return super().loss(batch, generator).mean()


@pytest.mark.parametrize(
    "layer", [nn.Identity(), nn.GroupNorm(2, 4), nn.InstanceNorm3d(4), nn.Dropout(0.0)]
)
def test_a_sound_network_passes(layer: nn.Module) -> None:
    """The check refuses for a reason: networks that keep patients apart pass, unchanged."""
    family = Toy(layer)
    before = {name: tensor.clone() for name, tensor in family.state_dict().items()}
    family.eval()
    inspect_family(family, SHAPE)
    assert not family.training
    assert all(torch.equal(before[name], t) for name, t in family.state_dict().items())
    assert all(parameter.grad is None for parameter in family.parameters())


def test_the_vae_passes() -> None:
    """The family that is shipped is sound."""
    inspect_family(build(StudyPlan.from_text(PLAN.encode())), SHAPE)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.BatchNorm3d(4), "layer normalises over the batch"),
        (nn.BatchNorm3d(4, track_running_stats=False), "normalises over the batch"),
        (nn.SyncBatchNorm(4), "normalises over the batch"),
        (Centred(), "mixes the volumes of two patients"),
        (Following(), "mixes the volumes of two patients"),
        (Average(), r"layer\.average changes"),
        (Average(persistent=False), r"layer\.average changes"),
        (nn.InstanceNorm3d(4, track_running_stats=True), r"layer\.running_mean changes"),
        (Drifting(), r"layer\.codebook changes"),
    ],
)
def test_a_leaking_network_is_refused(layer: nn.Module, reason: str) -> None:
    """Each way past the engine that is known is found by what the network does."""
    with pytest.raises(Refusal, match=reason):
        inspect_family(Toy(layer), SHAPE)


def test_one_loss_for_the_batch_is_refused() -> None:
    """Without one loss a volume no patient's gradient can be told apart."""
    with pytest.raises(Refusal, match="mixes the volumes"):
        inspect_family(Summed(nn.Identity()), SHAPE)


def test_a_step_that_reads_no_patient_is_given_no_batch() -> None:
    """Its loss is never called with volumes, not even here."""
    inspect_family(Toy(Centred(), reads_patients=False), SHAPE)
