"""The baselines against their closed forms."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from voxfed.models.quality.baselines import ProbabilisticPca, fit_pca, noisy_copies
from voxfed.study.errors import UsageError

VOLUMES = (
    np.random.default_rng(0).normal(size=(30, 12)) @ np.diag(np.arange(12, 0, -1) / 12)
).reshape(30, 1, 2, 2, 3)


def covariance(model: ProbabilisticPca) -> np.ndarray:
    """Return the model's covariance of all voxels."""
    return model.loadings.T @ model.loadings + model.sigma**2 * np.eye(12)


def likelihood(mean: np.ndarray, spread: np.ndarray) -> float:
    """Return the log likelihood of the volumes."""
    return float(multivariate_normal(mean, spread).logpdf(VOLUMES.reshape(30, 12)).sum())


def test_eigenvalues_are_those_of_the_covariance() -> None:
    """The first q are kept, with their directions; the others become their mean."""
    values, vectors = np.linalg.eigh(np.cov(VOLUMES.reshape(30, 12), rowvar=False, bias=True))
    values[: 12 - 4] = values[: 12 - 4].mean()
    expected = vectors @ np.diag(values) @ vectors.T
    np.testing.assert_allclose(covariance(fit_pca(VOLUMES, 4)), expected, atol=1e-12)


def test_the_fit_is_the_most_likely() -> None:
    """Any change of mean, sigma or a loading makes the volumes less likely."""
    model, generator = fit_pca(VOLUMES, 3), np.random.default_rng(1)
    best = likelihood(model.mean.ravel(), covariance(model))
    for _ in range(20):
        near = ProbabilisticPca(
            model.mean + generator.normal(0, 0.01, model.mean.shape),
            model.loadings + generator.normal(0, 0.01, model.loadings.shape),
            model.sigma * np.exp(generator.normal(0, 0.01)),
        )
        assert likelihood(near.mean.ravel(), covariance(near)) < best


def test_fewer_volumes_than_voxels() -> None:
    """The hospitals' case: sigma counts all the empty directions, and the trace is kept."""
    few = VOLUMES[:5]
    model = fit_pca(few, 2)
    total = np.square(few - few.mean(0)).sum() / 5
    assert np.trace(covariance(model)) == pytest.approx(total)
    assert model.sigma > 0


def test_samples_have_the_moments_of_the_model() -> None:
    """The mean and covariance of many samples are the model's, where nothing is cut off."""
    model = fit_pca(VOLUMES * 0.1, 4)
    drawn = model.sample(40_000, np.random.default_rng(2))
    assert drawn.dtype == np.float32
    assert drawn.shape == (40_000, 1, 2, 2, 3)
    np.testing.assert_allclose(drawn.mean(0), model.mean, atol=2e-3)
    spread = np.cov(drawn.reshape(-1, 12), rowvar=False)
    np.testing.assert_allclose(spread, covariance(model), atol=3e-4)
    assert np.abs(fit_pca(VOLUMES * 9, 4).sample(9, np.random.default_rng(2))).max() == 1


def test_noisy_copies_are_of_different_volumes() -> None:
    """Each is one training volume and a little noise, and none is copied twice."""
    volumes = np.clip(VOLUMES, -0.8, 0.8).astype(np.float32)
    copies = noisy_copies(volumes, 30, 0.01, np.random.default_rng(3))
    distances = np.abs(copies[:, None] - volumes[None]).max(axis=(2, 3, 4, 5))
    assert sorted(distances.argmin(axis=1)) == list(range(30))
    assert 0.001 < (copies - volumes[distances.argmin(axis=1)]).std() < 0.02


@pytest.mark.parametrize("components", [0, 12, 30])
def test_impossible_components_are_refused(components: int) -> None:
    """No component, all voxels or all volumes: no such model."""
    with pytest.raises(UsageError):
        fit_pca(VOLUMES, components)
