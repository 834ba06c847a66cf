"""What the benchmark of families is made of: the mean of figures, plans and samples."""

import pytest
import torch
from parts.cohort import TOLD, read_volumes, task_of
from parts.material import draw, in_the_open, mean_figures, plan_of
from voxfed.models.quality.intervals import Figure
from voxfed.models.registry import FAMILIES, build


def test_mean_of_figures_is_that_of_each_end() -> None:
    """The mean over splits is taken of value and ends alike, so that splits narrow no interval."""
    kid = [
        Figure("KID", 1.0, 0.0, 2.0, 24, 0.5, "lower"),
        Figure("KID", 3.0, 2.5, 6.0, 24, 0.1, "lower"),
    ]
    share = [Figure("coverage", x, x, x, 24, 1.0, "higher") for x in (0.2, 0.4)]
    found = mean_figures([list(pair) for pair in zip(kid, share, strict=True)])
    assert list(found) == ["KID", "coverage"]
    assert found["KID"] == pytest.approx(
        {"value": 2.0, "low": 1.25, "high": 4.0, "real": 0.3, "n": 24, "better": "lower"}
    )
    assert found["coverage"]["value"] == pytest.approx(0.3)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_a_plan(name: str) -> None:
    """Each family of the registry has a study in examples/ that fits its task in the benchmark."""
    with torch.device("meta"):
        build(plan_of(name, 16, **in_the_open(name)))


@pytest.mark.parametrize("name", TOLD)
def test_each_sample_is_of_its_own_condition(
    name: str, phantoms: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples are drawn in batches, the last one short, each of its own row of what is asked."""
    cohort, task = read_volumes(16, task_of(name)), task_of(name)
    family = build(plan_of(name, 16, **in_the_open(name)))
    seen = []
    sample = family.sample

    def listen(n: int, *, condition: object, generator: torch.Generator) -> torch.Tensor:
        seen.append(condition)
        return sample(n, condition=condition, generator=generator)

    monkeypatch.setattr(family, "sample", listen)
    told = task.told(cohort.told(0)[1][:11])
    drawn = draw(family, 11, torch.device("cpu"), told)
    assert drawn.shape == (11, 1, 16, 16, 16)
    parts = [each.mask if told.source is None else each.source for each in seen]
    assert [len(part) for part in parts] == [8, 3]
    assert torch.equal(torch.cat(parts), told.mask if told.source is None else told.source)
