"""Aggregation: the weighted mean to the last bit that matters, and nothing odd added to it."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save
from safetensors.torch import save as save_torch
from voxfed.server.aggregation import RunningMean, Tensors
from voxfed.study.errors import VerificationError, VoxfedError, WireError


def draw(seed: int, scale: float = 1.0) -> Tensors:
    generator = np.random.default_rng(seed)
    shapes = {"a.weight": (3, 2, 2), "a.bias": (3,), "b": (1,)}
    return {
        name: (scale * generator.normal(size=shape)).astype(np.float32)
        for name, shape in shapes.items()
    }


GLOBAL = draw(0)


@pytest.fixture
def mean() -> RunningMean:
    return RunningMean(save(GLOBAL), list(GLOBAL), 100.0)


def test_the_mean_is_that_of_brute_force(mean: RunningMean) -> None:
    """Weights plus the mean of all updates by the sites' sizes, computed all at once."""
    updates, sizes = [draw(seed) for seed in range(1, 6)], [5.0, 20.0, 15.0, 100.0, 35.0]
    for update, size in zip(updates, sizes, strict=True):
        norm = mean.add(save(update), size)
        flat = np.concatenate([part.ravel() for part in update.values()]).astype(np.float64)
        assert norm == pytest.approx(np.linalg.norm(flat), rel=1e-12)
    found = load(mean.apply())
    assert set(found) == set(GLOBAL)
    for name in GLOBAL:
        stacked = np.stack([update[name].astype(np.float64) for update in updates])
        expected = GLOBAL[name] + np.average(stacked, axis=0, weights=sizes)
        # one rounding to float32
        np.testing.assert_allclose(found[name], expected, rtol=1e-6, atol=1e-7)
        assert found[name].dtype == np.float32


def test_tensors_that_are_not_trained_stay() -> None:
    """Where the plan trains a part, the others come through to the bit."""
    mean = RunningMean(save(GLOBAL), ["b"], 100.0)
    mean.add(save({"b": np.ones(1, np.float32)}), 5.0)
    found = load(mean.apply())
    np.testing.assert_array_equal(found["a.weight"], GLOBAL["a.weight"])
    np.testing.assert_array_equal(found["b"], GLOBAL["b"] + 1)


def test_equal_rounds_are_equal_bytes(mean: RunningMean) -> None:
    """The same replies give the same digest, which is what a crash and a repeat rest on."""
    other = RunningMean(save(GLOBAL), list(GLOBAL), 100.0)
    for running in (mean, other):
        running.add(save(draw(1)), 5.0)
    assert mean.apply() == other.apply()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_what_is_not_finite_or_too_long_is_refused(mean: RunningMean, value: float) -> None:
    """One poisoned update changes nothing, also when its square overflows."""
    update = draw(1)
    update["a.bias"][1] = value
    with pytest.raises(VerificationError, match="not finite or too long"):
        mean.add(save(update), 5.0)
    mean.add(save(draw(2)), 5.0)
    np.testing.assert_allclose(load(mean.apply())["b"], GLOBAL["b"] + draw(2)["b"], rtol=1e-6)


def test_the_norm_limit_is_over_all_tensors() -> None:
    """The limit holds for the update as one vector: 3 and 4 make 5."""
    update = {"a.bias": np.array([3, 0, 0], np.float32), "b": np.array([4], np.float32)}
    assert RunningMean(save(GLOBAL), list(update), 5.0).add(save(update), 1.0) == 5.0
    with pytest.raises(VerificationError, match=r"got norm 5, expected 4\.99"):
        RunningMean(save(GLOBAL), list(update), 4.99).add(save(update), 1.0)


@pytest.mark.parametrize(
    "update",
    [
        {"c": np.zeros(1, np.float32)},
        {"b": np.zeros(2, np.float32)},
        {"b": np.zeros((1, 1), np.float32)},
        {"b": np.zeros(1, np.float64)},
        {"b": np.zeros(1, np.int64)},
        {"b": np.zeros(1, np.float32), "c": np.zeros(1, np.float32)},
    ],
)
def test_foreign_names_shapes_and_types(update: Tensors) -> None:
    """Only float32 changes of known tensors are added; nothing is cast or broadcast."""
    with pytest.raises(WireError, match="does not fit"):
        RunningMean(save(GLOBAL), list(update), 100.0).add(save(update), 5.0)


def test_a_site_sends_what_the_plan_trains(mean: RunningMean) -> None:
    """One odd first reply must not make the round refuse the honest ones after it."""
    with pytest.raises(WireError, match="other tensors"):
        mean.add(save({"b": np.zeros(1, np.float32)}), 5.0)
    mean.add(save(draw(1)), 5.0)
    np.testing.assert_allclose(load(mean.apply())["b"], GLOBAL["b"] + draw(1)["b"], rtol=1e-6)


def test_nothing_is_no_update(mean: RunningMean) -> None:
    """An empty update counts for nobody, and no update makes no round."""
    with pytest.raises(VoxfedError):
        mean.add(save({}), 5.0)
    with pytest.raises(WireError, match="no update was added"):
        mean.apply()


def test_garbled_bytes(mean: RunningMean) -> None:
    """Every cut and other formats give one error of ours."""
    whole = save(draw(1))
    pieces = [whole[:length] for length in range(0, len(whole), 7)]
    half = save_torch({"b": torch.zeros(1, dtype=torch.bfloat16)})
    for garbled in [*pieces, b"\xff" * 64, b"\x00" * 64, whole + b"\0", half]:
        with pytest.raises(VoxfedError):
            mean.add(garbled, 5.0)


def test_memory_does_not_grow_with_the_sites() -> None:
    """Each update is added and dropped: thirty take no more than three."""
    size = 250_000
    mean = RunningMean(save({"a": np.zeros(size, np.float32)}), ["a"], 1e9)
    update = save({"a": np.ones(size, np.float32)})

    def peak(sites: int) -> int:
        tracemalloc.reset_peak()
        for _ in range(sites):
            mean.add(bytes(update), 5.0)
        return tracemalloc.get_traced_memory()[1]

    tracemalloc.start()
    try:
        few, many = peak(3), peak(30)
    finally:
        tracemalloc.stop()
    assert many < few + size  # less than a quarter of one update
