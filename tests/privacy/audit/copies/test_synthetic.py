"""The synthetic set is of the weights that are audited, and a site can tell."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from families import TOLD, tiny_plan
from voxfed.models.base import Batch, Condition, Family
from voxfed.models.conditioning import Conditioning
from voxfed.models.registry import build, conditioning
from voxfed.models.state import to_bytes
from voxfed.privacy.audit.copies import synthetic
from voxfed.privacy.audit.copies.synthetic import affordable, check, disagreement, draw, make, read
from voxfed.study.errors import PlanError, VerificationError

SHAPE = (8, 8, 8)
DIGEST = "a" * 64
FIXED = np.random.default_rng(0)


def model(name: str = "vae", seed: int = 0) -> tuple[Family, Conditioning]:
    """Return a family whose samples differ, and what it is told."""
    changes = {"condition": TOLD[name]} if name in TOLD else {}
    plan = tiny_plan(name, SHAPE, **changes)
    family = build(plan).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for weights in family.parameters():
            weights.add_(0.3 * torch.randn_like(weights))
    return family, conditioning(plan)


@pytest.mark.parametrize(
    ("seconds", "budget", "members", "expected"),
    [(1, 600, 100, 600), (1, 60, 100, 200), (0.1, 600, 50, 500), (0.1, 600, 10, 200)],
)
def test_as_many_as_time_and_patients_allow(
    seconds: float, budget: float, members: int, expected: int
) -> None:
    assert affordable(seconds, budget, members) == expected


@pytest.mark.parametrize("name", ["vae", "conditional-vae", "diffusion", "vq-transformer"])
def test_a_set_is_read_and_checked_by_whoever_has_the_weights(name: str) -> None:
    """The honest path, with what the volumes were told."""
    family, takes = model(name)
    made = make(family, takes, DIGEST, 6)
    assert make(family, takes, DIGEST, 6) == made
    batch = read(made, takes, DIGEST, (1, *SHAPE))
    assert len(batch.volumes) == 6
    assert check(family, takes, DIGEST, batch) == 6
    second = draw(family, takes, DIGEST, 1)
    assert disagreement(second.volumes[:2], batch.volumes[4:]) == 0
    if name == "conditional-vae":
        assert batch.condition.label is not None
        assert second.condition.label is not None
        assert torch.equal(second.condition.label[:2], batch.condition.label[4:])


def test_samples_differ_by_number_and_by_weights() -> None:
    """Equal seeds would make a set of one volume."""
    family, takes = model()
    first = draw(family, takes, DIGEST, 0).volumes
    assert disagreement(first[0], first[1]) > synthetic.SHARE
    for other in (draw(family, takes, DIGEST, 1), draw(family, takes, "b" * 64, 0)):
        assert disagreement(first, other.volumes) > synthetic.SHARE


@pytest.mark.parametrize("which", ["weights", "seeds"])
def test_a_set_of_another_model_is_found(which: str) -> None:
    """Nobody audits another model's samples."""
    family, takes = model()
    if which == "weights":
        fake = make(model(seed=1)[0], takes, DIGEST, 4)
    else:
        fake = make(family, takes, "b" * 64, 4)
    batch = read(fake, takes, DIGEST, (1, *SHAPE))
    with pytest.raises(VerificationError, match="not of the weights"):
        check(family, takes, DIGEST, batch)


def test_one_in_a_hundred_is_checked_and_a_changed_one_is_found_when_drawn() -> None:
    """The number of volumes made again, and that the drawn numbers are those compared."""
    asked: list[int] = []

    class Counting:
        def sample(
            self, n: int, *, condition: Condition, generator: torch.Generator
        ) -> torch.Tensor:
            asked.append(generator.initial_seed())
            return torch.zeros((n, 1, 2, 2, 2))

    takes = Conditioning("none", 0, 0, (2, 2, 2))
    family: Family = Counting()  # type: ignore[assignment]
    received = torch.zeros((1000, 1, 2, 2, 2))
    assert check(family, takes, DIGEST, Batch(received), random_bytes=FIXED.bytes) == 40
    assert len(set(asked)) == 10
    received[:] = 1
    with pytest.raises(VerificationError):
        check(family, takes, DIGEST, Batch(received), random_bytes=FIXED.bytes)


@pytest.mark.parametrize(("change", "agrees"), [(0.015, True), (0.03, False)])
def test_rounding_agrees_and_another_volume_does_not(change: float, agrees: bool) -> None:
    """The tolerance is of voxels: 0.02 of [-1, 1], at 99 % of them."""
    made = torch.zeros((1, 1, 10, 10, 10))
    assert (disagreement(made, made + change) <= synthetic.SHARE) == agrees
    few = made.clone()
    few.view(-1)[:10] = 1
    assert disagreement(made, few) <= synthetic.SHARE
    few.view(-1)[:11] = 1
    assert disagreement(made, few) > synthetic.SHARE


def test_another_file_shape_or_range_is_refused() -> None:
    family, takes = model()
    made = make(family, takes, DIGEST, 2)
    with pytest.raises(VerificationError, match="not the one that was named"):
        read(replace(made, content=made.content + b"x"), takes, DIGEST, (1, *SHAPE))
    with pytest.raises(VerificationError, match="no volumes of the study"):
        read(made, takes, DIGEST, (1, 8, 8, 9))
    for content, what in (
        (b"not safetensors", "cannot be read"),
        (to_bytes({"volumes": torch.zeros((2, 1, *SHAPE))}), "no volumes of the study"),
        (to_bytes({"volumes": torch.full((2, 1, *SHAPE), 2.0).half()}), "leave"),
    ):
        sent = synthetic.SyntheticSet(content, synthetic.hashlib.sha256(content).hexdigest())
        with pytest.raises(VerificationError, match=what):
            read(sent, takes, DIGEST, (1, *SHAPE))


def test_a_family_that_is_told_an_image_is_left_to_the_site() -> None:
    """A coordinator has no images of patients."""
    family, takes = model("pix2pix")
    assert not synthetic.made_by_coordinator(takes)
    with pytest.raises(PlanError, match="cannot be drawn"):
        make(family, takes, DIGEST, 2)
