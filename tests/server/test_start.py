"""Public weights: which tensors start from them, and what is said of a wrong file, in time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import NAMES, TINY, tiny, tiny_plan
from safetensors.torch import load, save
from voxfed.models.registry import schedule_of
from voxfed.models.state import load_stage, stage_tensors, tensors_of, to_bytes
from voxfed.server.start import first_weights, left_random
from voxfed.server.store import Store
from voxfed.study.errors import PlanError
from voxfed.study.messages import hash_of
from voxfed.study.plan import StudyPlan

SHAPE = (8, 8, 8)
FILE = "public.safetensors"


def public(name: str, **changes: Any) -> bytes:
    """What a finished public training releases: weights unlike the first ones of any plan."""
    family = tiny(name, SHAPE) if not changes else _built(tiny_plan(name, SHAPE, **changes))
    return to_bytes({n: t + 0.01 for n, t in tensors_of(family).items()})


def _built(plan: StudyPlan) -> Any:
    from voxfed.models.registry import build

    return build(plan)


def started(folder: Path, plan: StudyPlan, content: bytes | None = None) -> dict[str, torch.Tensor]:
    """The first tensors of a plan whose public file holds `content`."""
    if content is not None:
        (folder / FILE).write_bytes(content)
    return load(first_weights(plan, Store(folder))[0])


def staged(name: str, stage: str, content: bytes, **changes: Any) -> StudyPlan:
    """A plan that starts one stage from public weights."""
    start = {"stages": {stage: {"weights": FILE, "sha256": hash_of(content)}}}
    return tiny_plan(name, SHAPE, start=start, **changes)


def whole(name: str, content: bytes, **changes: Any) -> StudyPlan:
    """A plan that starts a whole family from public weights."""
    start = {"weights": FILE, "sha256": hash_of(content)}
    return tiny_plan(name, SHAPE, start=start, **changes)


def test_a_released_model_starts_the_whole_family(tmp_path: Path) -> None:
    """The weights of a bundle are the first ones, bit for bit."""
    content = public("latent-diffusion")
    found = started(tmp_path, whole("latent-diffusion", content), content)
    assert to_bytes(found) == content


def test_a_released_model_starts_one_stage(tmp_path: Path) -> None:
    """Of a bundle's weights only the stage's are taken; the other stage stays at its first ones."""
    content = public("latent-diffusion")
    plan = staged("latent-diffusion", "autoencoder", content)
    found, given = started(tmp_path, plan, content), load(content)
    own = tensors_of(_built(plan))
    for name, tensor in found.items():
        expected = given if name.startswith("codes.") else own
        assert torch.equal(tensor, expected[name]), name


def test_a_file_of_one_stage_alone_will_do(tmp_path: Path) -> None:
    """Whoever publishes only an autoencoder need not make up the rest."""
    given = load(public("latent-diffusion"))
    content = save({n: t for n, t in given.items() if n.startswith("codes.")})
    found = started(tmp_path, staged("latent-diffusion", "autoencoder", content), content)
    assert all(torch.equal(found[n], t) for n, t in load(content).items())


CODES = {"codes": TINY["vqgan"]["codes"]}
CRITIC = {"critic": TINY["vqgan"]["critic"]}


@pytest.mark.parametrize(
    ("name", "stage", "settings"),
    [
        ("latent-diffusion", "autoencoder", {"first_stage": "vqgan", **CODES, **CRITIC}),
        ("vq-transformer", "codes", {"first_stage": "vqgan", **CODES, **CRITIC}),
    ],
)
def test_a_vqgan_is_the_first_stage_of_others(
    name: str, stage: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    """Its codes and critic bear the same names there; its prior is left out."""
    content = public("vqgan")
    plan = staged(name, stage, content, settings=settings, stages={stage: 0})
    found, given = started(tmp_path, plan, content), load(content)
    shared = {n for n in found if n.startswith(("codes.", "critic."))}
    assert shared == {n for n in given if not n.startswith("prior.")}
    assert all(torch.equal(found[n], given[n]) for n in shared)


def test_adapters_come_after_the_public_weights(tmp_path: Path) -> None:
    """A frozen convolution holds the public kernel under its new name."""
    content = public("latent-diffusion")
    plan = whole("latent-diffusion", content, stages={"autoencoder": 0}, trained="adapters")
    found, given = started(tmp_path, plan, content), load(content)
    frozen = [n for n in found if ".frozen." in n and n.startswith("codes.")]
    assert frozen
    assert all(torch.equal(found[n], given[n.replace(".frozen", "")]) for n in frozen)


@pytest.mark.parametrize("name", NAMES)
def test_no_two_stages_share_a_tensor(name: str) -> None:
    """Together the stages hold every tensor once, so that a stage's file never moves another's."""
    family = tiny(name)
    names = [n for stage in family.stages for n in stage_tensors(family, stage)]
    assert sorted(names) == sorted(family.state_dict())
    assert len(names) == len(set(names))


def _without(given: dict[str, torch.Tensor]) -> None:
    del given[min(n for n in given if n.startswith("codes."))]


def _strange(given: dict[str, torch.Tensor]) -> None:
    given["codes.strange"] = torch.zeros(1)


def _reshaped(given: dict[str, torch.Tensor]) -> None:
    name = min(n for n in given if n.startswith("codes."))
    given[name] = torch.zeros((3, *given[name].shape))


def _infinite(given: dict[str, torch.Tensor]) -> None:
    given[min(n for n in given if n.startswith("codes."))].fill_(float("inf"))


def _empty(given: dict[str, torch.Tensor]) -> None:
    for name in [n for n in given if n.startswith("codes.")]:
        del given[name]


@pytest.mark.parametrize("make", [whole, lambda *a, **k: staged(a[0], "autoencoder", a[1], **k)])
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_without, "missing or foreign names"),
        (_strange, "codes.strange"),
        (_reshaped, "another shape or type"),
        (_infinite, "NaN or infinity"),
        (_empty, "missing or foreign names"),
    ],
)
def test_a_file_that_does_not_fit_is_one_clear_error(
    make: Any, spoil: Any, said: str, tmp_path: Path
) -> None:
    """The key of the study file, the tensor and the remedy stand in it."""
    given = load(public("latent-diffusion"))
    spoil(given)
    content = save(given)
    with pytest.raises(PlanError, match=r"^start\..*the tensors do not fit") as caught:
        started(tmp_path, make("latent-diffusion", content), content)
    assert said in caught.value.message
    assert caught.value.hint


def test_another_file_or_none_is_named(tmp_path: Path) -> None:
    """The digest decides, not the name."""
    content = public("latent-diffusion")
    plan = staged("latent-diffusion", "autoencoder", content)
    with pytest.raises(PlanError, match=r"start\.stages\.autoencoder\.weights.*no such file"):
        started(tmp_path, plan)
    with pytest.raises(PlanError, match="is not the file that the plan names"):
        started(tmp_path, plan, content + b" ")
    garbled = b"no tensors"
    with pytest.raises(PlanError, match="truncated or not safetensors"):
        started(tmp_path, staged("latent-diffusion", "autoencoder", garbled), garbled)


def test_a_stage_that_is_not_there_is_named(tmp_path: Path) -> None:
    content = public("latent-diffusion")
    with pytest.raises(PlanError, match=r"start\.stages\.encoder: the family has no such stage"):
        started(tmp_path, staged("latent-diffusion", "encoder", content), content)


@pytest.mark.parametrize(
    "start",
    [
        {},
        {"weights": FILE},
        {"sha256": "0" * 64},
        {
            "weights": FILE,
            "sha256": "0" * 64,
            "stages": {"a": {"weights": "w", "sha256": "0" * 64}},
        },
        {"stages": {"a": {"weights": "w"}}},
        {"stages": {"a": {"weights": "w", "sha256": "0"}}},
    ],
)
def test_a_start_table_is_whole_or_by_stage(start: dict[str, Any]) -> None:
    """Half a table is refused when the plan is read."""
    with pytest.raises(PlanError, match=r"1 wrong key[^s][\s\S]*start"):
        tiny_plan("latent-diffusion", SHAPE, start=start)


def test_no_stage_learns_on_random_weights(tmp_path: Path) -> None:
    """A frozen first stage without public weights would spend the budget on noise."""
    plan = tiny_plan("latent-diffusion", SHAPE, stages={"autoencoder": 0})
    with pytest.raises(PlanError, match="diffusion would learn on random weights"):
        started(tmp_path, plan)
    content = public("latent-diffusion")
    for make in (whole, lambda n, c, **k: staged(n, "autoencoder", c, **k)):
        good = make("latent-diffusion", content, stages={"autoencoder": 0})
        assert left_random(good, schedule_of(good)) == []


@pytest.mark.parametrize("part", ["attention", "adapters"])
def test_no_part_learns_beside_random_weights(part: str, tmp_path: Path) -> None:
    """Attention before a frozen last layer of zeros has no gradient: noise would be all it got."""
    alone = tiny_plan("diffusion", SHAPE, trained=part)
    with pytest.raises(PlanError, match="diffusion would learn beside frozen random") as caught:
        started(tmp_path, alone)
    assert part in caught.value.message
    assert caught.value.hint
    content = public("latent-diffusion")
    half = staged(
        "latent-diffusion", "autoencoder", content, stages={"autoencoder": 0}, trained=part
    )
    with pytest.raises(PlanError, match="diffusion would learn beside frozen random"):
        started(tmp_path, half, content)
    content = public("diffusion")
    for make in (whole, lambda n, c, **k: staged(n, "diffusion", c, **k)):
        assert started(tmp_path, make("diffusion", content, trained=part), content)


def test_a_last_stage_may_stay_random(tmp_path: Path) -> None:
    """Who trains a first stage alone, for others to start from, is told that samples are noise."""
    plan = tiny_plan("latent-diffusion", SHAPE, stages={"diffusion": 0})
    assert left_random(plan, schedule_of(plan)) == ["diffusion"]
    assert started(tmp_path, plan)


def test_a_turn_without_a_trained_part_is_refused(tmp_path: Path) -> None:
    """The autoencoder has no attention: it must be frozen where only attention is trained."""
    content = public("latent-diffusion")
    plan = whole("latent-diffusion", content, trained="attention")
    with pytest.raises(PlanError, match="the turn autoencoder of the stage autoencoder has none"):
        started(tmp_path, plan, content)


def test_a_tensor_that_does_not_fit_moves_nothing() -> None:
    """A refused file leaves the family as it was."""
    family = tiny("latent-diffusion", SHAPE)
    before, given = tensors_of(family), load(public("latent-diffusion"))
    _strange(given)
    from voxfed.study.errors import WireError

    with pytest.raises(WireError):
        load_stage(family, "autoencoder", given)
    assert all(torch.equal(t, before[n]) for n, t in tensors_of(family).items())
