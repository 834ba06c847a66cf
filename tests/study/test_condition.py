"""ConditionSettings: what a plan's table [condition] may say, kind by kind."""

from __future__ import annotations

import pytest
from voxfed.study.condition import ConditionSettings
from voxfed.study.errors import PlanError
from voxfed.study.plan import StudyPlan

PLAN = """
name = "trunks"
family = "conditional-vae"
rounds = 8
local_steps = 3
expected_patients = 8
[volumes]
shape = [24, 24, 24]
spacing = [6.0, 6.0, 6.0]
modality = "ct"
[optimiser]
learning_rate = 3e-4
[privacy]
epsilon = 8.0
[condition]
"""
CLASS = 'kind = "class"\ncolumn = "sex"\nvalues = ["F", "M", "O"]\n'
ATTRIBUTES = 'kind = "attributes"\ncolumns = ["age", "weight"]\nranges = [[20, 90], [3.5, 180.0]]\n'
MASK = 'kind = "mask"\nsuffix = "oar"\nstructures = 8\n'
SOURCE = 'kind = "source"\nsuffix = "dose"\nintensity = "window"\nwindow = [0.0, 80.0]\n'


def condition(text: str) -> ConditionSettings:
    told = StudyPlan.from_text((PLAN + text).encode()).condition
    assert told is not None
    return told


@pytest.mark.parametrize(
    ("text", "classes", "attributes", "summary"),
    [
        (CLASS, 3, 1, "class: sex (F, M, O) of participants.tsv"),
        (CLASS + "weights = [1, 2, 0]", 3, 1, "class: sex (F, M, O) of participants.tsv"),
        (ATTRIBUTES, 2, 2, "attributes: age, weight of participants.tsv"),
        (MASK, 8, 1, "mask: images that end in _oar"),
        ('kind = "mask"\nstructures = 2', 2, 1, "mask: a column of manifest.csv"),
        (SOURCE, 2, 1, "source: images that end in _dose"),
        ('kind = "source"', 2, 1, "source: a column of manifest.csv"),
    ],
)
def test_each_kind_says_how_much_a_family_is_told(
    text: str, classes: int, attributes: int, summary: str
) -> None:
    """Numbers of classes and attributes are what networks are built for, from the plan alone."""
    told = condition(text)
    assert (told.classes, told.attributes, told.summary) == (classes, attributes, summary)


def test_a_plan_without_the_table_asks_for_nothing() -> None:
    """Studies of before read as they did."""
    assert StudyPlan.from_text(PLAN.replace("[condition]", "").encode()).condition is None


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('kind = "class"', 'kind "class" needs column, values'),
        ('kind = "attributes"', 'kind "attributes" needs columns, ranges'),
        ('kind = "mask"', 'kind "mask" needs structures'),
        (CLASS + 'suffix = "oar"\nstructures = 3', 'kind "class" has no structures, suffix'),
        (MASK + 'column = "sex"\nweights = [1.0]', 'kind "mask" has no column, weights'),
        (SOURCE + "structures = 3", 'kind "source" has no structures'),
        (
            'kind = "class"\ncolumns = ["age"]',
            'kind "class" needs column, values and has no columns',
        ),
        (CLASS.replace('["F", "M", "O"]', '["F"]'), "values must be 2 or more"),
        (CLASS.replace('"M"', '"F"'), "values must all be different"),
        (CLASS + "weights = [1.0, 1.0]", "weights must be one a value"),
        (CLASS + "weights = [0.0, 0.0, 0.0]", "weights must not all be 0"),
        (CLASS + "weights = [1.0, 1.0, -1.0]", "condition.weights.2"),
        (ATTRIBUTES.replace(', "weight"', ""), "ranges must be one pair a column"),
        (ATTRIBUTES.replace("weight", "age"), "columns must all be different"),
        ('kind = "attributes"\ncolumns = []\nranges = []', "columns must be 1 or more"),
        (ATTRIBUTES.replace("[20, 90]", "[90, 20]"), "condition.ranges.0: the first must be below"),
        (MASK.replace("8", "1"), "condition.structures"),
        (SOURCE.replace("80.0", "-1.0"), "condition.window: the first must be below the second"),
        (SOURCE + "percentiles = [1.0, 101.0]", "condition.percentiles: outside 0 to 100"),
        (SOURCE.replace("dose", "../dose"), "condition.suffix"),
        (SOURCE.replace("dose", "CT"), "condition.suffix and volumes.modality must name two"),
        (CLASS.replace("sex", "\\u001b[31m"), "condition.column"),
        (CLASS.replace("column", "colum"), 'colum: unknown key (got "sex", did you mean column?)'),
    ],
)
def test_a_table_that_no_site_could_read_is_named(text: str, fault: str) -> None:
    """What is missing, strange or out of range is said before anybody is asked to approve."""
    with pytest.raises(PlanError) as caught:
        condition(text)
    assert fault in caught.value.message


def test_a_suffix_needs_a_modality() -> None:
    """Else every mask would be an image too, and wait for a mask of its own."""
    with pytest.raises(PlanError, match="must name two images"):
        StudyPlan.from_text((PLAN.replace('"ct"', '""') + MASK).encode())
