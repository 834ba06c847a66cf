"""Schedule: which stages of a model a study trains, for how many rounds, one after the other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .errors import PlanError


@dataclass(frozen=True)
class Stage:
    """One stage of a study.

    Attributes:
        name: the family's name for it.
        rounds: federated rounds, 0 where it stays as it starts.
        turns: optimiser turns of a local step that read patients; each is charged.
    """

    name: str
    rounds: int
    turns: int


@dataclass(frozen=True)
class Schedule:
    """The stages of a study in their order; rounds are counted from 1 through all of them."""

    stages: tuple[Stage, ...]

    @classmethod
    def read(cls, written: Iterable[Iterable[object]]) -> Schedule:
        """Return a schedule from JSON values, as `written` gives them."""
        rows = ([str(x) for x in row] for row in written)
        return cls(tuple(Stage(name, int(rounds), int(turns)) for name, rounds, turns in rows))

    @property
    def written(self) -> list[list[object]]:
        """The schedule as JSON values."""
        return [[stage.name, stage.rounds, stage.turns] for stage in self.stages]

    @property
    def rounds(self) -> int:
        """Rounds of all stages together."""
        return sum(stage.rounds for stage in self.stages)

    def steps(self, local_steps: int) -> int:
        """Return how many noisy steps a site takes in the whole study."""
        return sum(stage.rounds * stage.turns for stage in self.stages) * local_steps

    def stage_of(self, number: int) -> Stage:
        """Return the stage that a round belongs to.

        Raises:
            PlanError: the study has no such round.
        """
        last = 0
        for stage in self.stages:
            last += stage.rounds
            if 1 <= number <= last:
                return stage
        raise PlanError("the study has no such round", got=number, expected=f"1 to {self.rounds}")
