"""Inspection: each network that would leak past the engine is refused, and a sound one is not."""

import pytest
import torch
from monai.networks.nets import VQVAE
from opacus.validators import ModuleValidator
from torch import Tensor, nn
from voxfed.models.base import NO_CONDITION, Batch, Condition, Family, Step
from voxfed.privacy.inspection import example, inspect_family
from voxfed.study.errors import Refusal

SHAPE = (8, 8, 8)


class Toy(Family):
    """A convolution, one more layer, and a loss a volume."""

    stages = ("only",)

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.convolution = nn.Conv3d(1, 4, 3, padding=1)
        self.layer = layer

    def steps(self, stage: str) -> tuple[Step, ...]:
        names = tuple(name for name, _ in self.named_parameters())
        return (Step("turn", names, reads_patients=True, loss=self.loss),)

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        return self.layer(self.convolution(batch.volumes)).square().flatten(1).mean(1)

    def sample(
        self, n: int, *, condition: Condition = NO_CONDITION, generator: torch.Generator
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


class Scaled(nn.Module):
    """Divides by the mean size over the batch, which a volume and its negative share."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.abs().mean()


class Reminded(nn.Module):
    """Adds the last batch it saw, which it keeps outside all parameters and buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.last: Tensor | float = 0.0

    def forward(self, x: Tensor) -> Tensor:
        reminded = x + self.last
        self.last = x.detach().mean((1, 2, 3, 4), keepdim=True)
        return reminded


class Codebook(Toy):
    """MONAI's VQ-VAE, with a loss that looks private: each volume's own error."""

    def __init__(self) -> None:
        super().__init__(nn.Identity())
        self.convolution = nn.Identity()
        self.layer = VQVAE(
            spatial_dims=3,
            in_channels=1,
            out_channels=1,
            channels=(4,),
            num_res_layers=1,
            num_res_channels=(4,),
            downsample_parameters=((2, 4, 1, 1),),
            upsample_parameters=((2, 4, 1, 1, 0),),
            num_embeddings=8,
            embedding_dim=4,
        )

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        return (self.layer(batch.volumes)[0] - batch.volumes).square().flatten(1).mean(1)


class Penalised(Toy):
    """Its loss holds a gradient, as a critic's penalty does."""

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        points = batch.volumes.detach().requires_grad_()
        score = self.layer(self.convolution(points)).square().flatten(1).mean(1)
        (slope,) = torch.autograd.grad(score.sum(), points, create_graph=True)
        return score + slope.square().flatten(1).sum(1)


class Duo(Toy):
    """A critic that reads patients, and a generator that says that it does not."""

    def __init__(self, kind: str) -> None:
        super().__init__(nn.Identity())
        self.generator = nn.Linear(3, 4)
        self.kind = kind
        self.seen: Tensor = torch.zeros(1)

    def steps(self, stage: str) -> tuple[Step, ...]:
        critic = tuple(name for name, _ in self.named_parameters() if "conv" in name)
        made = ("generator.weight", "generator.bias")
        return (
            Step("critic", critic, reads_patients=True, loss=self.loss),
            Step("generator", made, reads_patients=False, loss=self.made),
        )

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        self.seen = batch.volumes.abs().mean()
        return super().loss(batch, generator)

    def made(self, batch: Batch | None, generator: torch.Generator) -> Tensor:
        fakes = self.generator(torch.randn((5, 3), generator=generator))
        if self.kind == "reads":
            fakes = fakes + batch.volumes.mean()
        if self.kind == "remembers":
            fakes = fakes + 1e-3 * self.seen
        if self.kind == "moved":  # the loss keeps its value, only its gradient tells
            fakes = fakes + (self.seen * fakes - (self.seen * fakes).detach())
        return fakes.square().sum(1)


class Summed(Toy):
    """Returns one loss for the whole batch."""

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        return super().loss(batch, generator).mean()


@pytest.mark.parametrize(
    "layer", [nn.Identity(), nn.GroupNorm(2, 4), nn.InstanceNorm3d(4), nn.Dropout(0.5)]
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


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.BatchNorm3d(4), "layer normalises over the batch"),
        (nn.BatchNorm3d(4, track_running_stats=False), "normalises over the batch"),
        (nn.SyncBatchNorm(4), "normalises over the batch"),
        (Centred(), "mixes the volumes of two patients"),
        (Following(), "mixes the volumes of two patients"),
        (Scaled(), "mixes the volumes of two patients"),
        (Reminded(), "mixes the volumes of two patients"),
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


def test_a_codebook_of_running_means_is_refused() -> None:
    """MONAI's VQ-VAE passes Opacus' check and moves its codebook by raw activations."""
    family = Codebook()
    assert ModuleValidator.validate(family.train()) == []
    with pytest.raises(Refusal, match=r"quantizer\..* changes in a training step"):
        inspect_family(family, SHAPE)


def test_a_gradient_penalty_passes() -> None:
    """A loss that needs autograd itself is sound where it stays within a volume."""
    inspect_family(Penalised(nn.GroupNorm(2, 4)), SHAPE)


@pytest.mark.parametrize("how", ["one tensor", "one layer", "one storage"])
def test_tied_parameters_are_refused(how: str) -> None:
    """A patient's gradient of a tied tensor comes in parts, each of which would be kept alone."""
    family = Toy(nn.Conv3d(4, 4, 1))
    if how == "one layer":
        family.other = family.layer
    else:
        family.other = nn.Conv3d(4, 4, 1)
        weight = family.layer.weight
        family.other.weight = weight if how == "one tensor" else nn.Parameter(weight.data)
    first = "bias" if how == "one layer" else "weight"
    with pytest.raises(Refusal, match=rf"layer\.{first} and other\.{first} are tied"):
        inspect_family(family, SHAPE)


def test_frozen_ties_pass() -> None:
    """Tensors that nobody trains may share what they like."""
    family = Toy(nn.Conv3d(4, 4, 1).requires_grad_(False))
    family.other = family.layer
    inspect_family(family, SHAPE)


def test_parameters_outside_the_steps_are_refused() -> None:
    """A parameter that learns without a step, or a step that names what is not there."""
    family = Toy(nn.Conv3d(4, 4, 1))
    steps = family.steps("only")
    for names, reason in [
        (steps[0].parameters[:-1], r"trained parameter layer\.bias belongs to no step"),
        ((*steps[0].parameters, "layer.scale"), "names a parameter that is not there"),
    ]:
        changed = Step("turn", names, reads_patients=True, loss=family.loss)
        family.steps = lambda stage, changed=changed: (changed,)  # type: ignore[method-assign]
        with pytest.raises(Refusal, match=reason):
            inspect_family(family, SHAPE)
    family.layer.bias.requires_grad_(False)
    family.steps = (
        lambda stage: (  # type: ignore[method-assign]
            Step("turn", steps[0].parameters[:-1], reads_patients=True, loss=family.loss),
        )
    )
    inspect_family(family, SHAPE)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("reads", "marked as not reading patients but needs a batch"),
        ("remembers", "marked as not reading patients but knows them"),
        ("moved", "marked as not reading patients but knows them"),
    ],
)
def test_a_step_that_only_says_that_it_is_blind_is_refused(kind: str, reason: str) -> None:
    """It gets no batch, and must be the same to the bit when a patient is replaced."""
    with pytest.raises(Refusal, match=reason):
        inspect_family(Duo(kind), SHAPE)


