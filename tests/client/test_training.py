"""Training: local steps from the global tensors to an update, and what moves in them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from families import tiny_plan
from voxfed.client import training
from voxfed.client.training import Trainer, choose_device, prepare
from voxfed.models.base import Batch, Step
from voxfed.models.registry import FAMILIES, Entry, schedule_of
from voxfed.models.state import from_bytes, tensors_of
from voxfed.models.vae import Vae, VaeSpec
from voxfed.privacy.gradients.performance import PerformanceSettings
from voxfed.privacy.terms import terms_with
from voxfed.study.errors import PlanError, ProcessError, Refusal, WireError
from voxfed.study.plan import StudyPlan
from voxfed.study.schedule import Schedule

CPU = torch.device("cpu")
MEMBERS = ("a", "b", "c", "d", "e")


class Volumes:
    """Two volumes of each patient, (1, 1, 8, 8, 8), and who was read."""

    def __init__(self) -> None:
        draw = np.random.default_rng(3)
        shape = (1, 1, 8, 8, 8)
        self.read: list[str] = []
        self._volumes = {
            name: [torch.from_numpy(draw.uniform(-1, 1, shape)).float() for _ in range(2)]
            for name in MEMBERS
        }

    def batches(self, patient: str) -> list[Batch]:
        self.read.append(patient)
        return [Batch(volumes=volume) for volume in self._volumes[patient]]


def make(text: bytes, old: bytes = b"", new: bytes = b"", sigma: float = 1.0) -> Trainer:
    assert old in text
    plan = StudyPlan.from_text(text.replace(old, new, 1))
    return Trainer(plan, terms_with(plan, 5, sigma, schedule_of(plan)), CPU, PerformanceSettings())


def test_one_sgd_step_is_the_gradient(plan_text: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The update of one step without privacy is minus the rate times the mean gradient."""
    monkeypatch.setattr(training.secrets, "randbits", lambda n: 11)
    text = plan_text.replace(b"local_steps = 2", b"local_steps = 1")
    text = text.replace(b"expected_patients = 3", b"expected_patients = 100")
    text = text.replace(b"learning_rate = 1e-3", b'learning_rate = 0.5\nname = "sgd"')
    trainer = make(text, b"[privacy]", b"[privacy]\nenabled = false")
    assert trainer.terms.rate == 1.0
    reference = prepare(trainer.plan, CPU)
    generator, scans = torch.Generator().manual_seed(11), Volumes()
    chosen = []
    for name in MEMBERS:
        volumes = scans.batches(name)
        chosen.append(volumes[int(torch.randperm(2, generator=generator)[0])].volumes)
    (step,) = reference.steps("autoencoder")
    step.loss(Batch(volumes=torch.cat(chosen)), generator).mean().backward()
    update = trainer.train("autoencoder", Volumes(), MEMBERS)  # type: ignore[arg-type]
    for name, parameter in reference.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(update[name], -0.5 * parameter.grad, rtol=1e-4, atol=1e-6)


def test_private_noise_is_in_the_update(plan_text: bytes) -> None:
    """With a learning rate of one and SGD the update is the noise that the terms say."""
    text = plan_text.replace(b"learning_rate = 1e-3", b'learning_rate = 1.0\nname = "sgd"')
    text = text.replace(b"local_steps = 2", b"local_steps = 1")
    trainer = make(text, b"[privacy]", b"[privacy]\nclip_norm = 1e-3", sigma=1000.0)
    update = trainer.train("autoencoder", Volumes(), MEMBERS)  # type: ignore[arg-type]
    values = torch.cat([change.flatten() for change in update.values()])
    expected = 1000.0 * 1e-3 / trainer.terms.divisor
    # the patients' part is at most 5 * 1e-3 / divisor in norm, far below the noise
    assert values.numel() > 3000
    assert float(values.std()) == pytest.approx(expected, rel=0.08)


