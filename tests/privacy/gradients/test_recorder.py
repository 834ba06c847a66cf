"""The recorder: every volume's gradient is autograd's, and what it cannot see it says."""

from __future__ import annotations

import pytest
import torch
from networks import KINDS, batch_of, network, step_on, trained, wide
from torch import Tensor, nn
from torch.nn import functional
from voxfed.models.base import Batch, Step
from voxfed.privacy.gradients.recorder import Recorder


def recorded(made: nn.Module, step: Step, batch: Batch) -> dict[int, Tensor]:
    rows: dict[int, Tensor] = {}
    generator = torch.Generator().manual_seed(5)
    Recorder(made, trained(made)).record(lambda: step.loss(batch, generator), rows.__setitem__)
    return rows


def plain(made: nn.Module, step: Step, batch: Batch, volume: int) -> list[Tensor]:
    """The oracle: autograd of one volume's loss."""
    loss = step.loss(batch, torch.Generator().manual_seed(5))[volume]
    found = torch.autograd.grad(loss, trained(made), allow_unused=True, materialize_grads=True)
    return list(found)


def worst(made: nn.Module, dtype: torch.dtype, shape: tuple[int, int, int] = (8, 8, 8)) -> float:
    """The largest relative error over volumes, all parameters as one vector."""
    made = made.to(dtype)
    step, batch = step_on(made), wide(batch_of(3, shape), dtype)
    rows, errors = recorded(made, step, batch), []
    for volume in range(3):
        parts = plain(made, step, batch, volume)
        zero = [torch.zeros_like(part) for part in parts]
        ours = [rows[n][volume] if n in rows else zero[n] for n in range(len(parts))]
        wrong = torch.cat(
            [(a.double() - b.double()).flatten() for a, b in zip(ours, parts, strict=True)]
        )
        whole = torch.cat([part.double().flatten() for part in parts])
        errors.append(float(wrong.norm() / whole.norm()))
    return max(errors)


@pytest.mark.parametrize("kind", KINDS)
def test_float64_agrees_to_one_in_a_billion(kind: str) -> None:
    """The issue's exactness, through whole networks of MONAI."""
    assert worst(network(kind), torch.float64) < 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_float32_agrees_to_one_in_ten_thousand(kind: str) -> None:
    """Both sides round in float32, in another order."""
    assert worst(network(kind), torch.float32) < 1e-4


@pytest.mark.parametrize("kind", ["autoencoder", "repeated", "transposed"])
def test_bfloat16_agrees_to_five_percent(kind: str) -> None:
    """8 bits of mantissa, rounded in every layer."""
    assert worst(network(kind), torch.bfloat16) < 0.05


@pytest.mark.parametrize("shape", [(8, 12, 16), (16, 8, 4)])
def test_sides_may_differ(shape: tuple[int, int, int]) -> None:
    assert worst(network("autoencoder"), torch.float64, shape) < 1e-9


def test_odd_sides() -> None:
    assert worst(network("repeated"), torch.float64, (5, 7, 3)) < 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_it_agrees_with_itself(kind: str) -> None:
    """The check that picks the way lets every network of ours through."""
    made = network(kind)
    assert Recorder(made, trained(made)).agrees(step_on(made), batch_of(2))


def test_nothing_is_left_behind() -> None:
    """Neither hooks nor gradients nor frozen parameters survive, whatever happens within."""
    made = network("autoencoder")
    recorder = Recorder(made, trained(made))

    def stumble() -> Tensor:
        made.encode(batch_of(2).volumes)
        raise RuntimeError("stumbled")

    with pytest.raises(RuntimeError, match="stumbled"):
        recorder.record(stumble, lambda *_: None)
    recorded(made, step_on(made), batch_of(2))
    assert all(p.requires_grad and p.grad is None for p in made.parameters())
    assert not any(module._forward_hooks for module in made.modules())


def test_the_plain_gradient_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch's own weight gradient would be the same work again."""
    made, batch = network("repeated"), batch_of(2)
    asked: list[tuple[bool, ...]] = []
    original = torch.ops.aten.convolution_backward

    class Counting(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if function is original.default:
                asked.append(tuple(args[-1]))
            return function(*args, **(kwargs or {}))

    with Counting():
        recorded(made, step_on(made), batch)
    assert sum(mask[1] for mask in asked) >= 3  # ours, one for each time the layer was met
    assert not any(mask[0] and mask[1] for mask in asked)  # autograd's own asks for both


class Elsewhere(nn.Module):
    """Uses a layer's weight where no hook sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return functional.conv3d(x, self.first.weight, padding=1)


class Penalised(nn.Module):
    """Takes a gradient itself, as a gradient penalty does."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(1, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(functional.silu(self.first(x)).sum(), x, create_graph=True)
        return slope


class Owning(nn.Module):
    """Holds a parameter of its own, of a type that nobody samples."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


@pytest.mark.parametrize("kind", [Elsewhere, Penalised, Owning])
def test_what_it_cannot_see_it_says(kind: type[nn.Module]) -> None:
    """A wrong gradient is never taken in silence: such steps go patient by patient."""
    made = kind()
    assert not Recorder(made, trained(made)).agrees(step_on(made), batch_of(2))


def test_one_wrong_row_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check can fail: a sampler that is 1 % off is found."""
    from voxfed.privacy.gradients import recorder

    made = network("repeated")
    right = recorder.SAMPLERS[nn.Conv3d]

    def wrong(*arguments: object) -> dict[nn.Parameter, Tensor]:
        return {p: rows * 1.01 for p, rows in right(*arguments).items()}

    monkeypatch.setitem(recorder.SAMPLERS, nn.Conv3d, wrong)
    assert not Recorder(made, trained(made)).agrees(step_on(made), batch_of(2))


class Dead(nn.Module):
    """Uses a weight elsewhere, behind an output that starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.last = Elsewhere(), nn.Conv3d(1, 1, 1)
        nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(self.hidden(x))
        return found


def test_a_zero_output_hides_nothing() -> None:
    """Many networks start with one; what lies behind is looked at all the same."""
    made = Dead()
    assert not Recorder(made, trained(made)).agrees(step_on(made), batch_of(2))


def test_another_steps_parameters_gather_nothing() -> None:
    """A patient's raw gradient never lies in .grad, one optimiser step from a release."""
    made = network("autoencoder")
    own = [p for name, p in made.named_parameters() if name.startswith("decoder")]
    step = step_on(made)
    Recorder(made, own).record(
        lambda: step.loss(batch_of(2), torch.Generator()), lambda number, rows: None
    )
    assert all(p.grad is None for p in made.parameters())


def test_a_layer_may_belong_to_two_steps() -> None:
    """One trains its weight, the other its bias."""
    made = network("repeated")
    bias = [made.again.bias]
    assert Recorder(made, bias).agrees(step_on(made), batch_of(2))