def test_a_blind_step_passes() -> None:
    """A generator of noise alone is post-processing."""
    inspect_family(Duo("honest"), SHAPE)


def test_the_example_is_nobody() -> None:
    """Two different volumes in range, the same in every run, so that sites decide alike."""
    volumes = example(Toy(nn.Conv3d(4, 4, 1)), SHAPE).volumes
    assert volumes.shape == (2, 1, *SHAPE)
    assert float(volumes.abs().max()) <= 1
    assert not torch.equal(volumes[0], volumes[1])
    assert torch.equal(volumes, example(Toy(nn.Conv3d(4, 4, 1)), SHAPE).volumes)


def test_a_zero_output_hides_nothing() -> None:
    """MONAI's UNet starts with one: a network that mixes patients behind it is seen."""

    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Conv3d(4, 1, 1)
            nn.init.zeros_(self.last.weight)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(x - x.mean(0))

    with pytest.raises(Refusal, match="mixes the volumes"):
        inspect_family(Toy(Mixing()), SHAPE)


def test_parameters_that_overlap_are_tied() -> None:
    """Not only those that start at the same place."""

    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            base = torch.randn(9)
            self.one, self.other = nn.Parameter(base[:6]), nn.Parameter(base[3:])

        def forward(self, x: Tensor) -> Tensor:
            return x * self.one.sum() * self.other.sum()

    with pytest.raises(Refusal, match="tied"):
        inspect_family(Toy(Halves()), SHAPE)
