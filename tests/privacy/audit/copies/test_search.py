"""Copies are found where they are and nowhere else."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from voxfed.models.base import Batch, Condition
from voxfed.models.quality.contrast import draw_phantoms
from voxfed.privacy.audit.copies import search as searching
from voxfed.privacy.audit.copies import spaces
from voxfed.privacy.audit.copies.search import Nearest, Search, confirmed, search
from voxfed.privacy.audit.copies.spaces import EMBEDDING, LATENT, OCTANTS, VOXELS, Alike
from voxfed.privacy.audit.coverage import REPLAYED
from voxfed.privacy.audit.coverage import REPLAYS as LISTED
from voxfed.privacy.audit.report import copied_of
from voxfed.privacy.evidence import TOGETHER
from voxfed.privacy.rules.copies import weigh
from voxfed.study.errors import VolumeError

SIDE, N = 16, 20
DRAWN = draw_phantoms(140, (SIDE,) * 3, np.random.default_rng(3))
MEMBERS, OTHERS, FRESH = DRAWN[:N], DRAWN[N : 2 * N], DRAWN[2 * N :]


@pytest.fixture(autouse=True)
def few_views(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer shifts and mirrorings than are shipped, so that tests take seconds."""
    monkeypatch.setattr(spaces, "SHIFTS", (0, -2, 2))
    monkeypatch.setattr(spaces, "NUDGES", ((0, 0, 0),))


def people(volumes: Tensor, name: str = "p") -> dict[str, list[Batch]]:
    return {f"{name}{n}": [Batch(one[None])] for n, one in enumerate(volumes)}


def extract(volumes: Tensor) -> np.ndarray:
    """Coarse means: features that need no network."""
    return nn.functional.adaptive_avg_pool3d(volumes, 4).flatten(1).double().numpy()


def look(samples: Tensor, members: Tensor = MEMBERS, others: Tensor = OTHERS) -> Search:
    drawn = np.random.default_rng(0).bytes
    groups = people(members, "m"), people(others, "h")
    return search(Batch(samples), *groups, extract=extract, random_bytes=drawn)


def blocked(found: Search) -> bool:
    """Return whether the gate's own rule blocks, where one site is all that answered."""
    copied = {space: copied_of(copies.counts()) for space, copies in found.spaces.items()}
    places = ("north", TOGETHER)
    chances, limit = weigh({(place, x): c for place in places for x, c in copied.items() if c})
    return min(chances.values()) <= limit


def moved(step: int) -> Callable[[Tensor], Tensor]:
    def change(volumes: Tensor) -> Tensor:
        rolled = volumes.roll((step, step, step), (2, 3, 4))
        rolled[:, :, :step], rolled[:, :, :, :step], rolled[..., :step] = -1, -1, -1
        return rolled

    return change


