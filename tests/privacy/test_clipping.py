"""Flat clipping of one patient's gradient."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from voxfed.privacy.clipping import clip, gradient_norm
from voxfed.study.errors import UsageError

SHAPES = [(3, 2, 3, 3, 3), (3,), (), (7, 5)]


def random_gradient(seed, scale=1.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES]


def exact_square(gradient):
    """The squared norm in rationals: no rounding at all."""
    return sum(Fraction(x) ** 2 for tensor in gradient for x in tensor.double().flatten().tolist())


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    log_scale=st.floats(-20, 20),
    log_norm=st.floats(-6, 4),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_the_clipped_norm_never_exceeds_the_bound_in_exact_arithmetic(
    seed, log_scale, log_norm, dtype
):
    """The guarantee itself, checked in rationals over forty orders of magnitude."""
    norm = 10.0**log_norm
    gradient = [tensor.to(dtype) for tensor in random_gradient(seed, 10.0**log_scale)]
    assert exact_square(clip(gradient, norm).gradient) <= Fraction(norm) ** 2


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), excess=st.floats(1 - 1e-6, 1 + 1e-6))
def test_the_bound_holds_where_the_norm_is_the_bound_but_for_rounding(seed, excess):
    gradient = random_gradient(seed)
    norm = gradient_norm(gradient) * excess
    assert exact_square(clip(gradient, norm).gradient) <= Fraction(norm) ** 2


def test_one_patient_moves_the_sum_by_at_most_the_norm():
    """Sum with and without the patient, float64, all tensors as one vector."""
    others = [clip(random_gradient(seed), 1.0).gradient for seed in range(5)]
    patient = clip(random_gradient(99, 1e6), 1.0).gradient
    without = [sum(tensors).double() for tensors in zip(*others, strict=True)]
    moved = [(w + p.double()) - w for w, p in zip(without, patient, strict=True)]
    assert gradient_norm(moved) <= 1.0 + 1e-12  # float64 addition rounds once more


def test_a_long_gradient_keeps_its_direction_and_reaches_the_norm():
    gradient = random_gradient(1, 10.0)
    clipped = clip(gradient, 0.5)
    assert clipped.finite
    assert gradient_norm(clipped.gradient) == pytest.approx(0.5, rel=1e-6)
    cosine = sum(float((a * b).sum()) for a, b in zip(gradient, clipped.gradient, strict=True))
    assert cosine / (gradient_norm(gradient) * 0.5) == pytest.approx(1, rel=1e-6)
    assert [tensor.shape for tensor in clipped.gradient] == [torch.Size(s) for s in SHAPES]


def test_a_short_gradient_passes_unchanged_and_is_a_copy():
    """No rescaling below the bound; changing the result does not change the gradient."""
    gradient = random_gradient(2, 1e-3)
    clipped = clip(gradient, 1.0).gradient
    assert all(torch.equal(a, b) for a, b in zip(gradient, clipped, strict=True))
    clipped[0].zero_()
    assert gradient[0].abs().sum() > 0


def test_the_norm_is_taken_over_all_tensors_together():
    """3-4-5: clipping each tensor for itself would leave both at 1."""
    clipped = clip([torch.tensor([30.0]), torch.tensor([40.0])], 1.0).gradient
    assert torch.cat(clipped).tolist() == pytest.approx([0.6, 0.8], rel=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_counts_as_zero_and_is_flagged(bad):
    gradient = random_gradient(3)
    gradient[1][0] = bad
    clipped = clip(gradient, 1.0)
    assert not clipped.finite
    assert gradient_norm(clipped.gradient) == 0
    assert [tensor.shape for tensor in clipped.gradient] == [torch.Size(s) for s in SHAPES]


def test_float32_gradients_whose_square_overflows_are_still_clipped():
    """1e30 squared is no float32: the norm is taken in float64."""
    clipped = clip([torch.full((4,), 1e30)], 1.0)
    assert clipped.finite
    assert clipped.gradient[0].tolist() == pytest.approx([0.5] * 4, rel=1e-6)


@pytest.mark.parametrize("norm", [0.0, -1.0, math.nan, math.inf])
def test_a_norm_that_bounds_nothing_is_refused(norm):
    with pytest.raises(UsageError, match="clip norm"):
        clip(random_gradient(0), norm)
