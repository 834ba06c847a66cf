"""Errors: the exit code of each branch of the tree, and a message in one line."""

import pytest
from voxfed.study import errors


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.VoxfedError, 1),
        (errors.WireError, 1),
        (errors.ProcessError, 1),
        (errors.UsageError, 2),
        (errors.PlanError, 2),
        (errors.SettingsError, 2),
        (errors.VolumeError, 2),
        (errors.Refusal, 3),
        (errors.LimitRefusal, 3),
        (errors.BudgetExhausted, 3),
        (errors.CohortChanged, 3),
        (errors.VerificationError, 4),
    ],
)
def test_each_kind_has_its_documented_exit_code(kind: type[errors.VoxfedError], code: int) -> None:
    """Scripts tell wrong use, a refusal and a failed verification apart by these numbers."""
    assert kind("x").exit_code == code
    assert kind.__name__ in (errors.__doc__ or "")


@pytest.mark.parametrize(
    ("got", "expected", "message"),
    [
        (None, None, "too loose"),
        (9.5, None, "too loose (got 9.5)"),
        (None, 8, "too loose (expected 8)"),
        (0, 8, "too loose (got 0, expected 8)"),
    ],
)
def test_message_names_both_numbers(got: object, expected: object, message: str) -> None:
    """A zero is a value like any other: it is shown, not taken for absent."""
    fault = errors.LimitRefusal("too loose", got=got, expected=expected, hint="ask")
    assert (fault.message, str(fault), fault.hint) == (message, message, "ask")
