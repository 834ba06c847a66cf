"""The Gaussian noise of releases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from scipy import stats
from voxfed.privacy import noise
from voxfed.privacy.noise import Keystream, add_noise, grid
from voxfed.study.errors import UsageError

KEY = bytes(range(32))


def zeros(*shape):
    return torch.zeros(shape, dtype=torch.float64)


def test_the_keystream_is_chacha20():
    """RFC 8439, appendix A.1, test vector 1: key, nonce and counter zero."""
    expected = bytes.fromhex("76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7")
    assert Keystream(bytes(32)).words(4).tobytes() == expected


def test_the_keystream_never_repeats_itself():
    """Reading in pieces continues the stream: no word is given out twice."""
    stream = Keystream(KEY)
    pieces = np.concatenate([stream.words(n) for n in (1, 3, 1000, 1, 8192)])
    whole = Cipher(algorithms.ChaCha20(KEY, bytes(16)), None).encryptor().update(bytes(8 * 9197))
    assert pieces.tobytes() == whole
    assert len(set(pieces.tolist())) == pieces.size


def test_every_release_has_a_key_of_its_own(monkeypatch):
    """The system is asked for 32 fresh bytes by each release, and by nothing else."""
    asked = []
    system = noise.os.urandom
    monkeypatch.setattr(noise.os, "urandom", lambda n: asked.append(system(n)) or asked[-1])
    first, second = add_noise([zeros(500)], 1.0)[0], add_noise([zeros(500)], 1.0)[0]
    assert [len(key) for key in asked] == [32, 32]
    assert asked[0] != asked[1]
    assert not torch.equal(first, second)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.3  # six standard errors of 500 values


def test_tensors_of_one_release_share_no_noise():
    """Equal tensors in one call get different noise."""
    first, second = add_noise([zeros(1000), zeros(1000)], 1.0, keystream=Keystream(KEY))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.2


def test_the_noise_is_standard_normal():
    """Kolmogorov-Smirnov, four moments and the tail beyond 4 of a million values."""
    values = add_noise([zeros(1_000_001)], 1.0, keystream=Keystream(KEY))[0].double().numpy()
    n = values.size
    assert stats.kstest(values, "norm").pvalue > 1e-4
    assert abs(values.mean()) < 5 / math.sqrt(n)
    assert abs(values.var() - 1) < 5 * math.sqrt(2 / n)
    assert abs(stats.skew(values)) < 5 * math.sqrt(6 / n)
    assert abs(stats.kurtosis(values)) < 5 * math.sqrt(24 / n)
    tail = int((np.abs(values) > 4).sum())
    assert stats.binomtest(tail, n, 2 * stats.norm.sf(4)).pvalue > 1e-4


def test_values_are_independent():
    """Neighbours, the two halves of a Box-Muller pair, and values a block apart: no correlation."""
    values = add_noise([zeros(200_000)], 1.0, keystream=Keystream(KEY))[0].double().numpy()
    bound = 5 / math.sqrt(values.size / 2)
    for a, b in (
        (values[:-1], values[1:]),
        (values[0::2], values[1::2]),
        (values[: -noise._BLOCK], values[noise._BLOCK :]),
    ):
        assert abs(np.corrcoef(a, b)[0, 1]) < bound
        assert abs(np.corrcoef(a**2, b**2)[0, 1]) < bound


def test_a_pair_is_box_muller_with_the_angle_by_its_tangent():
    """Against the plain formula on the same uniforms: both halves to 1e-12."""
    uniform = noise._uniforms(Keystream(KEY).words(2000))
    radius = np.sqrt(-2 * np.log(uniform[:1000]))
    angle = 2 * np.pi * (uniform[1000:] - 0.5)
    cosine, sine = next(noise._pairs(2000, Keystream(KEY)))
    np.testing.assert_allclose(cosine, radius * np.cos(angle), atol=1e-12)
    np.testing.assert_allclose(sine, radius * np.sin(angle), atol=1e-12)


def test_uniforms_are_symmetric_and_never_0_or_1():
    words = np.array([0, 2**64 - 1, 2**63], dtype=np.uint64)
    assert noise._uniforms(words).tolist() == [2.0**-53, 1 - 2.0**-53, 0.5 + 2.0**-53]


@pytest.mark.parametrize("deviation", [1.0, 0.37, 1e-4, 250.0])
def test_every_value_lies_on_the_grid(deviation):
    """Released values are whole multiples of a power of two that depends on sigma C alone."""
    step = grid(deviation)
    assert math.frexp(step)[0] == 0.5
    assert deviation * 2.0**-17 < step <= deviation * 2.0**-16
    total = torch.linspace(-deviation, deviation, 3001, dtype=torch.float64)
    released = add_noise([total], deviation, keystream=Keystream(KEY))[0].double() / step
    assert torch.equal(released, released.round())


def test_the_release_is_sum_plus_noise_to_half_a_grid_step():
    """The same keystream with and without a sum differs by that sum."""
    total = torch.linspace(-5, 5, 1001, dtype=torch.float64).reshape(7, 143)
    with_sum = add_noise([total], 0.5, keystream=Keystream(KEY))[0].double()
    without = add_noise([torch.zeros_like(total)], 0.5, keystream=Keystream(KEY))[0].double()
    assert with_sum.shape == total.shape
    assert float((with_sum - without - total).abs().max()) <= grid(0.5)


def test_sum_and_noise_are_added_in_float64():
    """A sum that float32 would swallow still moves the release by half a step on average."""
    step = grid(1.0)
    total = torch.full((20_000,), 64 + step / 4, dtype=torch.float64)
    plain = torch.full((20_000,), 64.0, dtype=torch.float64)
    moved = add_noise([total], 1.0, keystream=Keystream(KEY))[0].double()
    still = add_noise([plain], 1.0, keystream=Keystream(KEY))[0].double()
    assert float((moved - still).mean()) == pytest.approx(step / 4, rel=0.1)


def test_the_release_is_float32_and_the_sum_is_left_alone():
    total = [zeros(3, 5), zeros(), zeros(0)]
    released = add_noise(total, 1.0, keystream=Keystream(KEY))
    assert [tensor.shape for tensor in released] == [tensor.shape for tensor in total]
    assert all(tensor.dtype == torch.float32 for tensor in released)
    assert all(not tensor.any() for tensor in total)
    assert released[0].unique().numel() == 15


@pytest.mark.parametrize("deviation", [0.0, -1.0, math.nan, math.inf])
def test_no_release_without_noise(deviation):
    with pytest.raises(UsageError, match="standard deviation"):
        add_noise([zeros(3)], deviation)


def test_a_sum_that_is_not_finite_or_not_float64_is_refused():
    with pytest.raises(UsageError, match="float64"):
        add_noise([torch.zeros(3)], 1.0)
    with pytest.raises(UsageError, match="finite"):
        add_noise([zeros(3), torch.tensor([math.nan], dtype=torch.float64)], 1.0)
