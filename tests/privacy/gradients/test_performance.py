"""Performance settings: refused where they are wrong, and apart from what changes epsilon."""

from dataclasses import fields

import pytest
from voxfed.privacy.engine import StepSettings
from voxfed.privacy.gradients.performance import PerformanceSettings
from voxfed.study.errors import SettingsError


def test_every_wrong_key_is_named() -> None:
    with pytest.raises(SettingsError) as caught:
        PerformanceSettings.parse(
            b'volumes_at_once = 0\npasses = "three"\nsigma = 1.0',
            file="site.toml",
            error=SettingsError,
        )
    for key in ("volumes_at_once", "passes", "sigma"):
        assert key in str(caught.value)


def test_none_of_them_can_change_epsilon() -> None:
    """The two tables share no name."""
    assert not {f.name for f in fields(StepSettings)} & set(PerformanceSettings.model_fields)


@pytest.mark.parametrize("passes", ["one", "two"])
@pytest.mark.parametrize("saving", ['precision = "bfloat16"', "checkpointing = true"])
def test_what_saves_memory_takes_patients_one_by_one(passes: str, saving: str) -> None:
    """A setting that cannot be kept is refused, not quietly replaced."""
    text = f'passes = "{passes}"\n{saving}'.encode()
    with pytest.raises(SettingsError, match='passes must be "auto" or "alone"'):
        PerformanceSettings.parse(text, file="site.toml", error=SettingsError)
    alone = text.replace(passes.encode(), b"alone")
    assert PerformanceSettings.parse(alone, file="site.toml", error=SettingsError).saves_memory
    assert not PerformanceSettings().saves_memory
