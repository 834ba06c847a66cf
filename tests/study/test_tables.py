"""Tables: one error names every wrong key with its value and its remedy."""

import pytest
from pydantic import Field
from voxfed.study.errors import SettingsError
from voxfed.study.tables import Table


class Inner(Table):
    """An inner table."""

    depth: int = Field(1, ge=1, description="levels, 1 or more")


class Outer(Table):
    """A table with every kind of field that our files hold."""

    name: str = Field(description="a name")
    share: float = Field(0.5, gt=0, description="a share above 0")
    sides: tuple[int, int] = Field((8, 8), description="two counts")
    inner: Inner = Field(default_factory=Inner, description="an [inner] table")


def parse(text: str) -> Outer:
    return Outer.parse(text.encode(), file="f.toml", error=SettingsError)


def test_reads_toml_into_frozen_values() -> None:
    """Arrays become tuples, integers serve as floats, and nothing can be changed afterwards."""
    table = parse('name = "x"\nshare = 1\nsides = [4, 5]\n[inner]\ndepth = 3')
    assert (table.name, table.share, table.sides, table.inner.depth) == ("x", 1.0, (4, 5), 3)
    with pytest.raises(ValueError, match="frozen"):
        table.share = 2.0  # type: ignore[misc]


def test_one_error_names_every_fault() -> None:
    """Missing, unknown, mistyped and out of range, at once, each with value and remedy."""
    with pytest.raises(SettingsError) as caught:
        parse('shares = 2\nshare = -1\nsides = [4, "x"]\n[inner]\ndepth = 0\ncolour = 3')
    lines = caught.value.message.splitlines()
    assert lines[0] == "6 wrong keys in f.toml"
    text = "\n".join(lines[1:])
    assert "name: missing (expected a name)" in text
    assert "shares: unknown key (got 2, did you mean share?)" in text
    assert "got -1, expected a share above 0" in text
    assert 'got "x", expected two counts' in text
    assert "inner.depth" in text
    assert "got 0, expected levels, 1 or more" in text
    assert "inner.colour: unknown key (got 3, known: depth)" in text
    assert caught.value.hint == "edit f.toml and try again"


@pytest.mark.parametrize(
    "line",
    [
        "share = nan",
        "share = inf",
        'share = "0.5"',
        "share = true",
        "share = 2024-01-01",
        "sides = [1]",
        "sides = [1, 2, 3]",
        "sides = [1.5, 2]",
        "inner = 3",
        f"share = 1{'0' * 400}",
    ],
)
def test_values_are_never_mended(line: str) -> None:
    """No string becomes a number, no list is cut, nothing infinite passes."""
    key = line.split(" ")[0]
    with pytest.raises(SettingsError, match=rf"1 wrong key in f\.toml\n  {key}"):
        parse(f'name = "x"\n{line}')


@pytest.mark.parametrize("text", [b"name = ", b"\xff\xfe", b"a = 1\na = 2", b"[name"])
def test_what_is_no_toml(text: bytes) -> None:
    """The line that is wrong is named, without a traceback."""
    with pytest.raises(SettingsError, match=r"f\.toml is not TOML"):
        Outer.parse(text, file="f.toml", error=SettingsError)


def test_a_long_value_is_cut() -> None:
    """An error stays readable whatever stands in the file."""
    with pytest.raises(SettingsError) as caught:
        parse(f'name = "x"\nshare = "{"y" * 5000}"')
    assert len(caught.value.message) < 300