def noisy(sigma: float) -> Callable[[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(1)
    return lambda x: (x + sigma * torch.randn(x.shape, generator=generator)).clamp(-1, 1)


def turned(axis: int, degrees: float) -> Callable[[Tensor], Tensor]:
    view = spaces.View(turn=(axis, degrees))
    return lambda x: view.seen(x + 1, x.shape[2:]).reshape(x.shape) - 1


def cropped(beside: Tensor | None) -> Callable[[Tensor], Tensor]:
    """Keep three quarters of each side, from 0, 1, ... to a quarter of it, in zeros or another."""
    quarter = SIDE // 4

    def change(volumes: Tensor) -> Tensor:
        made = torch.zeros_like(volumes) if beside is None else beside[: len(volumes)].clone()
        starts = itertools.cycle(itertools.product(range(quarter + 1), repeat=3))
        for one, source, start in zip(made, volumes, starts, strict=False):
            block = (0, *(slice(x, x + 3 * quarter) for x in start))
            one[block] = source[block]
        return made

    return change


def one_octant(volumes: Tensor) -> Tensor:
    """Keep one octant of each volume, each in its turn, within another's."""
    made, half = FRESH[: len(volumes)].clone(), SIDE // 2
    for number, volume in enumerate(volumes):
        starts = (number & 1, number >> 1 & 1, number >> 2 & 1)
        block = (0, *(slice(x * half, (x + 1) * half) for x in starts))
        made[number][block] = volume[block]
    return made


AXES = {"depth": 2, "height": 3, "width": 4}
CHANGES: dict[str, Callable[..., list[Callable[[Tensor], Tensor]]]] = {
    "noise": lambda sigma: [noisy(sigma)],
    "turned": lambda degrees: [turned(axis, degrees) for axis in range(3)],
    "mirrored": lambda side: [lambda v: v.flip([AXES[side]])],
    "shifted": lambda step: [moved(step)],
    "brightness": lambda times: [lambda v: ((v + 1) * times - 1).clamp(-1, 1)],
    "cropped": lambda beside: [cropped({"nothing": None, "another patient": FRESH}[beside])],
    "one octant": lambda _: [one_octant],
}
"""Each change that the report lists, as one that can be made, about each axis."""
REPLAYS = [
    pytest.param(change, id=f"{replay.change} {strength} {place}")
    for replay in LISTED
    for strength in replay.strengths
    for place, change in enumerate(CHANGES[replay.change](strength))
]


@pytest.mark.parametrize("change", REPLAYS)
def test_replayed_members_are_caught(change: Callable[[Tensor], Tensor]) -> None:
    """The positive control: the gate blocks at each strength that the report lists."""
    made = change(MEMBERS)
    assert not torch.equal(made, MEMBERS)
    assert blocked(look(made))


def test_the_report_lists_the_changes_that_are_replayed() -> None:
    """No more, no fewer, and on the volumes and patients that it says."""
    assert [replay.change for replay in LISTED] == list(CHANGES)
    assert len(REPLAYS) == 3 + 3 * 3 + 3 + 1 + 2 + 2 + 1
    assert f"{SIDE} voxels a side, {N} who trained and {N} held out" in REPLAYED
    assert len(MEMBERS) == len(OTHERS) == N


def test_octants_of_members_are_found_as_such() -> None:
    """Partial copies, in the space that is there for them."""
    assert look(one_octant(MEMBERS)).spaces[OCTANTS].memorised_members >= 15


def test_an_exact_replay_is_confirmed_and_fresh_people_are_not() -> None:
    """What blocks by itself: sure in voxels and in features."""
    found = look(torch.cat([FRESH[:30], MEMBERS[:1]]))
    assert (found.confirmed_members, found.confirmed_non_members) == (1, 0)
    assert found.pairs[0].patient == "m0"
    assert found.pairs[0].sample == 30
    assert (look(FRESH[:40]).confirmed_members, look(FRESH).confirmed_non_members) == (0, 0)


def test_members_and_non_members_are_treated_alike() -> None:
    """Swapping the groups swaps the counts and changes nothing else."""
    samples = torch.cat([MEMBERS[:5], FRESH[:20]])
    first, second = look(samples), look(samples, OTHERS, MEMBERS)
    for space, copies in first.spaces.items():
        other = second.spaces[space]
        assert copies.threshold == pytest.approx(other.threshold, abs=1e-4)
        assert copies.memorised_members == other.memorised_non_members
        assert copies.strict_memorised_non_members == other.strict_memorised_members


def test_honest_generators_are_not_accused() -> None:
    """The negative control: of 100 audits of fresh people, at most one is an alarm by chance."""
    generator = np.random.default_rng(5)
    alike = {
        VOXELS: spaces.voxels(DRAWN[60:], DRAWN[:60]),
        OCTANTS: spaces.octants(DRAWN[60:], DRAWN[:60]),
        EMBEDDING: spaces.embedding(DRAWN[60:], DRAWN[:60], extract),
    }
    owners, alarms = np.arange(2 * N), 0
    for _ in range(100):
        patients = generator.permutation(60)[: 2 * N]
        samples = generator.permutation(80)[:50]
        counted = {}
        for space, one in alike.items():
            rows = one.samples[np.ix_(samples, patients)]
            some = Alike(rows, one.patients[np.ix_(patients, patients)])
            counted[space] = searching._counted(searching._nearest(some, owners, N), N)
        found = Search(counted, 0, 0, ())
        alarms += blocked(found)
    assert alarms <= 1


def test_thresholds_are_percentiles_of_real_nearest_neighbours() -> None:
    """By hand: two members, two others, each patient's nearest of the other group."""
    real = np.array([[9, 9, 0.1, 0.4], [9, 9, 0.3, 0.2], [0.1, 0.3, 9, 9], [0.4, 0.2, 9, 9]])
    rows = np.array([[0.0, 0.5, 0.1, 0.2], [0.0, 0.35, 0.0, 0.36], [0.1, 0.0, 0.9, 0.2]])
    near = searching._nearest(Alike(rows, real), np.arange(4), 2)
    assert (near.threshold, near.strict_threshold) == (0.4, 0.4)
    assert near.patient.tolist() == [1, 3, 2]
    copies = searching._counted(near, 2)
    assert (copies.memorised_members, copies.memorised_non_members) == (1, 1)


def test_a_copy_is_confirmed_by_two_kinds_of_space_about_one_patient() -> None:
    """Two spaces of voxels, another patient or a match just above the threshold are not enough."""

    def near(patient: int, similarity: float) -> Nearest:
        return Nearest(
            np.array([similarity], np.float32), np.array([patient]), np.array([patient]), 0.5, 0.6
        )

    sure, unsure = near(3, 0.9), near(3, 0.75)
    assert confirmed({VOXELS: sure, EMBEDDING: sure}).tolist() == [3]
    assert confirmed({OCTANTS: sure, LATENT: sure}).tolist() == [3]
    for spaces_ in (
        {VOXELS: sure, OCTANTS: sure},
        {EMBEDDING: sure, LATENT: sure},
        {VOXELS: sure, EMBEDDING: unsure},
        {VOXELS: unsure, EMBEDDING: sure},
        {VOXELS: sure, EMBEDDING: near(4, 0.9)},
        {VOXELS: sure},
    ):
        assert confirmed(spaces_).tolist() == []


def test_groups_are_made_equal_and_two_visits_are_one_patient() -> None:
    members = {f"m{n}": [Batch(MEMBERS[2 * n : 2 * n + 2])] for n in range(5)}
    found = search(Batch(MEMBERS[:10]), members, people(OTHERS[:8]))
    assert set(found.spaces) == {VOXELS, OCTANTS}
    copies = found.spaces[VOXELS]
    assert (copies.samples, copies.compared) == (10, 5)
    assert (copies.strict_copies_of_members, copies.strict_memorised_members) == (10, 5)
    exact = [pair for pair in found.pairs if pair.space == VOXELS]
    assert {pair.volume for pair in exact} == {0, 1}
    assert all(pair.sample == 2 * int(pair.patient[1:]) + pair.volume for pair in exact)
    assert set(copies.counts()) >= {"samples", "memorised_members", "strict_threshold"}


def test_a_family_with_a_latent_is_asked_for_it_with_its_condition() -> None:
    """The family's own latent, one volume at a time."""

    class Own(nn.Module):
        def embed(self, batch: Batch) -> Tensor:
            assert len(batch.volumes) == 1
            assert batch.condition.label is not None
            hot = nn.functional.one_hot(batch.condition.label, 3)
            return torch.cat([torch.from_numpy(extract(batch.volumes)), hot], 1)

    def told(volumes: Tensor) -> Batch:
        return Batch(volumes, Condition(label=torch.arange(len(volumes)) % 3))

    members = {str(n): [told(MEMBERS[n : n + 1])] for n in range(N)}
    others = {f"h{n}": [told(OTHERS[n : n + 1])] for n in range(N)}
    found = search(told(MEMBERS[:1]), members, others, family=Own())
    assert found.spaces[LATENT].strict_memorised_members == 1


def test_nothing_to_compare_gives_no_counts() -> None:
    nobody = Search({}, 0, 0, ())
    assert search(Batch(FRESH[:3]), people(MEMBERS), {}) == nobody
    assert search(Batch(FRESH[:0]), people(MEMBERS), people(OTHERS)) == nobody


def test_samples_of_another_shape_are_refused() -> None:
    with pytest.raises(VolumeError, match="differ in shape"):
        look(torch.zeros((2, 1, 8, 8, 8)))
