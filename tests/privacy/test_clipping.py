"""Flat clipping of each patient's gradient."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from voxfed.privacy.clipping import clip_weights
from voxfed.study.errors import UsageError


def norm(row: Tensor) -> float:
    return float(torch.linalg.vector_norm(row, dtype=torch.float64))


def weight_of(row: Tensor, bound: float) -> float:
    return float(clip_weights(torch.tensor([norm(row)], dtype=torch.float64), bound)[0])


def exact_square(row: Tensor) -> Fraction:
    """The squared norm in rationals: no rounding at all."""
    return sum((Fraction(x) ** 2 for x in row.double().flatten().tolist()), Fraction())


@settings(max_examples=80)
@given(
    seed=st.integers(0, 10**6),
    log_scale=st.floats(-20, 20),
    log_bound=st.floats(-6, 4),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_the_clipped_norm_never_exceeds_the_bound_in_exact_arithmetic(
    seed: int, log_scale: float, log_bound: float, dtype: torch.dtype
) -> None:
    """The guarantee itself, checked in rationals over forty orders of magnitude."""
    bound = 10.0**log_bound
    generator = torch.Generator().manual_seed(seed)
    row = (torch.randn(300, generator=generator) * 10.0**log_scale).to(dtype)
    clipped = row.double() * weight_of(row, bound)  # as the engine multiplies
    assert exact_square(clipped) <= Fraction(bound) ** 2


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), excess=st.floats(1 - 1e-6, 1 + 1e-6))
def test_the_bound_holds_where_the_norm_is_the_bound_but_for_rounding(
    seed: int, excess: float
) -> None:
    row = torch.randn(300, generator=torch.Generator().manual_seed(seed))
    bound = norm(row) * excess
    assert exact_square(row.double() * weight_of(row, bound)) <= Fraction(bound) ** 2


def test_a_long_gradient_reaches_the_bound_and_a_short_one_passes_unchanged() -> None:
    """Clipping loses no signal that it need not lose."""
    found = clip_weights(torch.tensor([50.0, 1e-3, 0.0, 0.5], dtype=torch.float64), 0.5)
    assert found.tolist() == pytest.approx([0.01, 1.0, 1.0, 1.0], rel=1e-11)
    assert found[1] == found[2] == 1.0


def test_patients_do_not_touch_each_other() -> None:
    """Each weight is that of the patient alone: clipping per batch would differ."""
    norms = torch.tensor([0.1, 3.0, 1e9], dtype=torch.float64)
    alone = [float(clip_weights(norms[i : i + 1], 1.0)[0]) for i in range(3)]
    assert clip_weights(norms, 1.0).tolist() == alone


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_has_no_weight(bad: float) -> None:
    found = clip_weights(torch.tensor([bad, 1.0], dtype=torch.float64), 1.0)
    assert found.tolist() == pytest.approx([0.0, 1.0])


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan, math.inf])
def test_a_bound_that_bounds_nothing_is_refused(bound: float) -> None:
    with pytest.raises(UsageError, match="clip norm"):
        clip_weights(torch.ones(1, dtype=torch.float64), bound)
