"""`voxfed evaluate`: what it refuses before any site is asked, and the extractor it takes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner
from voxfed.cli import app
from voxfed.models.quality import contrast
from voxfed.models.quality.encoder import Encoder
from voxfed.models.quality.features import contrastive, load_extractor
from voxfed.server.coordinator import Coordinator, CoordinatorSettings, create
from voxfed.server.evaluation import SiteEvaluation
from voxfed.server.evaluation_commands import cost_of, extractor_file, phantom_shape
from voxfed.study.errors import PlanError, Refusal, UsageError, VoxfedError
from voxfed.study.figures import Intensities
from voxfed.study.files import digest

SHAPE = (16, 18, 17)
PLAN = """
name = "trunks"
family = "vae"
rounds = 1
local_steps = 1
expected_patients = 4
[volumes]
shape = [{side}, 16, 16]
spacing = [9.0, 9.0, 9.0]
[optimiser]
learning_rate = 1e-3
[privacy]
evaluations = {evaluations}
"""


@pytest.fixture
def coordinator(tmp_path: Path) -> Coordinator:
    settings = CoordinatorSettings(name="hub", public_host="localhost", port=9000)
    return create(tmp_path / "hub", settings)


def run(coordinator: Coordinator, *options: object, side: int = 16, evaluations: int = 1) -> object:
    """Run the command on a plan, and return what it raised."""
    plan = coordinator.studies / "trunks" / "plan.toml"
    plan.parent.mkdir()
    plan.write_text(PLAN.format(side=side, evaluations=evaluations))
    words = ["evaluate", "trunks", "--folder", coordinator.folder, *options]
    done = CliRunner().invoke(app, [str(word) for word in words])
    return done.exception


@pytest.mark.parametrize(
    ("change", "kind", "what"),
    [
        ({"evaluations": 0}, Refusal, "allows no evaluation"),
        ({"side": 8}, UsageError, "such small volumes"),
    ],
)
def test_what_no_site_is_asked(
    coordinator: Coordinator, change: dict[str, int], kind: type[VoxfedError], what: str
) -> None:
    """An evaluation that every site would refuse does not start."""
    fault = run(coordinator, **change)
    assert isinstance(fault, kind)
    assert what in fault.message
    assert fault.hint


def test_a_wrong_extractor_is_named_before_any_site_is_asked(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    """A missing file and a file that is something else are wrong use, with a hint."""
    missing = run(coordinator, "--extractor", tmp_path / "none.safetensors")
    assert isinstance(missing, UsageError)
    garbage = tmp_path / "garbage.safetensors"
    garbage.write_bytes(b"not safetensors")
    with pytest.raises(PlanError, match="no feature extractor"):
        extractor_file(coordinator, garbage, SHAPE, hidden=True)


def test_a_named_extractor_is_taken_as_it_is(coordinator: Coordinator, tmp_path: Path) -> None:
    """The file that is sent is the one that was named."""
    torch.manual_seed(0)
    path = tmp_path / "encoder.safetensors"
    contrastive(Encoder()).save(path)
    assert extractor_file(coordinator, path, SHAPE, hidden=True) == path
    assert not (coordinator.folder / "extractors").exists()


@pytest.mark.slow
def test_an_encoder_learns_from_phantoms_once(coordinator: Coordinator) -> None:
    """Without an extractor one is trained at the study's grid and kept: evaluations compare."""
    path = extractor_file(coordinator, None, SHAPE, hidden=True)
    made = load_extractor(path, digest(path))
    assert made.name == "contrastive encoder, trained on phantoms of 16 x 18 x 17 voxels"
    before = path.stat().st_mtime_ns
    assert extractor_file(coordinator, None, SHAPE, hidden=True) == path
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("study", "phantoms"),
    [((16, 24, 32), (16, 24, 32)), ((33, 31, 128), (32, 31, 32)), ((96, 96, 96), (32, 32, 32))],
)
def test_an_encoder_learns_at_the_grid_of_its_study(
    study: tuple[int, ...], phantoms: tuple[int, ...]
) -> None:
    """Features of another grid than the samples' tell less; what nobody can wait for is cut."""
    assert phantom_shape(study) == phantoms


def test_each_grid_has_an_encoder_of_its_own(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second study of another grid is not judged by the first one's; equal seeds repeat."""
    briefly = partial(contrast.train_encoder, steps=1)
    monkeypatch.setattr(contrast, "train_encoder", briefly)
    first, second = (extractor_file(coordinator, None, x, hidden=True) for x in (SHAPE, (16,) * 3))
    assert first != second
    assert load_extractor(second, digest(second)).name.endswith("of 16 x 16 x 16 voxels")
    expected = briefly(SHAPE, generator=torch.Generator().manual_seed(0))
    assert digest(first) == expected.digest


@pytest.mark.parametrize(
    ("memory", "shown"), [(3 * 2**19, "1.5 MiB"), (None, "memory not measured")]
)
def test_a_sample_costs_time_operations_and_memory(memory: int | None, shown: str) -> None:
    """Whoever chooses a family sees what its samples need; a CPU may not tell its peak."""
    answer = SiteEvaluation(
        site="north",
        samples=12,
        figures=(),
        intensities=Intensities(samples=(), held_out=()),
        seconds=0.25,
        flops=2 * 10**9,
        memory=memory,
        pseudo_patients=False,
        request="",
        reply="",
    )
    assert cost_of(answer) == f"0.25 s a sample, 2 GFLOP, {shown}"
