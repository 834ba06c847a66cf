"""Every study file in examples/ is right: it parses, its family builds, and a site can agree."""

from __future__ import annotations

from pathlib import Path

import pytest
from voxfed.models.registry import build, names
from voxfed.privacy.terms import agree
from voxfed.server.start import first_weights
from voxfed.server.store import Store
from voxfed.server.template import TEMPLATE
from voxfed.study.plan import StudyPlan

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.toml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_starts_and_meets_its_budget(path: Path, tmp_path: Path) -> None:
    """A shipped example that does not run, or cannot learn, is the first that a newcomer meets."""
    plan = StudyPlan.read(path)
    _, trained = first_weights(plan, Store(tmp_path))
    assert all(trained.values())
    terms = agree(plan, 200)
    assert terms.sigma > 0
    assert plan.name.replace("-", "_") == path.stem


def test_the_template_of_a_new_study_is_right() -> None:
    """`voxfed study new` must not write a file that `study validate` refuses."""
    plan = StudyPlan.from_text(TEMPLATE.format(name="first").encode())
    build(plan)
    assert plan.name == "first"


def test_every_family_has_an_example() -> None:
    """Whoever chooses a family finds a study of it that runs."""
    assert {StudyPlan.read(path).family for path in EXAMPLES} == set(names())
