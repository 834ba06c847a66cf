"""A private study on a public first stage: it stays to the bit, and only the rest is charged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from families import balls, tiny, tiny_plan
from safetensors.torch import load
from voxfed.client.training import Trainer
from voxfed.models.base import Batch
from voxfed.models.registry import schedule_of
from voxfed.models.state import tensors_of, to_bytes
from voxfed.privacy.gradients.performance import PerformanceSettings
from voxfed.privacy.terms import terms_with
from voxfed.server.aggregation import RunningMean
from voxfed.server.start import first_weights
from voxfed.server.store import Store
from voxfed.study.messages import hash_of

MEMBERS = ("a", "b", "c", "d", "e")
SHAPE = (8, 8, 8)


class Balls:
    """One volume of each patient."""

    def __init__(self) -> None:
        self._volumes = dict(zip(MEMBERS, balls(len(MEMBERS), SHAPE), strict=True))

    def batches(self, patient: str) -> Sequence[Batch]:
        return [Batch(self._volumes[patient].unsqueeze(0))]


def test_attention_on_a_frozen_public_autoencoder(tmp_path: Path) -> None:
    """Three rounds at a site: every tensor but the denoiser's attention is the public one's."""
    public = {n: t + 0.01 for n, t in tensors_of(tiny("latent-diffusion", SHAPE)).items()}
    content = to_bytes(public)
    (tmp_path / "public.safetensors").write_bytes(content)
    plan = tiny_plan(
        "latent-diffusion",
        SHAPE,
        rounds=3,
        trained="attention",
        stages={"autoencoder": 0},
        start={"weights": "public.safetensors", "sha256": hash_of(content)},
    )
    schedule = schedule_of(plan)
    terms = terms_with(plan, 20, 1.0, schedule)
    steps = [event.steps for event in terms.whole if event.kind == "sampled-gaussian"]
    assert steps == [3 * plan.local_steps]  # of the diffusion stage, and of nothing else
    assert schedule.rounds == 3

    weights, trained = first_weights(plan, Store(tmp_path))
    first = load(weights)
    trainer = Trainer(plan, terms, torch.device("cpu"), PerformanceSettings())
    for number in range(1, schedule.rounds + 1):
        stage = schedule.stage_of(number).name
        assert stage == "diffusion"
        trainer.load(load(weights))
        update = trainer.train(stage, Balls(), MEMBERS)  # type: ignore[arg-type]
        assert set(update) == set(trained[stage])
        mean = RunningMean(weights, trained[stage], 1e4)
        mean.add(to_bytes(update), 1.0)
        weights = mean.apply()
    last = load(weights)
    moved = {n for n, tensor in last.items() if not torch.equal(tensor, first[n])}
    assert moved == set(trained["diffusion"])
    assert all(n.startswith("denoiser.") and "attention" in n for n in moved)
    assert all(torch.equal(last[n], public[n]) for n in last if n not in moved)
