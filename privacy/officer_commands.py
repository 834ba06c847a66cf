"""The officer's own command, `officer init`, and what the officer's other commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ..study.card import Card
from ..study.errors import UsageError
from ..study.identity import SigningKey
from ..study.plan import safe_name
from ..study.terminal import console, show_json

officer_app = typer.Typer(
    no_args_is_help=True, help="The privacy officer's own key, on the officer's own machine."
)

PASSPHRASE = "VOXFED_PASSPHRASE"  # noqa: S105, a variable's name
COLOURS = {"PASS": "green", "WARN": "yellow", "INVALID": "magenta", "BLOCK": "red"}

Bundle = Annotated[Path, typer.Argument(help="The folder of the release bundle.")]
Folder = Annotated[Path, typer.Option(help="The officer's folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]


@officer_app.callback()
def _group() -> None:
    """Keeps `init` a sub-command while it is the only one."""


@officer_app.command("init")
def init(
    folder: Folder,
    name: Annotated[str, typer.Option(help="Your name: lower-case letters, digits, hyphens.")],
    as_json: AsJson = False,
) -> None:
    """Make a passphrase-protected key, and a card to hand to the coordinator."""
    name = safe_name(name, what="the officer's name")
    if _key_file(folder).exists():
        raise UsageError(f"{folder} holds a key already", hint="choose another folder")
    key = SigningKey.create(_key_file(folder), _passphrase(new=True))
    Card("officer", name, key.public).write(_card_file(folder))
    facts = {"officer": name, "key": key.public.identifier, "card": str(_card_file(folder))}
    if as_json:
        show_json(facts)
        return
    console.print(f"officer [bold]{name}[/], key [bold]{key.public.identifier}[/]")
    console.print(f"give {facts['card']} to the coordinator and compare the key by telephone")


def officer_of(folder: Path) -> tuple[str, SigningKey]:
    """Returns the officer's name and key, opened with the passphrase."""
    name = Card.read(_card_file(folder)).name
    return name, SigningKey.read(_key_file(folder), _passphrase(new=False))


def _passphrase(*, new: bool) -> str:
    text = os.environ.get(PASSPHRASE)
    if text is None:
        text = str(typer.prompt("passphrase", hide_input=True, confirmation_prompt=new, err=True))
    if not text:
        raise UsageError("the passphrase is empty", hint=f"type one, or set {PASSPHRASE}")
    return text


def _key_file(folder: Path) -> Path:
    return folder / "keys" / "officer.pem"


def _card_file(folder: Path) -> Path:
    return folder / "officer.card.json"
