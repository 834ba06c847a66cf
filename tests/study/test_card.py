"""Card: a role, a name and a key, written and read back, and nothing else taken for one."""

from pathlib import Path

import pytest
from voxfed.study.card import Card
from voxfed.study.errors import UsageError
from voxfed.study.identity import PublicKey

KEY = PublicKey(bytes(range(32)))


def test_round_trip(tmp_path: Path) -> None:
    """What is handed over is what is read."""
    card = Card("site", "north", KEY)
    card.write(tmp_path / "card.json")
    assert Card.read(tmp_path / "card.json") == card


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"not json",
        b"[]",
        b'"site"',
        b'{"role": "site", "name": "north"}',
        b'{"role": "root", "name": "north", "key": "%s"}' % KEY.text.encode(),
        b'{"role": "site", "name": 3, "key": "%s"}' % KEY.text.encode(),
        b'{"role": ["site"], "name": "north", "key": "%s"}' % KEY.text.encode(),
        b'{"role": "site", "name": "north", "key": "00ff"}',
        b'{"role": "site", "name": "north", "key": null}',
        b"\xff\xfe",
    ],
)
def test_what_is_no_card_is_refused(tmp_path: Path, text: bytes) -> None:
    """A wrong file gives one clear error and no traceback."""
    (tmp_path / "card.json").write_bytes(text)
    with pytest.raises(UsageError):
        Card.read(tmp_path / "card.json")


def test_missing_file(tmp_path: Path) -> None:
    """The path stands in the error."""
    with pytest.raises(UsageError, match=r"absent\.json cannot be read"):
        Card.read(tmp_path / "absent.json")
