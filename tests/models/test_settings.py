"""The settings that `voxfed models NAME` shows."""

import json
import tomllib

import pytest
from typer.testing import CliRunner
from voxfed.cli import app
from voxfed.models.registry import FAMILIES
from voxfed.models.settings import settings
from voxfed.study.errors import PlanError


@pytest.mark.parametrize("name", FAMILIES)
def test_every_setting_is_described_and_its_default_is_taken(name: str) -> None:
    """A key shown is one that a study file may set, at the value shown, and says what it does."""
    shown = settings(name)
    assert [one.name for one in shown if not one.description] == []
    spec, volume = FAMILIES[name].spec, {"shape": [64, 64, 64]}
    told = tomllib.loads("".join(f"{one.name} = {json.dumps(one.default)}\n" for one in shown))
    assert spec.model_validate({**volume, **told}) == spec.model_validate(volume)


def test_an_unknown_family_is_refused_by_name() -> None:
    """A mistyped name gets the known ones."""
    with pytest.raises(PlanError, match="unknown family"):
        settings("vaee")


def test_the_command_shows_one_familys_settings() -> None:
    """Guidance and samplers can be found without reading the source, by people and by scripts."""
    result = CliRunner().invoke(app, ["models", "diffusion", "--json"])
    told = json.loads(result.stdout)
    assert told["family"] == "diffusion"
    names = {one["name"] for one in told["settings"]}
    assert {"denoiser.guidance", "denoiser.prediction", "denoiser.sampler"} <= names
    table = CliRunner().invoke(app, ["models", "diffusion"])
    assert table.exit_code == 0
    assert "guidance" in table.stdout