def test_the_update_is_the_change_from_what_was_sent(plan_text: bytes) -> None:
    """Global tensors plus update are the model that the site now holds; only members are read."""
    trainer, scans = make(plan_text), Volumes()
    sent = {name: t + 0.01 for name, t in tensors_of(trainer.family).items()}
    trainer.load(sent)
    update = trainer.train("autoencoder", scans, MEMBERS[:3])  # type: ignore[arg-type]
    for name, tensor in tensors_of(trainer.family).items():
        torch.testing.assert_close(sent[name] + update[name], tensor)
    assert set(scans.read) <= set(MEMBERS[:3])


@pytest.mark.parametrize("part", ["normalisation-and-biases", "adapters"])
def test_only_the_trained_part_moves(plan_text: bytes, part: str) -> None:
    """Frozen tensors neither move nor travel: each number sent costs noise."""
    line = f'rounds = 2\ntrained = "{part}"'.encode()
    trainer = make(plan_text, b"rounds = 2", line)
    before = tensors_of(trainer.family)
    update = trainer.train("autoencoder", Volumes(), MEMBERS)  # type: ignore[arg-type]
    after = tensors_of(trainer.family)
    assert 0 < len(update) < len(before)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved <= set(update)
    assert {n for n, p in trainer.family.named_parameters() if p.requires_grad} == set(update)


def test_other_turns_than_those_that_are_charged_are_refused(plan_text: bytes) -> None:
    """A newer version of a family could take three turns where the ledger pays for one."""
    plan = StudyPlan.from_text(plan_text)
    (stage,) = schedule_of(plan).stages
    for other in (
        replace(stage, turns=3),
        replace(stage, name="diffusion"),
        replace(stage, rounds=9),
    ):
        terms = terms_with(plan, 5, 1.0, Schedule((other,)))
        with pytest.raises(PlanError, match="other turns than those that were approved"):
            Trainer(plan, terms, CPU, PerformanceSettings())


