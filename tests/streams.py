"""Fixed streams in place of the operating system's generator, for tests of distributions."""

from __future__ import annotations

import numpy as np
import pytest
from voxfed.privacy import sampling
from voxfed.privacy.noise import Keystream


def fix(patch: pytest.MonkeyPatch, seed: int = 4) -> None:
    """Make draws, coins, choices and the key of each release the same in every run.

    The keys still differ from release to release, as the system's do.
    """
    source = np.random.default_rng(seed).bytes
    for draw in (sampling.poisson, sampling.flip, sampling.choose):
        patch.setitem(draw.__kwdefaults__, "random_bytes", source)
    patch.setattr(Keystream, "from_system", lambda: Keystream(source(32)))
