"""Schedule: every round belongs to one stage, and every turn that reads patients is counted."""

import json

import pytest
from voxfed.study.errors import PlanError
from voxfed.study.schedule import Schedule, Stage

SCHEDULE = Schedule((Stage("codes", 3, 2), Stage("scale", 0, 1), Stage("prior", 2, 1)))


def test_rounds_are_counted_through_all_stages() -> None:
    """A stage of no rounds is passed over."""
    names = [SCHEDULE.stage_of(number).name for number in range(1, 6)]
    assert names == ["codes", "codes", "codes", "prior", "prior"]
    assert SCHEDULE.rounds == 5


@pytest.mark.parametrize("number", [0, 6, -1])
def test_other_rounds_are_refused(number: int) -> None:
    with pytest.raises(PlanError, match="no such round"):
        SCHEDULE.stage_of(number)


def test_steps_count_every_turn() -> None:
    """4 local steps: (3 rounds of 2 turns + 2 of 1) x 4, by hand."""
    assert SCHEDULE.steps(4) == 32


def test_it_survives_json() -> None:
    assert Schedule.read(json.loads(json.dumps(SCHEDULE.written))) == SCHEDULE