def test_what_layers_draw_by_themselves_is_secret(
    plan_text: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout draws from the global state: one that the coordinator could guess hides nobody."""
    drawn: list[float] = []

    def draw(way: Any, *rest: Any) -> list[torch.Tensor]:
        drawn.append(float(torch.rand((), dtype=torch.float64)))
        return [torch.zeros_like(p) for p in way.parameters]

    monkeypatch.setattr(training, "private_gradient", draw)
    trainer = make(plan_text)
    for _ in range(2):
        torch.manual_seed(0)
        trainer.train("autoencoder", Volumes(), MEMBERS)  # type: ignore[arg-type]
    assert len(drawn) == len(set(drawn)) == 4  # two runs of two local steps


def test_two_stages_may_have_a_step_of_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each stage's gradients are those of its own parameters."""
    plan = tiny_plan("latent-diffusion", (8, 8, 8))
    terms = terms_with(plan, 5, 1.0, schedule_of(plan))
    trainer = Trainer(plan, terms, CPU, PerformanceSettings())
    steps = trainer.family.steps
    monkeypatch.setattr(
        trainer.family, "steps", lambda stage: tuple(replace(s, name="turn") for s in steps(stage))
    )
    for stage in trainer.family.stages:
        update = trainer.train(stage, Volumes(), MEMBERS)  # type: ignore[arg-type]
        assert all(bool(change.any()) for change in update.values())
    assert list(trainer.notes) == ["autoencoder, turn", "diffusion, turn"]


def test_tensors_that_do_not_fit(plan_text: bytes) -> None:
    """A wrong global model is refused and the warm one stays as it was."""
    trainer = make(plan_text)
    before = tensors_of(trainer.family)
    wrong = dict(before)
    wrong.pop(next(iter(wrong)))
    with pytest.raises(WireError):
        trainer.load(wrong)
    assert all(torch.equal(before[name], t) for name, t in tensors_of(trainer.family).items())


def test_a_diverged_update_is_zeros(plan_text: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error would tell, uncharged and again and again, what became of private draws."""
    bad = lambda way, *rest: [p * torch.nan for p in way.parameters]  # noqa: E731
    monkeypatch.setattr(training, "private_gradient", bad)
    update = make(plan_text).train("autoencoder", Volumes(), MEMBERS)  # type: ignore[arg-type]
    assert update
    assert all(not bool(change.any()) for change in update.values())


def test_no_patient_moves_what_is_measured_on_another(
    plan_text: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean loss has the sensitivity that its noise is made for, whoever comes first."""
    seen: list[dict[str, float]] = []
    monkeypatch.setattr(training, "private_mean", lambda values, *_: seen.append(values) or 0.0)
    trainer = make(plan_text, b"[privacy]", b"[privacy]\nmetric_noise = 1000.0")
    for members in (MEMBERS, MEMBERS[1:]):
        trainer.metrics("autoencoder", Volumes(), members)  # type: ignore[arg-type]
    assert {name: seen[0][name] for name in MEMBERS[1:]} == seen[1]


def test_metrics_leave_only_when_the_plan_pays(plan_text: bytes) -> None:
    """No noise multiplier, no mean loss; with one, it is noised and counted in the events."""
    silent = make(plan_text)
    assert silent.metrics("autoencoder", Volumes(), MEMBERS) == {}  # type: ignore[arg-type]
    paying = make(plan_text, b"[privacy]", b"[privacy]\nmetric_noise = 1000.0")
    draws = [
        paying.metrics("autoencoder", Volumes(), MEMBERS)["loss"]  # type: ignore[arg-type]
        for _ in range(2)
    ]
    assert draws[0] != draws[1]
    assert any(event.sigma == 1000.0 for event in paying.terms.per_round["autoencoder"])
    open_one = make(plan_text, b"[privacy]", b"[privacy]\nenabled = false")
    losses = [open_one.metrics("autoencoder", Volumes(), MEMBERS) for _ in range(2)]  # type: ignore[arg-type]
    assert losses[0] == losses[1]
    assert losses[0]["loss"] > 0


def test_devices() -> None:
    """A GPU that is asked for and absent is refused; "auto" takes what is there."""
    assert choose_device("cpu") == CPU
    if torch.cuda.is_available():
        assert choose_device("auto").type == choose_device("cuda").type == "cuda"
    else:
        assert choose_device("auto") == CPU
        with pytest.raises(ProcessError, match="no CUDA device"):
            choose_device("cuda")


def test_state_survives_the_wire(hospital: Any) -> None:
    """The first weights that the coordinator sends fit the model that the site builds."""
    trainer = Trainer(hospital.plan, hospital.approval.terms, CPU, PerformanceSettings())
    trainer.load(from_bytes(hospital.weights))


@pytest.mark.parametrize("name", ["wgan-gp", "vae"])
def test_adam_has_the_decays_of_its_step(name: str) -> None:
    """The players of a game are not moved by what the other was like many turns ago."""
    plan = tiny_plan(name)
    terms = terms_with(plan, 5, 1.0, schedule_of(plan))
    trainer = Trainer(plan, terms, CPU, PerformanceSettings())
    (stage,) = trainer.family.stages
    for step in trainer.family.steps(stage):
        assert trainer._turn(stage, step).optimiser.defaults["betas"] == step.decays


class Mixing(Vae):
    """Compares each volume's loss with the batch's, and its row in the registry hides it."""

    def steps(self, stage: str) -> tuple[Step, ...]:
        (step,) = super().steps(stage)

        def mixed(batch: Batch, generator: torch.Generator) -> torch.Tensor:
            losses = step.loss(batch, generator)
            return losses - losses.mean() / 2

        return (replace(step, loss=mixed),)


def test_a_family_that_is_not_what_its_row_says_is_never_trained(
    plan_text: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever adds a family that mixes patients and calls it private is refused at the site."""
    monkeypatch.setitem(FAMILIES, "planted", Entry(Mixing, VaeSpec, "VAE", "nobody"))
    with pytest.raises(Refusal, match="mixes the volumes of two patients"):
        make(plan_text, b'"vae"', b'"planted"')
