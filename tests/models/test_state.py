"""Weights go to bytes and back bit for bit, and nothing that is not the family's gets in."""

import pytest
import torch
from voxfed.models.base import Batch
from voxfed.models.state import from_bytes, load_into, tensors_of, to_bytes
from voxfed.models.vae import Vae, VaeSpec
from voxfed.study.errors import WireError


def make(seed: int = 0) -> Vae:
    torch.manual_seed(seed)
    return Vae(VaeSpec(shape=(8, 8, 8), channels=(8,), groups=4, code=3))


def test_the_round_trip_keeps_every_bit() -> None:
    odd = {"b": torch.tensor([-0.0, 1e-45, 3.4e38]), "a": torch.arange(6).reshape(2, 3).T}
    back = from_bytes(to_bytes(odd))
    assert list(back) == ["a", "b"]
    assert back["b"].numpy().tobytes() == odd["b"].numpy().tobytes()
    assert torch.equal(back["a"], odd["a"])
    assert back["a"].dtype == torch.int64


def test_equal_tensors_give_equal_bytes() -> None:
    """A digest of the bytes is a digest of the weights, whatever the order of names."""
    tensors = tensors_of(make())
    assert to_bytes(tensors) == to_bytes(dict(reversed(tensors.items())))


def test_a_family_is_its_tensors() -> None:
    first, second, volumes = make(0), make(1), torch.rand(1, 1, 8, 8, 8)
    assert not torch.equal(first.reconstruct(Batch(volumes)), second.reconstruct(Batch(volumes)))
    load_into(second, from_bytes(to_bytes(tensors_of(first)), expected=tensors_of(second)))
    assert torch.equal(first.reconstruct(Batch(volumes)), second.reconstruct(Batch(volumes)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_refused_both_ways(bad: float) -> None:
    from safetensors.torch import save

    tensors = {"weight": torch.tensor([1.0, bad])}
    with pytest.raises(WireError, match="NaN or infinity"):
        to_bytes(tensors)
    with pytest.raises(WireError, match="NaN or infinity"):
        from_bytes(save(tensors))


def test_garbled_bytes_are_refused() -> None:
    whole = to_bytes({"weight": torch.ones(9)})
    for data in (b"", b"abc", whole[:-1], whole + b"x", b"\xff" * 64, b"\x80\x04." + whole):
        with pytest.raises(WireError):
            from_bytes(data)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({}, "names"),
        ({"w": torch.ones(2), "x": torch.ones(1)}, "names"),
        ({"w": torch.ones(3)}, "shape"),
        ({"w": torch.ones(2, 1)}, "shape"),
        ({"w": torch.ones(2, dtype=torch.float64)}, "type"),
    ],
)
def test_other_tensors_than_expected_are_refused(
    tensors: dict[str, torch.Tensor], words: str
) -> None:
    with pytest.raises(WireError, match=words):
        from_bytes(to_bytes(tensors), expected={"w": torch.zeros(2)})


def test_a_refused_load_leaves_the_family_as_it_was() -> None:
    family = make()
    before = tensors_of(family)
    last = list(before)[-1]
    with pytest.raises(WireError):
        load_into(family, {**make(1).state_dict(), last: torch.full_like(before[last], torch.nan)})
    assert all(torch.equal(before[name], tensor) for name, tensor in tensors_of(family).items())
