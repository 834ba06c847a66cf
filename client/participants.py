"""The table of participants: what a site knows of its patients beside their images.

participants.tsv as in BIDS (bids-specification.readthedocs.io), or participants.csv, in the
cohort's folder. No text of this file quotes a patient's value.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..study.condition import ConditionSettings
from ..study.errors import Refusal, VolumeError

TABLES = {"participants.tsv": "\t", "participants.csv": ","}
FIRST = ("participant_id", "patient")
ABSENT = frozenset({"", "n/a"})  # BIDS writes a missing value as n/a
HEADING = re.compile(r"[A-Za-z][A-Za-z _-]{0,39}")
"""What is quoted as a column's name; where a table has none, a patient's row is not."""

Participants = Mapping[str, Mapping[str, str]]


def read_participants(folder: Path) -> dict[str, dict[str, str]]:
    """Reads each patient's values by column, without those that are missing; {} without a table.

    Raises:
        VolumeError: two tables, not UTF-8, another first column, a column or a patient twice, or a
            row of another length than the first; it names the line.
    """
    found = [name for name in TABLES if (folder / name).is_file()]
    if len(found) > 1:
        raise VolumeError("the cohort has two tables of participants", hint=f"keep {found[0]}")
    return _read(folder / found[0]) if found else {}


def condition_numbers(
    participants: Participants, patients: Iterable[str], condition: ConditionSettings
) -> dict[str, tuple[float, ...]]:
    """Returns each patient's class, from 0, or attributes, each mapped from its range to [-1, 1].

    Raises:
        Refusal: a patient's value is missing, is no class of the plan, or is outside its range.
    """
    numbers = {name: _numbers(participants.get(name, {}), condition) for name in patients}
    lost = [name for name, value in numbers.items() if value is None]
    if lost:
        wanted = (
            f"{condition.column}: one of {', '.join(condition.values)}"
            if condition.kind == "class"
            else ", ".join(
                f"{column}: {low:g} to {high:g}"
                for column, (low, high) in zip(condition.columns, condition.ranges, strict=True)
            )
        )
        raise Refusal(
            f"{len(lost)} of {len(numbers)} patients have no value that the plan can use",
            got=f"first: {lost[0]}",
            expected=wanted,
            hint="complete participants.tsv in the cohort's folder, or take those patients out",
        )
    return {name: value for name, value in numbers.items() if value is not None}


def number_of(cell: str) -> float | None:
    """Return the number in a cell, or None where there is none; BIDS caps ages as "89+"."""
    if "_" in cell:  # float takes 1_0 for 10
        return None
    try:
        number = float(cell.removesuffix("+"))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _read(path: Path) -> dict[str, dict[str, str]]:
    participants: dict[str, dict[str, str]] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.reader(stream, delimiter=TABLES[path.name], strict=True)
            columns = [cell.strip() for cell in next(rows, [])]
            _check_columns(columns, path.name)
            for row in rows:
                if not row:
                    continue
                where = f"{path.name}:{rows.line_num}"
                if len(row) != len(columns):
                    raise VolumeError(
                        f"{where}: the row has too many or too few cells",
                        got=len(row),
                        expected=len(columns),
                        hint="correct the row",
                    )
                name, *cells = (cell.strip() for cell in row)
                if name in participants:
                    raise VolumeError(f"{where}: the patient stands there twice", hint="keep one")
                values = zip(columns[1:], cells, strict=True)
                participants[name] = {key: text for key, text in values if text not in ABSENT}
    except (UnicodeDecodeError, csv.Error):
        raise VolumeError(
            f"{path.name} is no table in UTF-8", hint="save it again, with UTF-8 as its encoding"
        ) from None
    except OSError:
        raise VolumeError(
            f"{path.name} cannot be read", hint="give this user read permission (chmod, chown)"
        ) from None
    return participants


def _check_columns(columns: list[str], name: str) -> None:
    if not columns or columns[0] not in FIRST:
        first = columns[0] if columns else ""
        raise VolumeError(
            f"{name}:1: the first column is another",
            got=first if HEADING.fullmatch(first) else "no name of a column",
            expected=" or ".join(FIRST),
            hint=f"call the column that names the patients' folders {FIRST[0]}, and put it first",
        )
    if len(set(columns)) < len(columns):
        raise VolumeError(f"{name}:1: two columns have one name", hint="rename one")


def _numbers(values: Mapping[str, str], condition: ConditionSettings) -> tuple[float, ...] | None:
    """Returns one patient's class or attributes, or None where a value cannot be used."""
    if condition.kind == "class":
        value = values.get(condition.column)
        return (condition.values.index(value),) if value in condition.values else None
    scaled = []
    for column, (low, high) in zip(condition.columns, condition.ranges, strict=True):
        number = number_of(values.get(column, ""))
        if number is None or not low <= number <= high:
            return None
        scaled.append(2 * (number - low) / (high - low) - 1)
    return tuple(scaled)
